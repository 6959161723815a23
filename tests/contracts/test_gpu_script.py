"""`benchmarks/gpu.py` runs to its end on the CPU: a machine with a GPU is rare, and what it is lent for must work at once."""

import json
from pathlib import Path

import pytest

from tests.support.processes import run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_all_is_measured(tmp_path: Path) -> None:
    options = ["--out", tmp_path, "--device", "cpu", "--sizes", "tiny", "--no-checks"]
    done = run(ROOT / "benchmarks" / "gpu.py", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert report["left_out"] == []
    measured = " ".join(row[1] for row in report["rows"])
    for what in ("load with 3 LoRAs", "load with 3 auto vectors", "a search", "extract", "decode 64 x 64 with exact"):
        assert what in measured
    assert (tmp_path / "gpu.md").read_text("utf-8").count("| tiny |") == len(report["rows"]) - 1
