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

from dem_hub.checkpoints.key_names import Fused, match_keys
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.tensor_groups import ATTENTION, EMBEDDING, MLP, OTHER
from dem_hub.errors import CheckpointError, DemHubError, refuse
from dem_hub.files.strict_json import fits, shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ModuleKind = Literal["linear", "conv1d", "embedding"]

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
    * `ties` has parameters in memory that are one tensor, each with the name of the other. It is what transformers
      would tie: an input and an output embedding, mostly.
    * `fused` has parameters that are experts' matrices put together in memory, by their names in memory.
    * `groups` says what each tensor is for: `embedding`, `attention`, `mlp` or `other` (norms, and tensors outside
      the layers).
    * `unused` are checkpoint keys that the model has no place for. transformers drops them when it loads and saves:
      layers for multi-token prediction, masks and frequencies that were buffers once, heads of another task.
    """

    name: str
    modules: Mapping[str, Module]
    parameters: Mapping[str, str]
    buffers: frozenset[str]
    ties: Mapping[str, str]
    fused: Mapping[str, Fused] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()

    @cached_property
    def tied(self) -> frozenset[str]:
        """The names of the modules whose weight is one tensor with that of another module."""
        names = {*self.ties, *self.ties.values()}
        return frozenset(name.removesuffix(".weight") for name in names if name.endswith(".weight"))

    @cached_property
    def expert_keys(self) -> frozenset[str]:
        """The checkpoint keys of all matrices of experts that are fused in memory."""
        return frozenset(key for parts in self.fused.values() for keys in parts for key in keys)

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
        ties={f"{_PLAIN_OUTPUT}.weight": f"{_PLAIN_EMBEDDING}.weight"} if is_tied else {},
        groups={name: _plain_group(name) for name in names},
    )


def describe(
    folder: Path, keys: Iterable[str], *, class_name: str | None = None, trust_remote_code: bool = False
) -> Architecture:
    """Work out the architecture behind a checkpoint.

    Args:
        folder (`Path`): The model's folder, with its `config.json`.
        keys (`Iterable[str]`): The names of its tensors on disk.
        class_name (`str`, *optional*): The class to load it as, as `build` takes it.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether the caller trusts code in the folder. A
            file never decides this.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If transformers has no class for it, see [`model_class`], or cannot make a
            model of its config, or the config has more layers or experts than the checkpoint can have tensors for.
    """
    keys = list(keys)
    check_counts(read_config(folder), len(keys), f"config.json of '{folder}'")
    model = build(folder, class_name, trust_remote_code=trust_remote_code)
    matched = match_keys(model, keys)
    modules_by_name = dict(model.named_modules())
    buffer_names = {name for name, _ in model.named_buffers()}
    return Architecture(
        name=type(model).__name__,
        modules=_modules(matched.names, modules_by_name, str(model.config.model_type)),
        parameters={name: key for key, name in matched.names.items()},
        buffers=frozenset(key for key, name in matched.names.items() if name in buffer_names),
        ties=dict(getattr(model, "all_tied_weights_keys", {})),
        fused=matched.fused,
        groups=_groups(model, keys, matched.names, matched.fused),
        unused=matched.unused,
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


def build(folder: Path, class_name: str | None = None, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Build the model of a folder without memory for its tensors.

    Args:
        folder (`Path`): The model's folder, with its `config.json`.
        class_name (`str`, *optional*): The class to load it as: for instance that of the text model alone, of a model
            that reads images too. Defaults to the class that the config names.
        trust_remote_code (`bool`, *optional*, defaults to `False`): As in [`describe`].

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If transformers has no such class, the class is of another model, or
            transformers cannot make a model of the config.
    """
    import transformers

    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        concrete_class, config = _choose_class(folder, config, class_name, trust_remote_code=trust_remote_code)
        with torch.device("meta"), _no_initialization():
            model: PreTrainedModel = concrete_class(config)
            return model
    except DemHubError:
        raise
    except Exception as error:
        # transformers believes a config: what a wrong value in it raises is of any type.
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"transformers cannot make a model of config.json of '{folder}' ({type(error).__name__}: {reason}). Fetch "
            "the model again; if it is newer than transformers, upgrade transformers."
        ) from error


def _choose_class(folder: Path, config: Any, class_name: str | None, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the class to build, and the config that it is built of: the text model has one of its own."""
    import transformers

    if class_name is None:
        return model_class(config, trust_remote_code=trust_remote_code), config
    concrete_class = getattr(transformers, class_name, None)
    text_config = config.get_text_config()
    expected = getattr(concrete_class, "config_class", None)
    if expected not in (type(config), type(text_config)):
        raise CheckpointError(f"'{folder}' is a {config.model_type}, and {class_name} is no class of that model.")
    if expected is not type(config):
        config = text_config
    return concrete_class, config


def needs_remote_code(config: Mapping[str, Any]) -> bool:
    """Check whether a `config.json` names code of its own, and transformers has no class for the model.

    Args:
        config (`Mapping[str, Any]`): The content of the file.
    """
    if not config.get("auto_map"):
        return False
    import transformers

    is_known = config.get("model_type") in transformers.CONFIG_MAPPING
    return not (is_known and all(hasattr(transformers, name) for name in config.get("architectures") or ()))


def memory_names(model: "PreTrainedModel", keys: Iterable[str]) -> dict[str, str]:
    """Return the name in memory of each key on disk that is one tensor in both; fused and unknown keys are left out."""
    return dict(match_keys(model, keys).names)


def _no_initialization() -> Any:
    """Return a context in which transformers builds a model without computing initial values."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


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
