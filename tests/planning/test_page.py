"""The figures of docs/planning.md are those of the command, for a base and an adapter of the size that it names."""

import re
from pathlib import Path

import pytest

from dem_hub.checkpoints import base_model
from dem_hub.checkpoints.reader import Checkpoint
from tests.cli.running import run
from tests.support.pages import ROOT
from tests.support.sparse_models import llama_7b, lora

PAGE = ROOT / "docs" / "planning.md"
MEMORY = ("--memory", "0=24GB", "--memory", "cpu=64GB")


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # What tells bases apart reads a few bytes of every row, which takes long in files without data.
    monkeypatch.setattr(base_model, "tensor_digests", lambda tensors, **_: {name: name for name in tensors})
    base = llama_7b(tmp_path / "base")
    matrices = {name: info.shape for name, info in Checkpoint(base).items() if "_proj" in name}
    adapter = lora(tmp_path / "lora", matrices, rank=16)
    text = PAGE.read_text("utf-8")
    plan = ("plan", base, "--vector", adapter)

    shown = re.findall(r"^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    sizes, _, printed = run(capsys, *plan, *MEMORY, "--load", "--search", "--serve").partition("\n\n")
    assert "\n".join(shown).splitlines() == printed.splitlines()
    assert "291 tensors, 13.48 GB; the largest takes 524.3 MB" in sizes
    assert "6,738,415,616 parameters\nvectors: 160.0 MB" in sizes

    in_four_bits = run(capsys, *plan, "--load", "--quantize", "4bit", "--memory", "0=8GB")
    assert re.search(r"^load +0 +4\.17 GB +5\.92 GB .* fits$", in_four_bits, re.MULTILINE)
    assert "head and norms in 16 bits | 4.17 GB |" in text
    assert "layers in float32 | 5.92 GB |" in text
    merging = run(capsys, *plan, "--merge", "--memory", "cpu=64GB")
    assert re.search(r"^merge +cpu +0 B +2\.12 GB ", merging, re.MULTILINE)
    assert "2 x largest tensor in float32 | 2.12 GB |" in text
