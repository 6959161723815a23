"""What a model's architecture says about its checkpoint: the module of each key, buffers, and groups of tensors.

transformers itself is asked, with the model built without memory and with the renaming rules of its own loader.
Nothing is guessed from names: `h.0.attn.c_attn.weight` on disk is `transformer.h.0.attn.c_attn` in memory,
transposed, and a key that is fused with others in memory is no module's weight at all. Only plain decoders, whose
names are known to be the same on disk and in memory, are described without transformers, because importing it takes
seconds. Below `models`, transformers is needed only here and in `evaluation`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.tensor_groups import ATTENTION, EMBEDDING, MLP, OTHER
from dem_hub.errors import CheckpointError, DemHubError, refuse
from dem_hub.files.strict_json import fits, shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.core_model_loading import WeightConverter

ModuleKind = Literal["linear", "conv1d", "embedding"]

# The keys of a parameter that is several matrices on disk. Each inner tuple is one part, expert by expert; the
# parts of an expert lie one below the other in the parameter (in `gate_up_proj` the gate is above the up).
Fused = tuple[tuple[str, ...], ...]

# Decoders whose tensors have the same names on disk and in memory, and whose weights are all of linear layers,
# norms and one embedding.
PLAIN = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}
_PLAIN_EMBEDDING = "model.embed_tokens"
_PLAIN_OUTPUT = "lm_head"
_PLAIN_LAYER = r"\w+layernorm|self_attn\.(qkv|[qkvo])_proj|self_attn\.[qk]_norm|mlp\.\w+"
_PLAIN_KEY = re.compile(rf"(model\.(embed_tokens|norm|layers\.\d+\.({_PLAIN_LAYER}))|lm_head)\.(weight|bias)")

# Settings that say how many modules of a kind a model has, such as `num_hidden_layers`, `n_layer` and `depths`; sizes
# and ids (`block_size`) say nothing of this.
_COUNT = re.compile(r"(layer|block|expert|depth|stage)(?!.*(size|dim|length|id|ids|index|token)s?$)", re.IGNORECASE)
# Modules of a kind that one tensor may stand for: experts that are one tensor on disk. No model has more than 512.
_FUSED = 1024

# Models with Mamba layers. PEFT puts no LoRA on their `out_proj`: the kernels read its weight directly, past the
# module and its LoRA.
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")


@dataclass(frozen=True)
class Module:
    """A module whose weight is one tensor of the checkpoint, with its name in the model.

    A `linear` weight is (out, in). A `conv1d` (GPT-2's) and an `embedding` are the other way round for a LoRA.
    """

    name: str
    kind: ModuleKind

    @property
    def transposed(self) -> bool:
        """Whether a LoRA's B @ A is the transpose of the checkpoint's tensor."""
        return self.kind != "linear"


@dataclass(frozen=True)
class Architecture:
    """The modules and buffers behind the keys of one checkpoint.

    * `modules` has the module of each checkpoint key that is a module's weight.
    * `parameters` maps a name in memory to its key on disk, for tensors that are one tensor in both.
    * `buffers` are checkpoint keys of tensors that training does not change.
    * `tied` has the names of the input and the output embedding if they are one tensor.
    * `fused` has parameters that are experts' matrices put together in memory, by their names in memory.
    * `groups` says what each tensor is for: `embedding`, `attention`, `mlp` or `other` (norms, and tensors outside
      the layers).
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
        """The checkpoint key of each module's weight, by the module's name; of several keys the first."""
        keys: dict[str, str] = {}
        for key, module in self.modules.items():
            keys.setdefault(module.name, key)
        return keys


def model_class(
    config: "PretrainedConfig", *, folder: Path | None = None, trust_remote_code: bool = False
) -> "type[PreTrainedModel]":
    """Return the model class that a config names in `architectures`.

    Args:
        config (`PretrainedConfig`): The config.
        folder (`Path`, *optional*): Where the model's own code lies. Defaults to where the config was read from.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether that code may be run.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If it names none that transformers, or the model's own code, has.
    """
    import transformers

    names = getattr(config, "architectures", None) or []
    if not fits(list[str], names):
        names = []
    home = str(folder or config.name_or_path)
    if trust_remote_code and getattr(config, "auto_map", None):
        remote = _remote_class(config.auto_map, names, home)
        if remote is not None:
            return remote
    concrete_class: Any = getattr(transformers, names[0], None) if names else None
    # transformers has functions too, such as `pipeline`: a name in a file must not be enough to call one.
    is_model = isinstance(concrete_class, type) and issubclass(concrete_class, transformers.PreTrainedModel)
    if not is_model:
        raise CheckpointError(
            f"config.json of '{home}' names the architectures {shown(names)}, and transformers "
            f"{transformers.__version__} has no such class. Load through the AutoModel class of your task, "
            "or pass trust_remote_code=True if you trust its code."
        )
    return concrete_class  # type: ignore[no-any-return]


def _remote_class(auto_map: Mapping[str, Any], names: list[str], home: str) -> "type[PreTrainedModel] | None":
    """Return the class of a model's own code that `architectures` names; `None` if it is none of those.

    Without a name there is no choice to make only if the code has a single model.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    references = [str(reference) for auto_class, reference in auto_map.items() if auto_class.startswith("AutoModel")]
    for reference in references:
        if names and reference.rpartition(".")[2] == names[0]:
            return get_class_from_dynamic_module(reference, home)
    if not names and len(set(references)) == 1:
        return get_class_from_dynamic_module(references[0], home)
    return None


def describe_plain(config: Mapping[str, Any], keys: Iterable[str]) -> Architecture | None:
    """Return what [`describe`] returns for a plain decoder, from names alone and without importing transformers.

    Args:
        config (`Mapping[str, Any]`): The model's `config.json`.
        keys (`Iterable[str]`): The names of its tensors on disk.

    Returns:
        [`Architecture`] or `None`: `None` unless it is known that the model has these names, and no others, in
        memory too.
    """
    names = list(keys)
    is_tied = config.get("tie_word_embeddings")
    concrete_class = PLAIN.get(str(config.get("model_type")))
    if concrete_class is None or config.get("architectures") != [concrete_class] or is_tied is None:
        return None
    if not all(_PLAIN_KEY.fullmatch(name) for name in names):
        return None
    modules = {}
    for name in names:
        if name.endswith(".weight") and "norm" not in name:
            module = name.removesuffix(".weight")
            modules[name] = Module(module, "embedding" if module == _PLAIN_EMBEDDING else "linear")
    return Architecture(
        name=concrete_class,
        modules=modules,
        parameters={name: name for name in names},
        buffers=frozenset(),
        tied=frozenset([_PLAIN_EMBEDDING, _PLAIN_OUTPUT] if is_tied else []),
        groups={name: _plain_group(name) for name in names},
    )


def describe(folder: Path, keys: Iterable[str], *, trust_remote_code: bool = False) -> Architecture:
    """Work out the architecture behind a checkpoint.

    Args:
        folder (`Path`): The model's folder, with its `config.json`.
        keys (`Iterable[str]`): The names of its tensors on disk.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether the caller trusts code in the folder. A
            file never decides this.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If transformers has no class for it, see [`model_class`], or cannot make a
            model of its config, or the config has more layers or experts than the checkpoint can have tensors for.
    """
    keys = list(keys)
    check_counts(read_config(folder), len(keys), f"config.json of '{folder}'")
    config, model = _build(folder, trust_remote_code=trust_remote_code)
    names, fused = _names(model, keys)
    modules_by_name = dict(model.named_modules())
    buffer_names = {name for name, _ in model.named_buffers()}
    return Architecture(
        name=type(model).__name__,
        modules=_modules(names, modules_by_name, str(config.model_type)),
        parameters={name: key for key, name in names.items()},
        buffers=frozenset(key for key, name in names.items() if name in buffer_names),
        tied=_tied(model, modules_by_name),
        fused=fused,
        groups=_groups(model, keys, names, fused),
    )


def check_counts(config: Mapping[str, Any], tensors: int, where: str) -> None:
    """Refuse a config that has more layers, blocks or experts than its checkpoint has tensors.

    transformers makes a module for each of them, also of a model without data, so that a config of 1 kB could take all
    memory.

    Args:
        config (`Mapping[str, Any]`): The config, with the configs in it.
        tensors (`int`): How many tensors the checkpoint has.
        where (`str`): The file, for the message.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If there are such counts. All of them are listed.
    """
    most = tensors + _FUSED
    faults = [f"{name} is {shown(value)}" for name, value in _counts(config) if value > most]
    if faults:
        refuse(
            CheckpointError,
            f"{where} has more layers or experts than a checkpoint of {tensors} tensors can have.",
            faults,
            "Fetch the model again, or do not use it.",
        )


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the numbers of a config, and of the configs in it, that say how many modules there are."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif _COUNT.search(name):
            numbers = value if isinstance(value, list) else [value]
            yield from ((name, number) for number in numbers if type(number) is int)


def _build(folder: Path, *, trust_remote_code: bool) -> "tuple[PretrainedConfig, PreTrainedModel]":
    """Return the config of a folder and its model without data."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"), _no_initialization():
            return config, model_class(config, trust_remote_code=trust_remote_code)(config)
    except DemHubError:
        raise
    except Exception as error:
        # transformers believes a config: what a wrong value in it raises is of any type.
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"transformers cannot make a model of config.json of '{folder}' ({type(error).__name__}: {reason}). Fetch "
            "the model again; if it is newer than transformers, upgrade transformers."
        ) from error


def memory_names(model: "PreTrainedModel", keys: Iterable[str]) -> dict[str, str]:
    """Return the name in memory of each key on disk that is one tensor in both; fused and unknown keys are left out."""
    return _names(model, keys)[0]


def _no_initialization() -> Any:
    """Return a context in which transformers builds a model without computing initial values."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def _names(model: "PreTrainedModel", keys: Iterable[str]) -> tuple[dict[str, str], dict[str, Fused]]:
    """Return the names in memory of keys that are one tensor there, and the parameters that others are fused to."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names: dict[str, str] = {}
    # The keys of each fused parameter, by the pattern of the converter that they match.
    parts: dict[str, dict[str, list[str]]] = {}
    # The loader puts experts together in this order.
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            # The rules rename this key to nothing that the model has, but the key itself is a name in memory.
            names[key] = key
        elif name in state and pattern is None:
            names[key] = name
        elif name in state and pattern is not None:
            parts.setdefault(name, {}).setdefault(pattern, []).append(key)
    fused = {}
    for name, keys_by_pattern in parts.items():
        stacked = _stacked(keys_by_pattern, converters)
        if stacked is not None:
            fused[name] = stacked
    return names, fused


def _stacked(keys_by_pattern: Mapping[str, list[str]], converters: Iterable["WeightConverter"]) -> Fused | None:
    """Return the keys of a fused parameter in the order of its rows.

    It is `None` for a parameter that is not a plain stack, with the same number of experts in each part.
    """
    position: dict[str, int] = {}
    is_stack: dict[str, bool] = {}
    for converter in converters:
        for number, pattern in enumerate(converter.source_patterns):
            position[pattern] = number
            is_stack[pattern] = _stacks(converter)
    counts = {len(keys) for keys in keys_by_pattern.values()}
    if len(counts) != 1 or not all(is_stack[pattern] for pattern in keys_by_pattern):
        return None
    patterns = sorted(keys_by_pattern, key=lambda pattern: position[pattern])
    return tuple(tuple(keys_by_pattern[pattern]) for pattern in patterns)


def _stacks(converter: "WeightConverter") -> bool:
    """Check whether a converter only lays experts next to each other, and their parts one below the other."""
    operations = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    return operations in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def _modules(
    names: Mapping[str, str], modules_by_name: Mapping[str, torch.nn.Module], model_type: str
) -> dict[str, Module]:
    """Return the module of each checkpoint key that is the weight of a module that a LoRA can be on."""
    modules = {}
    for key, name in names.items():
        owner, _, attribute = name.rpartition(".")
        kind = _module_kind(modules_by_name.get(owner))
        is_past_module = model_type in MAMBAS and owner.rpartition(".")[2] == "out_proj"
        if attribute == "weight" and kind is not None and not is_past_module:
            modules[key] = Module(owner, kind)
    return modules


def _module_kind(module: torch.nn.Module | None) -> ModuleKind | None:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return None


def _tied(model: "PreTrainedModel", modules_by_name: Mapping[str, torch.nn.Module]) -> frozenset[str]:
    """Return the names of the input and the output embedding if the config ties them; else no names."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return frozenset()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return frozenset(name for name, module in modules_by_name.items() if any(module is end for end in ends))


def _groups(
    model: "PreTrainedModel", keys: Iterable[str], names: Mapping[str, str], fused: Mapping[str, Fused]
) -> dict[str, str]:
    """Return what each tensor is for, by checkpoint key."""
    name_of = dict(names)
    for name, parts in fused.items():
        for part in parts:
            name_of |= dict.fromkeys(part, name)
    modules_by_name = dict(model.named_modules())
    output = model.get_output_embeddings()
    return {key: _group(name_of.get(key, key), modules_by_name, output) for key in keys}


def _group(name: str, modules_by_name: Mapping[str, torch.nn.Module], output: torch.nn.Module | None) -> str:
    """Return what a tensor is for, from the classes of the modules that it lies in.

    A tensor that is in a layer, and not in an attention or a norm, belongs to the MLP.
    """
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts))]
    owners = [modules_by_name[path] for path in paths if path in modules_by_name]
    if not owners or "Norm" in type(owners[-1]).__name__:
        return OTHER
    if any("Attention" in type(owner).__name__ for owner in owners):
        return ATTENTION
    if isinstance(owners[-1], torch.nn.Embedding) or owners[-1] is output:
        return EMBEDDING
    if any(isinstance(owner, torch.nn.ModuleList) for owner in owners):
        return MLP
    return OTHER


def _plain_group(name: str) -> str:
    """Return what a tensor of a plain decoder is for, as [`_group`] does."""
    if "norm" in name:
        return OTHER
    if ".self_attn." in name:
        return ATTENTION
    if ".mlp." in name:
        return MLP
    return EMBEDDING
