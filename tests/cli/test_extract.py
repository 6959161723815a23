"""`dem-hub extract`: every codec with its options, and what is printed."""

from pathlib import Path

import pytest

from dem_hub import DistributionVector
from dem_hub.checkpoints.fingerprint import saw_all_bytes
from tests.cli.running import run
from tests.support.tiny_models import Models


@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ([], "auto"),
        (["--max-error", "0.3"], "auto"),
        (["--codec", "lowrank", "--rank", "3"], "lowrank"),
        (["--codec", "lowrank", "--energy", "0.5"], "lowrank"),
        (["--codec", "lrsign", "--rank", "3", "--group", "4"], "lrsign"),
        (["--codec", "dense", "--dtype", "bfloat16"], "dense"),
    ],
    ids=str,
)
def test_extract(
    llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], codec: str
) -> None:
    out = run(capsys, "extract", llama.base, llama.full, "-o", tmp_path / "vector", *options)
    vector = DistributionVector.from_pretrained(tmp_path / "vector")
    assert vector.config is not None
    assert vector.config.codec == codec
    assert out.startswith(f"{tmp_path}/vector: {codec}")
    assert "relative error" in out
    assert out.count("\n") == (2 if codec == "auto" else 1)


def test_all_bytes_of_the_base_are_recorded_when_asked(
    llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "extract", llama.base, llama.full, "-o", tmp_path / "vector", "--verify", "full")
    assert saw_all_bytes(DistributionVector.from_pretrained(tmp_path / "vector").base.fingerprint or "")
