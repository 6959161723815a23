"""Every row of the design's table of what goes wrong: the bad input, and the message that the user reads.

A message says what was refused, both values, where, and what to do next; several faults are listed in one error.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DEMConfig, DEMModel, DistributionVector
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import AdapterError, BaseMismatchError, CheckpointError, ConfigError, DemHubError
from tests.support.tiny_models import Models, Zoo, edit_json, edit_vector, load_tensors, make_adapter, reshard

Change = Callable[[dict[str, Tensor]], object]


def message(error: type[DemHubError], action: Callable[[], object]) -> str:
    """What the refusal says."""
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)


def assert_says(text: str, *parts: str) -> None:
    assert [part for part in parts if part not in text] == [], text


# A vector made from another base, or another revision of it.


def test_another_revision_of_the_base(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    def train_more(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] += 0.01
        tensors["model.norm.weight"] += 0.01

    other = reshard(llama.base, tmp_path / "other", change=train_more)
    vector = str(zoo.vector("llama-tied"))
    text = message(BaseMismatchError, lambda: DEMModel.from_pretrained(other, vectors={vector: 0.5}))
    fingerprints = re.findall(r"fingerprint ([0-9a-f]{16})", text)
    assert len(set(fingerprints)) == 2
    assert_says(
        text,
        f"'{vector}'",
        f"'{llama.base}'",
        f"'{other}'",
        "The first tensor that differs is 'model.layers.1.mlp.up_proj.weight'",
    )
    assert_says(text, "Put it on the base it was made from", "allow_base_mismatch=True")


def test_a_change_in_a_tensor_that_the_vector_leaves_alone(zoo: Zoo, tmp_path: Path) -> None:
    models = zoo.models("llama-tied", "float32")
    other = reshard(models.base, tmp_path / "other", change=lambda tensors: tensors["model.norm.weight"].add_(1))
    vector = str(zoo.vector("llama-tied", "float32", "lowrank"))
    text = message(BaseMismatchError, lambda: DEMModel.from_pretrained(other, vectors={vector: 0.5}))
    assert_says(text, "A tensor that this vector does not change differs")
    DEMModel.from_pretrained(other, vectors={vector: 0.5}, allow_base_mismatch=True)


def test_another_architecture(zoo: Zoo) -> None:
    vector = str(zoo.vector("llama-tied"))
    for options in ({}, {"allow_base_mismatch": True}):
        text = message(
            BaseMismatchError,
            lambda options=options: DEMModel.from_pretrained(zoo.models("gpt2").base, vectors={vector: 0.5}, **options),
        )
        assert_says(
            text,
            "'model.embed_tokens.weight' [64, 32] is not in this base",
            "'model.norm.weight' [32] is not in this base",
        )


def test_a_base_of_another_size(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(30, dtype=torch.bfloat16)
        tensors.pop("model.layers.0.mlp.up_proj.weight")

    other = reshard(llama.base, tmp_path / "other", change=cut)
    vector = str(zoo.vector("llama-tied"))
    text = message(
        BaseMismatchError, lambda: DEMModel.from_pretrained(other, vectors={vector: 0.5}, allow_base_mismatch=True)
    )
    assert_says(
        text,
        "'model.norm.weight' is [32] in the vector and [30] in this base",
        "'model.layers.0.mlp.up_proj.weight' [48, 32] is not in",
    )


# Shapes differ.


def shapes(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(30, dtype=torch.bfloat16)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(48, 40, dtype=torch.bfloat16)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(64, 32, dtype=torch.bfloat16)
    tensors["model.extra.weight"] = torch.arange(4.0)
    tensors.pop("model.layers.0.self_attn.q_proj.weight")
    tensors["model.layers.0.self_attn.k_proj.weight"] = tensors["model.layers.0.self_attn.k_proj.weight"].int()


def test_several_misfits_in_one_error(llama: Models, tmp_path: Path) -> None:
    other = reshard(llama.full, tmp_path / "other", change=shapes)
    text = message(CheckpointError, lambda: DistributionVector.extract(llama.base, other))
    assert_says(text, f"'{other}' is not a fine-tune of '{llama.base}': 6 tensors do not fit")
    assert_says(
        text,
        "'model.norm.weight' is [32] in the base and [30] in the fine-tune",
        "'model.layers.0.mlp.up_proj.weight' is [48, 32] in the base and [48, 40] in the fine-tune",
        "'model.layers.1.mlp.up_proj.weight' is [48, 32] in the base and [64, 32] in the fine-tune",
        "'model.extra.weight' [4] is in the fine-tune only",
        "'model.layers.0.self_attn.q_proj.weight' [32, 32] is in the base only",
        "'model.layers.0.self_attn.k_proj.weight' is BF16 in the base and I32 in the fine-tune",
        "Name the base that this model was trained from",
    )


def test_smaller_vocabulary_is_never_cut(llama: Models, tmp_path: Path) -> None:
    def shrink(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:60].clone()

    other = reshard(llama.full, tmp_path / "other", change=shrink)
    text = message(CheckpointError, lambda: DistributionVector.extract(llama.base, other))
    assert_says(text, "'model.embed_tokens.weight' is [64, 32] in the base and [60, 32] in the fine-tune")


def test_adapter_of_a_larger_model(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(zoo.models("llama-tied", "float32").base, adapter, target_modules=["q_proj"], r=2)
    save_file(
        {name: torch.ones(tensor.shape[0] * 2, tensor.shape[1] * 2) for name, tensor in load_tensors(adapter).items()},
        adapter / "adapter_model.safetensors",
    )
    text = message(AdapterError, lambda: DEMModel.from_pretrained(llama.base, vectors={str(adapter): 1.0}))
    assert_says(
        text,
        "'model.layers.0-1.self_attn.q_proj.weight' is [32, 32] in the base, and the LoRA's B @ A is [64, 64]",
    )
    assert_says(text, f"The adapter '{adapter}' does not fit the base '{llama.base}'", "Use the base it was trained on")


# Buffers and integers.


def test_buffers_that_disagree(llama: Models, tmp_path: Path) -> None:
    def counter(**values: int) -> Change:
        return lambda tensors: tensors.update({name: torch.tensor([value]) for name, value in values.items()})

    base = reshard(llama.base, tmp_path / "base", change=counter(steps=0, seen=0))
    vectors = {}
    for number in (1, 2):
        finetuned = reshard(llama.full, tmp_path / f"finetuned{number}", change=counter(steps=number, seen=10 * number))
        DistributionVector.extract(base, finetuned).save_pretrained(tmp_path / f"vector{number}")
        vectors[str(tmp_path / f"vector{number}")] = 0.5
    text = message(BaseMismatchError, lambda: DEMModel.from_pretrained(base, vectors=vectors))
    assert_says(
        text,
        "replaced, not scaled",
        "'seen' differs between",
        "'steps' differs between",
        *vectors,
        "Give all but one of them the coefficient 0",
    )


# Truncated or altered files.


@pytest.fixture
def vector(zoo: Zoo, tmp_path: Path) -> Path:
    """A vector that may be damaged."""
    return Path(shutil.copytree(zoo.vector("llama-tied", "bfloat16", "lossy"), tmp_path / "vector"))


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["vector_model.safetensors", "adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        pytest.param(alter, "has sha256", id="altered"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-7]), "has sha256", id="truncated"),
        pytest.param(Path.unlink, "is missing", id="lost"),
    ],
)
def test_damaged_vector(llama: Models, vector: Path, name: str, damage: Callable[[Path], object], fault: str) -> None:
    damage(vector / name)
    text = message(CheckpointError, lambda: DEMModel.from_pretrained(llama.base, vectors={str(vector): 0.5}))
    assert_says(text, f"'{vector}'", f"'{name}' {fault}", "recorded is", "Nothing was loaded. Fetch them again")


def test_all_damaged_files_in_one_error(vector: Path) -> None:
    for name in ("vector_model.safetensors", "adapter_model.safetensors"):
        alter(vector / name)
    text = message(CheckpointError, lambda: DistributionVector.from_pretrained(vector))
    assert_says(text, "'vector_model.safetensors' has sha256", "'adapter_model.safetensors' has sha256")


@pytest.mark.parametrize("keep", [4, 100, -10], ids=["no header", "half a header", "not all tensors"])
def test_truncated_checkpoint(zoo: Zoo, llama: Models, tmp_path: Path, keep: int) -> None:
    file = reshard(llama.base, tmp_path / "base") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    for action in (
        lambda: DEMModel.from_pretrained(tmp_path / "base", vectors={str(zoo.vector("llama-tied")): 0.5}),
        lambda: DistributionVector.extract(tmp_path / "base", llama.full),
    ):
        assert_says(message(CheckpointError, action), f"'{file}' is not a whole safetensors file", "Fetch it again")


def test_truncated_adapter(zoo: Zoo, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(zoo.adapter("llama-tied"), tmp_path / "adapter"))
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert_says(
        message(CheckpointError, lambda: DistributionVector.from_pretrained(adapter)),
        f"'{file}' is not a whole safetensors file",
    )


# NaN or inf.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_not_finite_in_extraction(llama: Models, tmp_path: Path, side: str, value: float) -> None:
    folders = {"base": llama.base, "finetuned": llama.full}
    name = "model.layers.1.mlp.down_proj.weight"
    folders[side] = reshard(folders[side], tmp_path / side, change=lambda tensors: tensors[name][3, 5].fill_(value))
    text = message(CheckpointError, lambda: DistributionVector.extract(*folders.values()))
    assert_says(text, f"'{name}' of '{folders[side]}' has NaN or inf in it", "use an earlier checkpoint")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_not_finite_base_in_a_load(zoo: Zoo, llama: Models, tmp_path: Path, name: str) -> None:
    base = reshard(llama.base, tmp_path / "base", change=lambda tensors: tensors[name][0].fill_(torch.nan))
    vector = str(zoo.vector("llama-tied", kind="lowrank"))
    text = message(
        CheckpointError, lambda: DEMModel.from_pretrained(base, vectors={vector: 0.5}, allow_base_mismatch=True)
    )
    assert_says(text, f"'{name}' of '{base}'", "has NaN or inf in it", "did not diverge")


def test_not_finite_after_the_merge(zoo: Zoo) -> None:
    base, vector = zoo.models("llama-tied", "float16").base, str(zoo.vector("llama-tied", "float16"))
    text = message(CheckpointError, lambda: DEMModel.from_pretrained(base, vectors={vector: 1e9}))
    assert re.search(r"'model\.\S+' of ", text)
    assert_says(
        text,
        f"1000000000.0 * '{vector}'",
        "beyond the range of the target dtype",
        "Use smaller coefficients or a wider dtype",
    )


# Pickles.


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_base(zoo: Zoo, llama: Models, tmp_path: Path, name: str) -> None:
    base = reshard(llama.base, tmp_path / "base")
    torch.save({"a": torch.ones(1)}, base / name)
    (base / "model.safetensors").unlink()
    for action in (
        lambda: DistributionVector.extract(base, llama.full),
        lambda: DEMModel.from_pretrained(base, vectors={str(zoo.vector("llama-tied")): 0.5}),
    ):
        text = message(CheckpointError, action)
        assert_says(
            text,
            f"'{base}' has only pickled weights ({name})",
            "can run code when they are read",
            "Convert them",
            "save_pretrained(new_folder)",
        )


def test_pickled_adapter(zoo: Zoo, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(zoo.adapter("llama-tied"), tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    text = message(CheckpointError, lambda: DistributionVector.from_pretrained(adapter))
    assert_says(
        text,
        "pickled weights only (adapter_model.bin)",
        "PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)",
    )


# Names that leave their folder.


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/../../b.safetensors", "..\\b.safetensors"]
)
def test_index_that_leaves_its_folder(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    text = message(ConfigError, lambda: Checkpoint(tmp_path))
    assert_says(
        text,
        f"The file in {index} is '{name}'",
        "names must be relative and may not contain '..'",
        "Do not use this repository",
    )


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_vector_that_names_files_elsewhere(vector: Path, name: str) -> None:
    edit_vector(vector, files={name: "0" * 64})
    assert_says(
        message(ConfigError, lambda: DistributionVector.from_pretrained(vector)), f"'{name}'", "may not contain '..'"
    )


@pytest.mark.parametrize("subfolder", ["../other", "/etc"])
def test_recipe_that_names_folders_elsewhere(tmp_path: Path, subfolder: str) -> None:
    recipe: dict[str, Any] = {"model_type": "dem", "format_version": 1, "base": {"repo_id": "org/base"}}
    recipe["vectors"] = [{"repo_id": "me/maths", "coefficient": 1.0, "subfolder": subfolder}]
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    assert_says(
        message(ConfigError, lambda: DEMConfig.from_pretrained(tmp_path)),
        f"subfolder of vector 'me/maths' is '{subfolder}'",
    )


@pytest.mark.parametrize(
    "entry", [{"path": "/home/me/base"}, {"repo_id": "/home/me/base"}, {"repo_id": "../base"}], ids=str
)
def test_recipe_from_the_hub_that_names_a_local_path(entry: dict[str, str]) -> None:
    data = {"model_type": "dem", "format_version": 1, "base": entry, "vectors": []}
    text = message(ConfigError, lambda: DEMConfig.from_dict(data, "me/recipe", None))
    assert_says(text, "me/recipe comes from the Hub and names the local path", *entry.values(), "names Hub ids only")


# Remote code.


@pytest.mark.parametrize("trust", [False, True])
def test_recipe_that_asks_for_remote_code(zoo: Zoo, llama: Models, tmp_path: Path, trust: bool) -> None:
    DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.5}).dem.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", trust_remote_code=True)
    text = message(ConfigError, lambda: DEMModel.from_pretrained(tmp_path, trust_remote_code=trust))
    assert_says(text, "unknown key 'trust_remote_code'")


def test_base_with_code_of_its_own_needs_the_caller(llama: Models, tmp_path: Path) -> None:
    from transformers import AutoConfig

    base = reshard(llama.base, tmp_path / "base")
    (base / "code.py").write_text(
        "from transformers import LlamaConfig\nclass Config(LlamaConfig):\n    model_type = 'mine'\n"
    )
    edit_json(base / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    DistributionVector.extract(base, reshard(llama.full, tmp_path / "full"), codec="dense").save_pretrained(
        tmp_path / "vector"
    )
    vectors = {str(tmp_path / "vector"): 0.5}
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DEMModel.from_pretrained(base, vectors=vectors)
    assert "mine" not in AutoConfig.for_model("llama").model_type
    DEMModel.from_pretrained(base, vectors=vectors, trust_remote_code=True)


# Quantised checkpoints.


@pytest.mark.parametrize("side", ["base", "finetuned"])
@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "fp8"])
def test_quantized_checkpoint(llama: Models, tmp_path: Path, side: str, method: str) -> None:
    folders = {"base": llama.base, "finetuned": llama.full}
    folders[side] = reshard(folders[side], tmp_path / side)
    edit_json(folders[side] / "config.json", quantization_config={"quant_method": method})
    text = message(CheckpointError, lambda: DistributionVector.extract(*folders.values()))
    assert_says(
        text,
        f"'{folders[side]}' is quantised ({method})",
        "the difference would be one of rounded weights",
        "in bf16, fp16 or fp32",
    )


def test_quantized_base_of_a_recipe(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    base = reshard(llama.base, tmp_path / "base")
    DEMModel.from_pretrained(base, vectors={str(zoo.vector("llama-tied")): 0.5}).dem.save_pretrained(
        tmp_path / "recipe"
    )
    edit_json(base / "config.json", quantization_config={"quant_method": "awq"})
    assert_says(message(CheckpointError, lambda: DEMModel.from_pretrained(tmp_path / "recipe")), "is quantised (awq)")


# Configs of another version.


def test_newer_vector(vector: Path) -> None:
    edit_vector(vector, format_version=2)
    text = message(ConfigError, lambda: DistributionVector.from_pretrained(vector))
    assert_says(
        text, "format_version 2, and this dem_hub reads up to 1", "Upgrade: pip install --upgrade dem-hub", str(vector)
    )


def test_unknown_key(vector: Path) -> None:
    edit_vector(vector, scale=2, shift=1)
    assert_says(
        message(ConfigError, lambda: DistributionVector.from_pretrained(vector)),
        "unknown keys 'scale', 'shift'",
        str(vector),
    )
