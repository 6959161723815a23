"""Adapters that do not hold what their config says, and names that PEFT does not write."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub.checkpoints.architecture import describe
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import AdapterError
from dem_hub.vectors.lora.contents import _targets
from tests.support.lora_merges import LINEAR, assert_as_peft, changed_adapter, merge_one
from tests.support.tiny_models import Zoo, edit_json, load_tensors, make_adapter

PREFIX = "base_model.model."


def drop(part: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


MISSING: dict[str, tuple[str, str]] = {
    "everything": ("", "its file has no tensors"),
    "a layer": ("layers.1.", "'model.layers.1.self_attn.q_proj' is in target_modules and has no lora_A and lora_B"),
    "one kind of module": ("v_proj", "'model.layers.0-1.self_attn.v_proj' is in target_modules and has no lora_A"),
    "one module": ("layers.1.mlp.down_proj", "'model.layers.1.mlp.down_proj' is in target_modules"),
}


@pytest.mark.parametrize(("part", "message"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_named(zoo: Zoo, tmp_path: Path, part: str, message: str) -> None:
    adapter = changed_adapter(zoo, tmp_path / "adapter", drop(part))
    with pytest.raises(
        AdapterError, match=rf"(?s)does not hold what its config says.*{message}.*Fetch it again, or save"
    ):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


# Each with what is removed from an adapter of all linear layers, and what is said of it.
INCOMPLETE: dict[str, tuple[dict[str, Any], str, str]] = {
    "a pattern": (
        {"target_modules": r".*\.(q|v|down)_proj"},
        "layers.1.self_attn.v_proj",
        "'model.layers.1.self_attn.v_proj' is in target_modules and has no lora_A",
    ),
    "a pattern, and a layer": (
        {"target_modules": r"model\.layers\.\d+\.self_attn\.[qk]_proj"},
        "layers.0.",
        "'model.layers.0.self_attn.q_proj' is in target_modules",
    ),
    "a pattern with another for what is excluded": (
        {"target_modules": r".*_proj", "exclude_modules": r".*\.0\..*"},
        "layers.1.mlp.up_proj",
        "'model.layers.1.mlp.up_proj' is in target_modules",
    ),
    "all linear layers": (
        {"target_modules": "all-linear"},
        "layers.1.mlp.gate_proj",
        "'model.layers.1.mlp.gate_proj' is in target_modules",
    ),
    "a module outside the layers": (
        {"target_modules": ["q_proj", "lm_head"]},
        "lm_head",
        "'lm_head' is in target_modules and has no lora_A",
    ),
    "layers by pattern": (
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        "layers.1.self_attn.v_proj",
        "'model.layers.1.self_attn.v_proj' is in target_modules",
    ),
}


@pytest.mark.parametrize(("options", "part", "message"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_what_a_config_says_in_any_form_is_checked(
    zoo: Zoo, tmp_path: Path, options: dict[str, Any], part: str, message: str
) -> None:
    base = zoo.models("llama-untied", "float32").base
    adapted = make_adapter(base, tmp_path, **options)
    edit_json(tmp_path / "adapter_config.json", target_modules=options["target_modules"])  # PEFT writes names out
    assert_as_peft(base, tmp_path, adapted)
    tensors = load_tensors(tmp_path, "adapter_model")
    drop(part)(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=rf"(?s)does not hold what its config says.*{re.escape(message)}"):
        merge_one(base, tmp_path)


LOOKAHEAD = r"^(?!.*k_proj).*self_attn.*_proj$"


@pytest.mark.parametrize(
    ("pattern", "part", "notes"),
    [
        (LOOKAHEAD, "nothing", ["cannot be matched in linear time"]),
        (LOOKAHEAD, "layers.1.", ["cannot be matched in linear time", "layers 1 of 'model.layers' have no LoRA"]),
        (
            r"(model\.layers.*self_attn\.q_proj|lm_head)",
            "layers.",
            ["'model.layers' is in target_modules, and none of"],
        ),
    ],
    ids=["a pattern that is not matched", "and a layer without a LoRA", "no layer with a LoRA"],
)
def test_what_is_said_and_not_refused(
    zoo: Zoo, tmp_path: Path, pattern: str, part: str, notes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    base = zoo.models("llama-untied", "float32").base
    make_adapter(base, tmp_path, target_modules=pattern)
    tensors = load_tensors(tmp_path, "adapter_model")
    drop(part)(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    merge_one(base, tmp_path)
    assert len(caplog.messages) == len(notes)
    assert all(note in message for note, message in zip(notes, caplog.messages, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_targets_are_those_of_peft(zoo: Zoo, seed: int) -> None:
    """Each module of a model, against PEFT's own function."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    base = zoo.models("qwen2-moe", "float32").base
    architecture = describe(base, Checkpoint(base))
    rng = random.Random(seed)
    names = ["q_proj", "self_attn.v_proj", "lm_head", "up_proj", "gate", "layers.1.self_attn.o_proj", "embed_tokens"]
    patterns = [r".*\.[qk]_proj", r".*layers\.0.*", r"lm_head", r".*(up|down)_proj", r"model\.layers\.\d\.mlp\..*"]
    targeted = 0
    for _ in range(200):
        config: dict[str, Any] = {"target_modules": rng.choice([rng.choice(patterns), rng.sample(names, 3)])}
        config["exclude_modules"] = rng.choice([None, rng.choice(patterns), rng.sample(names, 2)])
        config["modules_to_save"] = rng.choice([None, rng.sample(["lm_head", "mlp", "up_proj"], 1)])
        if isinstance(config["target_modules"], list):
            config["layers_to_transform"] = rng.choice([None, [], 1, [0], [0, 1], [5]])
            if config["layers_to_transform"]:
                config["layers_pattern"] = rng.choice([None, "layers", ["h", "layers"], "mlp"])
        is_targeted = _targets(config, architecture)
        theirs = LoraConfig(**config)
        for module in architecture.keys:
            found = check_target_module_exists(theirs, module)
            expected = bool(found) and type(found).__name__ != "_ExcludedModule"
            assert is_targeted(module) == expected, (module, config)
            targeted += expected
    assert targeted > 300


def test_a_saved_module_that_is_missing(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-untied", "float32").base
    make_adapter(base, tmp_path, target_modules=LINEAR, modules_to_save=["norm"])
    tensors = load_tensors(tmp_path, "adapter_model")
    drop("model.norm")(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    message = "(?s)'norm' is in modules_to_save and has no tensor.*Fetch it again.*modules_to_save names what there is"
    with pytest.raises(AdapterError, match=message):
        merge_one(base, tmp_path)


WHOLE: dict[str, dict[str, Any]] = {
    "some layers": {"target_modules": LINEAR, "layers_to_transform": [1]},
    "some layers, by pattern": {"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"},
    "some excluded": {"target_modules": LINEAR, "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "excluded by an expression": {"target_modules": LINEAR, "exclude_modules": r".*layers\.0\..*"},
    "an expression": {"target_modules": r".*\.1\..*q_proj"},
    "saved in place of a LoRA": {"target_modules": [*LINEAR, "lm_head"], "modules_to_save": ["lm_head"]},
    "whole names": {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]},
}


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_what_peft_writes_is_whole(zoo: Zoo, tmp_path: Path, options: dict[str, Any]) -> None:
    base = zoo.models("llama-untied", "float32").base
    assert_as_peft(base, tmp_path, make_adapter(base, tmp_path, **options))


def test_a_config_that_says_so_makes_a_smaller_adapter_whole(zoo: Zoo, tmp_path: Path) -> None:
    """The way out that the refusal names."""
    adapter = changed_adapter(zoo, tmp_path / "adapter", drop("layers.1."))
    edit_json(adapter / "adapter_config.json", layers_to_transform=[0])
    merge = merge_one(zoo.models("llama-tied", "float32").base, adapter)
    assert merge.active("model.layers.0.self_attn.q_proj.weight")
    assert not merge.active("model.layers.1.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "base_model.model.module.", "base_model.model._orig_mod."]
)
def test_names_of_a_wrapped_model(zoo: Zoo, tmp_path: Path, wrapper: str) -> None:
    def wrap(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[wrapper + name.removeprefix(PREFIX)] = tensors.pop(name)

    adapter = changed_adapter(zoo, tmp_path / "adapter", wrap)
    with pytest.raises(AdapterError, match="names have the prefix '.*' of a wrapped model.*Save the adapter again"):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


@pytest.mark.parametrize("value", ["lora_xs", "pissa", "loftq", "olora_2"])
def test_initializations_that_may_change_the_base(zoo: Zoo, tmp_path: Path, value: str) -> None:
    adapter = changed_adapter(zoo, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", init_lora_weights=value)
    with pytest.raises(AdapterError, match=f"init_lora_weights is '{value}', which"):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


@pytest.mark.filterwarnings("ignore")  # PEFT, of embedding layers that it saves
@pytest.mark.parametrize("copies", ["as PEFT wrote it", "without original_module", "without modules_to_save"])
def test_new_tokens_with_saved_embeddings(zoo: Zoo, tmp_path: Path, copies: str) -> None:
    """PEFT writes each embedding up to three times."""
    base = zoo.models("llama-untied", "float32").base
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapted = make_adapter(base, tmp_path, resize=66, **options)
    tensors = load_tensors(tmp_path, "adapter_model")
    assert any(".original_module." in name for name in tensors)
    drop({"as PEFT wrote it": "nothing", "without original_module": ".original_module."}.get(copies, "_module"))(
        tensors
    )
    if copies == "without modules_to_save":
        drop(".modules_to_save.")(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert_as_peft(base, tmp_path, adapted)


def test_two_copies_of_a_saved_module_that_differ(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-untied", "float32").base
    make_adapter(base, tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    tensors = load_tensors(tmp_path, "adapter_model")
    tensors[f"{PREFIX}lm_head.modules_to_save.weight"] = torch.ones(64, 32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="are one tensor, and differ in the file"):
        merge_one(base, tmp_path)
