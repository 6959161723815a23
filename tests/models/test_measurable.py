"""What is run on data is loaded once, and its config is read before it where that is possible."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from dem_hub import DEMModel
from dem_hub.errors import NotFoundError
from dem_hub.models.measurable import Measurable
from tests.support.tiny_models import Zoo, edit_json


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the bases that are loaded from now on."""
    loaded: list[str] = []
    real = DEMModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def counted(cls: type[DEMModel], base: str, **options: Any) -> Any:
        loaded.append(base)
        return real(cls, base, **options)

    monkeypatch.setattr(DEMModel, "from_pretrained", classmethod(counted))
    return loaded


@pytest.mark.parametrize("given", ["nothing", "a config", "the name of a config"])
def test_a_model_is_loaded_once(zoo: Zoo, tmp_path: Path, loads: list[str], given: str) -> None:
    """The name of a config is read with the model alone. Then the model is there when the weights are asked for."""
    base = zoo.models("llama-tied").base
    options: dict[str, Any] = {}
    if given == "a config":
        options["config"] = LlamaConfig.from_pretrained(base, max_position_embeddings=32)
    elif given == "the name of a config":
        shutil.copytree(base, tmp_path / "config")
        edit_json(tmp_path / "config" / "config.json", max_position_embeddings=32)
        options["config"] = str(tmp_path / "config")
    measurable = Measurable(base, [str(zoo.vector("llama-tied"))], "float32", options)
    assert measurable.config.max_position_embeddings == (128 if given == "nothing" else 32)
    assert len(loads) == (given == "the name of a config")
    assert measurable.model.config.max_position_embeddings == measurable.config.max_position_embeddings
    assert measurable.model is measurable.model
    assert len(loads) == 1


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        _ = Measurable(tmp_path / "gone", [], None, {}).config
