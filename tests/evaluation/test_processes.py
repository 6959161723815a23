"""Two processes on this machine: under `accelerate launch`, and as independent ones that share one study."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dem_hub import SearchResult, search_coefficients
from tests.support.counting_models import Counters
from tests.support.processes import start

SEARCH = """
import json, os, sys
from dem_hub import search_coefficients
from dem_hub.search import Optuna
request = json.loads(sys.argv[1])
ways = [{"method": Optuna("tpe", storage=request["storage"])}] if request["storage"] else request["ways"]
records = []
for way in ways:
    result = search_coefficients(request["base"], request["vectors"], request["data"], batch_size=4, **request["options"], **way)
    refined = result.refinement
    records.append({"coefficients": result.best.coefficients, "losses": dict(result.best.losses), "num_forward": result.num_forward,
                    "held_out": result.held_out_loss, "baselines": result.baselines,
                    "trials": [list(trial.coefficients) for trial in result.trials],
                    "groups": [refined.best.coefficients, refined.one.difference, refined.num_forward_held_out] if refined else []})
if not request["storage"]:
    result.save_pretrained(request["output"] + "-saved", with_logits=True)
with open(f"{request['output']}.{os.environ.get('RANK', request['storage'] and os.getpid())}", "w") as file:
    json.dump(records, file)
"""


WAYS: list[dict[str, Any]] = [
    {"method": "gauss_newton", "max_forward": 12},
    {"method": "gradient", "max_forward": 12},
    {"method": "gauss_newton", "granularity": "block"},
]


def request(counters: Counters, tmp_path: Path, **changes: object) -> str:
    vectors = list(counters.vectors.values())
    content = {
        "base": str(counters.base),
        "vectors": vectors,
        "data": counters.data,
        "storage": "",
        "ways": WAYS,
        "options": {},
    }
    return json.dumps(content | {"output": str(tmp_path / "result")} | changes)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "search.py"
    path.write_text(SEARCH)
    return path


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def results(tmp_path: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("result.*"))]


@pytest.mark.slow
def test_accelerate_launch(counters: Counters, tmp_path: Path, script: Path, environment: dict[str, str]) -> None:
    """Each of two processes runs half of the windows, and both find what one process finds, at the same cost.

    `--multi_gpu` is the launcher's word for one process a device; the environment says that the devices are CPUs.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    done = subprocess.run(
        [*launch, str(script), request(counters, tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-9000:]
    first, second = results(tmp_path)
    assert first == second
    saved = SearchResult.from_pretrained(tmp_path / "result-saved")
    assert list(saved.best.coefficients) == first[-1]["coefficients"]
    centers = [path for path in tmp_path.glob("result-saved/measured/logits/*") if "-" not in path.name]
    assert len(centers) == 2 * len(counters.data), "each process has logits of its own"
    for way, record in zip(WAYS, first, strict=True):
        alone = search_coefficients(counters.base, list(counters.vectors.values()), counters.data, batch_size=4, **way)
        assert record["coefficients"] == pytest.approx(alone.best.coefficients, abs=1e-4)
        assert record["losses"] == pytest.approx(alone.best.losses, rel=1e-5)
        assert record["num_forward"] == alone.num_forward
        assert record["held_out"] == pytest.approx(alone.held_out_loss, rel=1e-5)
        assert record["baselines"] == pytest.approx(alone.baselines, rel=1e-5)
        if (refined := alone.refinement) is not None:
            points, gain, cost = record["groups"]
            assert len(points) == 3 * 3
            assert points == pytest.approx(refined.best.coefficients, abs=1e-3)
            assert (gain, cost) == (pytest.approx(refined.one.difference, abs=1e-4), refined.num_forward_held_out)
    assert [bool(record["groups"]) for record in first] == [False, False, True]


@pytest.mark.slow
def test_one_study_of_two_processes(
    counters: Counters, tmp_path: Path, script: Path, environment: dict[str, str]
) -> None:
    """Both add to it; whoever ends last has seen all trials, and nobody scores what the other has."""
    journal = str(tmp_path / "journal.log")
    content = request(counters, tmp_path, storage=journal, options={"max_forward": 8})
    ends = [program.end() for program in [start(script, content, environment=environment) for _ in range(2)]]
    assert [end.returncode for end in ends] == [0, 0], "\n".join(end.stderr[-3000:] for end in ends)
    found = sorted((records[0] for records in results(tmp_path)), key=lambda record: len(record["trials"]))
    assert len(found) == 2
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    (name,) = optuna.get_all_study_names(storage)  # one question, one study
    study = optuna.load_study(study_name=name, storage=storage)
    points = {tuple(trial.params.values()) for trial in study.trials if trial.values is not None}
    assert len([trial for trial in study.trials if trial.values is not None]) == 16
    assert len(points) == 16
    assert {tuple(point) for point in found[-1]["trials"]} >= points
