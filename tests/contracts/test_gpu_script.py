"""`benchmarks/gpu.py` runs to its end on the CPU: a machine with a GPU is rare, and what it is lent for must work at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_all_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--sizes", "tiny", "--no-checks"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert report["left_out"] == []
    measured = " ".join(row[1] for row in report["rows"])
    for what in ("load with 3 LoRAs", "load with 3 auto vectors", "a search", "extract", "decode 64 x 64 with exact"):
        assert what in measured
    assert (tmp_path / "gpu.md").read_text("utf-8").count("| tiny |") == len(report["rows"]) - 1
