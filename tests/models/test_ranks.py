"""An export by two processes of torchrun: the files that one process writes, or none."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dem_hub import DistributionVector, VectorSource
from dem_hub.errors import ConfigError, DemHubError
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models import ranks
from dem_hub.models.export import export, is_exported
from dem_hub.models.planned import PlannedModel
from dem_hub.models.ranks import export_by_ranks
from tests.models.helpers import base_and_two_vectors
from tests.support.tiny_models import Zoo

SIZE = "8KB"  # some ten files


def merge_by_two(base: Path, vectors: dict[str, float], out: Path) -> "subprocess.CompletedProcess[str]":
    weighted = [word for name, value in vectors.items() for word in ("--vector", f"{name}={value}")]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "dem_hub.cli", "merge", str(base), *weighted),
        *("-o", str(out), "--max-shard-size", SIZE, "--by-ranks"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def planned(base: Path, vectors: dict[str, float]) -> PlannedModel:
    return PlannedModel.of(open_base_and_vectors(VectorSource(str(base)), vectors), max_shard_size=SIZE)


def test_the_bytes_of_one_process(zoo: Zoo, tmp_path: Path) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    vectors = {first: 0.3, second: 0.6}
    export(planned(base, vectors), tmp_path / "one")
    done = merge_by_two(base, vectors, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(tmp_path / "two")]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len([name for name in names if name.startswith("model-")]) > 3
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert is_exported(planned(base, vectors), tmp_path / "two")


def errors_of_two(
    models: Sequence[PlannedModel], targets: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Export by two threads in the place of two processes, and return the error of each."""
    barrier = threading.Barrier(2)
    slots: list[Any] = [None, None]
    own = threading.local()

    def gather(found: list[Any], mine: Any, group: Any) -> None:
        slots[own.number] = mine
        barrier.wait(60)
        found[:] = slots
        barrier.wait(60)

    def run(number: int) -> str:
        own.number = number
        with pytest.raises(DemHubError) as caught:
            export_by_ranks(models[number], targets[number])
        return str(caught.value)

    monkeypatch.setattr(ranks._Ranks, "join", lambda: ranks._Ranks(own.number, 2, None))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, [0, 1]))


def test_an_error_of_one_ends_both(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor alone is too large, and it is in a file of one process alone."""
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    shutil.copytree(base, tmp_path / "finetuned")
    weights = tmp_path / "finetuned" / "model.safetensors"
    tensors = load_file(weights)
    tensors[max(tensors)].fill_(3e38)
    save_file(tensors, weights, metadata={"format": "pt"})
    DistributionVector.extract(base, tmp_path / "finetuned", codec="dense").save_pretrained(tmp_path / "large")
    model = planned(base, {first: 0.3, str(tmp_path / "large"): 2.0})
    errors = sorted(errors_of_two([model] * 2, [tmp_path / "out"] * 2, monkeypatch))
    assert all("is not finite, or beyond the range of the target dtype" in error for error in errors)
    assert sum(error.startswith("Process ") for error in errors) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_different_models_are_refused(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    models = [planned(base, {first: 0.3}), planned(base, {first: 0.4})]
    for error in errors_of_two(models, [tmp_path / "out"] * 2, monkeypatch):
        assert "The 2 processes do not write one model" in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_one_does_not_see_is_refused(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other wrote into a folder that an earlier run left on its own disk."""
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    targets = [tmp_path / "here" / "out", tmp_path / "there" / "out"]
    (tmp_path / "there" / ".out.partial").mkdir(parents=True)
    here, there = errors_of_two([planned(base, {first: 0.3})] * 2, targets, monkeypatch)
    assert "which another process has written. Give a folder that all machines see" in here
    assert there == f"Process 0 of 2 failed: {here}"
    assert not targets[0].exists()


def test_it_is_refused_outside_of_torchrun(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="was not started by torchrun"):
        export_by_ranks(planned(zoo.models("llama-tied").base, {}), tmp_path / "out")
