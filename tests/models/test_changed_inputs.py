"""What was checked is what is read: a base or a vector that changes meanwhile is an error, and no model of a mixture."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import CheckpointError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models import lora_export
from dem_hub.models.export import export
from dem_hub.models.lora_export import export_adapter
from dem_hub.models.planned import PlannedModel
from dem_hub.transformations import ties
from dem_hub.vectors.writer import VectorWriter
from tests.files.test_states import CHANGES
from tests.support.tiny_models import Zoo

FILES = {"base": "model.safetensors", "vector": "adapter_model.safetensors"}


@pytest.fixture
def inputs(zoo: Zoo, tmp_path: Path) -> dict[str, Path]:
    """Copies of a base and a vector, which a test may change."""
    folders = {"base": tmp_path / "base", "vector": tmp_path / "vector"}
    shutil.copytree(zoo.models("llama-tied").base, folders["base"])
    shutil.copytree(zoo.vector("llama-tied", kind="lowrank"), folders["vector"])
    return folders


def change_after(
    inputs: dict[str, Path], side: str, change: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Change a file of an input once so many tensors have been merged; returns the names of all that were."""
    real = Merge.tensor
    merged: list[str] = []

    def tensor(self: Merge, name: str, *rest: object) -> object:
        result = real(self, name, *rest)  # type: ignore[arg-type]
        merged.append(name)
        if len(merged) == calls:
            CHANGES[change][0](inputs[side] / FILES[side])
        return result

    monkeypatch.setattr(Merge, "tensor", tensor)
    return merged


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", FILES)
def test_before_the_merge(inputs: dict[str, Path], tmp_path: Path, side: str, change: str) -> None:
    opened = open_base_and_vectors(VectorSource(str(inputs["base"])), {str(inputs["vector"]): 0.5})
    CHANGES[change][0](inputs[side] / FILES[side])
    for write in (
        lambda: export(PlannedModel.of(opened), tmp_path / "out"),
        lambda: export_adapter(opened, tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match="Files changed while they were in use|not a whole safetensors file"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "vector"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", FILES)
def test_in_the_middle_and_at_the_end_of_an_export(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, change: str
) -> None:
    opened = open_base_and_vectors(VectorSource(str(inputs["base"])), {str(inputs["vector"]): 0.5})
    model = PlannedModel.of(opened)
    calls = 3 if change == "shorter" else len(model.shards[0].outlines)
    change_after(inputs, side, change, calls, monkeypatch)
    with pytest.raises(CheckpointError, match="Files changed while they were in use"):
        export(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "vector"]


@pytest.mark.parametrize("side", FILES)
def test_while_a_model_loads(inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    change_after(inputs, side, "replaced", 3, monkeypatch)
    with pytest.raises(CheckpointError, match="Files changed while they were in use"):
        DEMModel.from_pretrained(inputs["base"], vectors={str(inputs["vector"]): 0.5})


def test_while_a_vector_is_extracted(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = zoo.models("llama-tied")
    shutil.copytree(models.full, tmp_path / "full")
    real = VectorWriter.close

    def close(self: VectorWriter, *rest: Any, **options: Any) -> object:
        CHANGES["written in place"][0](tmp_path / "full" / "model.safetensors")
        return real(self, *rest, **options)

    monkeypatch.setattr(VectorWriter, "close", close)
    with pytest.raises(CheckpointError, match=r"full/model.safetensors' was written to"):
        DistributionVector.extract(models.base, tmp_path / "full", codec="dense")


@pytest.mark.parametrize("change", ["replaced", "written in place"])
@pytest.mark.parametrize("side", FILES)
def test_at_the_end_of_an_adapter(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, change: str
) -> None:
    """The last tensor has been read, and nothing after it would notice."""
    opened = open_base_and_vectors(VectorSource(str(inputs["base"])), {str(inputs["vector"]): 0.5})
    real = lora_export._refuse

    def refuse(*arguments: Any) -> None:
        CHANGES[change][0](inputs[side] / FILES[side])
        real(*arguments)

    monkeypatch.setattr(lora_export, "_refuse", refuse)
    with pytest.raises(CheckpointError, match="Files changed while they were in use"):
        export_adapter(opened, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "vector"]


@pytest.mark.parametrize("change", ["replaced", "written in place"])
@pytest.mark.parametrize("side", FILES)
def test_at_the_end_of_a_transformation(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, side: str, change: str
) -> None:
    real = VectorWriter.close

    def close(self: VectorWriter, *rest: Any, **options: Any) -> object:
        CHANGES[change][0](inputs[side] / FILES[side])
        return real(self, *rest, **options)

    monkeypatch.setattr(VectorWriter, "close", close)
    with pytest.raises(CheckpointError, match="Files changed while they were in use"):
        ties(inputs["base"], {str(inputs["vector"]): 1.0}, density=0.5)


def test_a_vector_that_is_replaced_while_it_is_open(zoo: Zoo, inputs: dict[str, Path]) -> None:
    """The open one is not read as a mixture of both."""
    opened = open_base_and_vectors(VectorSource(str(inputs["base"])), {str(inputs["vector"]): 0.5})
    other = DistributionVector.from_pretrained(zoo.vector("llama-tied", kind="dense"))
    other.save_pretrained(inputs["vector"])
    with pytest.raises(CheckpointError):
        opened.merge(opened.recipe)
    again = DistributionVector.from_pretrained(inputs["vector"])
    assert again.sha256 == other.sha256
