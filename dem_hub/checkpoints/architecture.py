"""What a model's architecture says about its checkpoint: which key is which module's weight, and which tensors are buffers.

Asked of transformers itself, with the model built without memory and the loader's own renaming rules, instead of guessed from
names: `h.0.attn.c_attn.weight` on disk is `transformer.h.0.attn.c_attn` in memory, transposed, and a key that is fused with others
in memory is no module's weight at all. Needs transformers; nothing else below `loading` does.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dem_hub.checkpoints.tensor_groups import ATTENTION, EMBEDDING, MLP, OTHER
from dem_hub.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.core_model_loading import WeightConverter

Kind = Literal["linear", "conv1d", "embedding"]
# A parameter that is several matrices on disk: their keys, expert by expert, in each of the parts that lie one below the other.
Fused = tuple[tuple[str, ...], ...]

# Decoders whose tensors have the same names on disk and in memory, all linear layers but the norms and one embedding.
PLAIN = {
    "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "olmo2": "Olmo2ForCausalLM", "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "starcoder2": "Starcoder2ForCausalLM",
}  # fmt: skip
_PLAIN_KEY = re.compile(
    r"(model\.(embed_tokens|norm|layers\.\d+\.(\w+layernorm|self_attn\.(qkv|[qkvo])_proj|self_attn\.[qk]_norm|mlp\.\w+))|lm_head)\.(weight|bias)"
)
# PEFT puts no LoRA on the `out_proj` of these, whose kernels read its weight past the module.
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")


@dataclass(frozen=True)
class Module:
    """A module whose weight is one tensor of the checkpoint, under its name in the model.

    A `linear` weight is (out, in); a `conv1d` (GPT-2's) and an `embedding` are the other way round for a LoRA.
    """

    name: str
    kind: Kind

    @property
    def transposed(self) -> bool:
        """Whether a LoRA's B @ A is the transpose of what the checkpoint holds."""
        return self.kind != "linear"


@dataclass(frozen=True)
class Architecture:
    """The modules and buffers behind the keys of one checkpoint.

    `modules` is keyed by checkpoint key; `parameters` maps a name in memory to its key on disk, for tensors that are one in both;
    `buffers` are checkpoint keys of what training does not move; `tied` names the input and the output embedding, where they are one;
    `fused` are parameters that are experts' matrices put together in memory, by their names there;
    `groups` says what each tensor is for: `embedding`, `attention`, `mlp` or `other` (norms, and what is outside the layers).
    """

    name: str
    modules: Mapping[str, Module]
    parameters: Mapping[str, str]
    buffers: frozenset[str]
    tied: frozenset[str]
    fused: Mapping[str, Fused] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """The checkpoint key behind each module's name; the first, of several."""
        return {module.name: key for key, module in reversed(list(self.modules.items()))}


def model_class(config: "PretrainedConfig", *, trust_remote_code: bool = False) -> "type[PreTrainedModel]":
    """The concrete model class that a config names in `architectures`.

    Raises:
        `CheckpointError`: it names none that transformers has.
    """
    import transformers

    names = getattr(config, "architectures", None) or []
    if trust_remote_code and getattr(config, "auto_map", None):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = next((value for key, value in config.auto_map.items() if key.startswith("AutoModel")), None)
        if reference is not None:
            return get_class_from_dynamic_module(reference, str(config.name_or_path))
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise CheckpointError(
            f"config.json of '{config.name_or_path}' names the architectures {names}, and transformers {transformers.__version__} has no "
            "such class. Load through the AutoModel class of your task, or pass trust_remote_code=True if you trust its code."
        )
    return found  # type: ignore[no-any-return]


def describe_plain(config: Mapping[str, Any], keys: Iterable[str]) -> Architecture | None:
    """What [`describe`] says of a plain decoder, from its names alone, without the seconds that importing transformers takes.

    Args:
        config (`Mapping[str, Any]`): its `config.json`.
        keys (`Iterable[str]`): the names of its tensors on disk.

    Returns:
        [`Architecture`] or `None`: `None` for everything that is not known to have these names, and no others, in memory too.
    """
    names, tied = list(keys), config.get("tie_word_embeddings")
    known = PLAIN.get(str(config.get("model_type")))
    if (
        known is None
        or config.get("architectures") != [known]
        or tied is None
        or not all(map(_PLAIN_KEY.fullmatch, names))
    ):
        return None
    matrices = [name for name in names if name.endswith(".weight") and "norm" not in name]
    kinds: dict[str, Kind] = {
        name: "embedding" if name == "model.embed_tokens.weight" else "linear" for name in matrices
    }
    modules = {name: Module(name.removesuffix(".weight"), kind) for name, kind in kinds.items()}
    ends = frozenset({"model.embed_tokens", "lm_head"}) if tied else frozenset[str]()
    groups = {name: _plain_group(name) for name in names}
    return Architecture(known, modules, {name: name for name in names}, frozenset(), ends, groups=groups)


def describe(folder: Path, keys: Iterable[str], *, trust_remote_code: bool = False) -> Architecture:
    """Work out the architecture behind a checkpoint.

    Args:
        folder (`Path`): the model's folder, with its `config.json`.
        keys (`Iterable[str]`): the names of its tensors on disk.
        trust_remote_code (`bool`): the caller's word, never a file's.

    Raises:
        `CheckpointError`: see [`model_class`].
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"), _silence():
        model = model_class(config, trust_remote_code=trust_remote_code)(config)
    names, fused = _names(model, keys)
    modules: dict[str, Module] = {}
    buffers = {name for name, _ in model.named_buffers()}
    by_name = dict(model.named_modules())
    for key, name in names.items():
        owner, _, attribute = name.rpartition(".")
        kind = _kind(by_name.get(owner))
        refused = config.model_type in MAMBAS and owner.rpartition(".")[2] == "out_proj"
        if attribute == "weight" and kind is not None and not refused:
            modules[key] = Module(owner, kind)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    are_tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    tied = frozenset(name for name, module in by_name.items() if are_tied and any(module is end for end in ends))
    parameters = {name: key for key, name in names.items()}
    output = model.get_output_embeddings()
    places = names | {key: name for name, parts in fused.items() for part in parts for key in part}
    groups = {key: _group(places.get(key, key), by_name, output) for key in keys}
    found = frozenset(key for key, name in names.items() if name in buffers)
    return Architecture(type(model).__name__, modules, parameters, found, tied, fused, groups)


def memory_names(model: "PreTrainedModel", keys: Iterable[str]) -> dict[str, str]:
    """The name in memory of each key on disk, for those that are one tensor in both; fused and unknown keys are left out."""
    return _names(model, keys)[0]


def _names(model: "PreTrainedModel", keys: Iterable[str]) -> tuple[dict[str, str], dict[str, Fused]]:
    """The names of keys that are one tensor in memory, and the parameters that others are fused to."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names: dict[str, str] = {}
    parts: dict[str, dict[str, list[str]]] = {}
    for key in sorted(keys, key=dot_natural_key):  # the order in which the loader puts experts together
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if pattern is None and name in state:
            names[key] = name
        elif pattern is not None and name in state:
            parts.setdefault(name, {}).setdefault(pattern, []).append(key)
    order = {
        pattern: (number, _stacks(entry))
        for entry in converters
        for number, pattern in enumerate(entry.source_patterns)
    }
    fused = {}
    for name, found in parts.items():
        counts = {len(keys) for keys in found.values()}
        if len(counts) == 1 and all(order[pattern][1] for pattern in found):
            fused[name] = tuple(
                tuple(found[pattern]) for pattern in sorted(found, key=lambda pattern: order[pattern][0])
            )
    return names, fused


def _stacks(converter: "WeightConverter") -> bool:
    """Whether a converter lays experts side by side, and below that their parts one below the other, and does nothing more."""
    operations = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    return operations in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def _plain_group(name: str) -> str:
    if "norm" in name:
        return OTHER
    return ATTENTION if ".self_attn." in name else MLP if ".mlp." in name else EMBEDDING


def _group(name: str, modules: Mapping[str, torch.nn.Module], output: torch.nn.Module | None) -> str:
    """From the classes of the modules that a tensor lies in; what is in a layer, and no attention or norm, is of its MLP."""
    parts = name.split(".")
    owners = [modules[path] for path in (".".join(parts[:end]) for end in range(1, len(parts))) if path in modules]
    if not owners or "Norm" in type(owners[-1]).__name__:
        return OTHER
    if any("Attention" in type(owner).__name__ for owner in owners):
        return ATTENTION
    if isinstance(owners[-1], torch.nn.Embedding) or owners[-1] is output:
        return EMBEDDING
    return MLP if any(isinstance(owner, torch.nn.ModuleList) for owner in owners) else OTHER


def _kind(module: torch.nn.Module | None) -> Kind | None:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return None


def _silence() -> Any:
    from transformers.initialization import no_init_weights

    return no_init_weights()
