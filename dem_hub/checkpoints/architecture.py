"""What a model's architecture says about its checkpoint: the module of each key, buffers, and groups of tensors.

transformers itself is asked, with the model built without memory and with the renaming rules of its own loader.
Nothing is guessed from names: `h.0.attn.c_attn.weight` on disk is `transformer.h.0.attn.c_attn` in memory,
transposed, and a key that is fused with others in memory is no module's weight at all. Only plain decoders, whose
names are known to be the same on disk and in memory, are described without transformers, because importing it takes
seconds. Below `models`, transformers is needed only in this folder and in `evaluation`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dem_hub.checkpoints.key_names import Fused, match_keys
from dem_hub.checkpoints.model_building import build, check_counts
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.tensor_groups import ATTENTION, EMBEDDING, MLP, OTHER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ModuleKind = Literal["linear", "conv1d", "embedding", "convolution"]

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


# Models with Mamba layers. PEFT puts no LoRA on their `out_proj`: the kernels read its weight directly, past the
# module and its LoRA.
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")


@dataclass(frozen=True)
class Module:
    """A module whose weight is one tensor of the checkpoint, with its name in the model.

    A `linear` weight is (out, in). A `conv1d` (GPT-2's) and an `embedding` are the other way round for a LoRA. The weight
    of a `convolution` has two and more dimensions beside, those of its kernel.
    """

    name: str
    kind: ModuleKind

    @property
    def transposed(self) -> bool:
        """True if a LoRA's B @ A is the transpose of the checkpoint's tensor."""
        return self.kind in ("conv1d", "embedding")


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
    * `vocabulary` are checkpoint keys of tensors that have one row for each token: of the input and the output embedding.
    * `unused` are checkpoint keys that the model has no place for. transformers drops them when it loads and saves:
      layers for multi-token prediction, masks and frequencies that were buffers once, heads of another task.
    * `is_encoder_decoder` says whether a decoder reads what an encoder made of the input.
    """

    name: str
    modules: Mapping[str, Module]
    parameters: Mapping[str, str]
    buffers: frozenset[str]
    ties: Mapping[str, str]
    fused: Mapping[str, Fused] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    vocabulary: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()
    is_encoder_decoder: bool = False
    transposed: frozenset[str] = frozenset()

    @cached_property
    def tied(self) -> frozenset[str]:
        """The names of the modules whose weight is one tensor with that of another module."""
        names = {*self.ties, *self.ties.values()}
        return frozenset(name.removesuffix(".weight") for name in names if name.endswith(".weight"))

    def other_ends(self, parameter: str) -> frozenset[str]:
        """Return the names in memory of the other parameters that are one tensor with a parameter."""
        first = self.ties.get(parameter, parameter)
        ends = {first, *(name for name, other in self.ties.items() if other == first)}
        return frozenset(ends - {parameter})

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
        vocabulary=frozenset(name for name in names if name.rpartition(".")[0] in (_PLAIN_EMBEDDING, _PLAIN_OUTPUT)),
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
        vocabulary=_vocabulary(model, matched.names),
        unused=matched.unused,
        is_encoder_decoder=bool(getattr(model.config, "is_encoder_decoder", False)),
        transposed=_transposed(modules_by_name),
    )


def memory_names(model: "PreTrainedModel", keys: Iterable[str]) -> dict[str, str]:
    """Return the name in memory of each key on disk that is one tensor in both; fused and unknown keys are left out."""
    return dict(match_keys(model, keys).names)


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
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        return "convolution"
    return None


def _transposed(modules_by_name: Mapping[str, torch.nn.Module]) -> frozenset[str]:
    """Return the parameters of experts that transformers says it holds transposed."""
    names = set()
    for owner, module in modules_by_name.items():
        if getattr(module, "is_transposed", False):
            names |= {f"{owner}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return frozenset(names)


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


def _vocabulary(model: "PreTrainedModel", names: Mapping[str, str]) -> frozenset[str]:
    """Return the keys of the parameters of the input and the output embedding, under all names that these have."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # a model of images or sound alone
        return frozenset()
    owners = [module for module in (embeddings, model.get_output_embeddings()) if module is not None]
    ours = {id(parameter) for module in owners for parameter in module.parameters()}
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    mine = {name for name, parameter in parameters.items() if id(parameter) in ours}
    mine |= {name for tie in ties.items() for name in tie if mine & set(tie)}
    weight = getattr(embeddings, "weight", None)
    count = None if weight is None else weight.shape[0]
    return frozenset(
        key
        for key, name in names.items()
        if name in mine and name in parameters and parameters[name].shape[:1] == (count,)
    )


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
