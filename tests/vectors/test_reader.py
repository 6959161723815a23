"""What lies in a vector's folder is what its config says, or it is refused before anything is decoded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.writer import write_file
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError
from dem_hub.hub.hashes import digest
from tests.support.tiny_models import Models, Zoo, edit_vector


@pytest.fixture
def vector(zoo: Zoo, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo.vector("llama-tied", "bfloat16", "dense"), tmp_path / "vector"))


def sign_again(folder: Path, **records: dict[str, Any]) -> None:
    """Change records, and take the files as they are now."""
    config = json.loads((folder / "vector_config.json").read_text())
    files = {path.name: digest(path) for path in folder.iterdir() if path.name != "vector_config.json"}
    tensors = {name: record | records.get(name, {}) for name, record in config["tensors"].items()}
    edit_vector(folder, files=files, tensors=tensors)


def test_a_file_that_nobody_checked(vector: Path, llama: Models, zoo: Zoo) -> None:
    """Beside shards, a single file would be read in their place."""
    shutil.copy(zoo.adapter("llama-tied") / "adapter_model.safetensors", vector)
    with pytest.raises(
        CheckpointError, match=r"has files that its config does not name.\n  - 'adapter_model.safetensors'\nRemove them"
    ):
        DEMModel.from_pretrained(llama.base, vectors={str(vector): 0.5})


def test_everything_wrong_at_once(vector: Path, llama: Models) -> None:
    shapes = {
        "model.norm.weight::dense": (31,),
        "model.layers.0.mlp.up_proj.weight::dense": (48, 32),
        "extra::dense": (2,),
    }
    write_file(vector / "vector_model.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()})
    sign_again(vector)
    with pytest.raises(CheckpointError) as caught:
        DEMModel.from_pretrained(llama.base, vectors={str(vector): 0.5})
    text = str(caught.value)
    assert "'extra' is in the files and not in the config" in text
    assert "'model.norm.weight::dense' is F32 [31], and must be F32 [32]" in text
    assert "'model.layers.1.mlp.up_proj.weight' lacks its part 'dense'" in text
    assert "layers.0.mlp.up_proj" not in text


def test_info_of_a_file_that_lies(vector: Path) -> None:
    write_file(vector / "vector_model.safetensors", {"extra::dense": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="'extra' is in the files and not in the config"):
        DistributionVector.describe(vector).tensor_bytes()


def test_replaced_tensors_do_not_grow(vector: Path, llama: Models) -> None:
    sign_again(vector, **{"model.norm.weight": {"codec": "replace", "rows": 3}})
    with pytest.raises(ConfigError, match=r"'model.norm.weight'.*a tensor that is replaced has 3 more rows"):
        DEMModel.from_pretrained(llama.base, vectors={str(vector): 0.5})


def test_whole_numbers_have_no_delta(llama: Models, tmp_path: Path) -> None:
    from tests.support.tiny_models import reshard

    base, tuned = (
        reshard(side, tmp_path / name, change=lambda tensors, value=value: tensors.update(steps=torch.tensor([value])))
        for name, side, value in (("base", llama.base, 0), ("tuned", llama.full, 5))
    )
    DistributionVector.extract(base, tuned, codec="dense").save_pretrained(tmp_path / "vector")
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "vector" / "vector_model.safetensors")
    tensors["steps::dense"] = tensors.pop("steps::replace").float()
    write_file(tmp_path / "vector" / "vector_model.safetensors", tensors)
    sign_again(tmp_path / "vector", steps={"codec": "dense", "options": {"dtype": "float32"}, "norm": 1.0})
    with pytest.raises(
        BaseMismatchError, match=r"'steps' is I64 in this base, and the vector has a delta for it \(dense\)"
    ):
        DEMModel.from_pretrained(base, vectors={str(tmp_path / "vector"): 0.5})


def test_a_vector_says_which_base_it_is_for(vector: Path) -> None:
    base = json.loads((vector / "vector_config.json").read_text())["base"]
    edit_vector(vector, base=base | {"fingerprint": None})
    with pytest.raises(ConfigError, match=r"does not say which base it is for: base.fingerprint is missing"):
        DistributionVector.from_pretrained(vector)


def test_half_a_remainder(tmp_path: Path) -> None:
    for name, value in (("base", 0.02), ("tuned", 6e-8)):
        (tmp_path / name).mkdir()
        write_file(tmp_path / name / "model.safetensors", {"w": torch.full((3,), value), "point": torch.tensor(value)})
    DistributionVector.extract(tmp_path / "base", tmp_path / "tuned", codec="dense").save_pretrained(
        tmp_path / "vector"
    )
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "vector" / "vector_model.safetensors")
    assert {"w::remainder", "point::remainder"} <= set(tensors)
    tensors.pop("w::remainder")
    write_file(tmp_path / "vector" / "vector_model.safetensors", tensors)
    sign_again(tmp_path / "vector")
    with pytest.raises(
        CheckpointError, match="'w' has only one of two parts that belong together: 'remainder' is missing"
    ):
        DistributionVector.from_pretrained(tmp_path / "vector").decode("w", tmp_path / "base")
