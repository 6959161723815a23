"""Where each tensor of a checkpoint lies in a loaded model, written down as the model is loaded.

A name in memory says little afterwards: PEFT and `torch.compile` put modules into others, `key_mapping` renames, heads
are resized or replaced. So the module object is remembered for each tensor, which stays the same under every wrapper.
What is not found again, or is not what it was, is refused before anything is changed.
"""

import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.errors import CoefficientError, refuse
from dem_hub.merging.merge import Merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REMEDY = "Load it anew with the new coefficients: DEMModel.from_pretrained(base, vectors={...}, ...)."

# How PEFT may initialize a LoRA without taking anything away from the weights below it. The others (PiSSA, OLoRA,
# LoftQ, CorDA and so on) leave a residual there.
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "eva")


class Slot:
    """A parameter or buffer of one module. The module is not kept alive: a model would hold itself.

    A copy of the model needs slots in the copy. So whoever copies or pickles a slot copies the module with it.
    """

    def __init__(self, name: str, owner: torch.nn.Module, attribute: str) -> None:
        """Remember a tensor by its name, its module and its name in the module."""
        self.name = name
        self.attribute = attribute
        self.owner: Callable[[], torch.nn.Module | None] = weakref.ref(owner)

    def __getstate__(self) -> tuple[str, str, torch.nn.Module | None]:
        return self.name, self.attribute, self.owner()

    def __setstate__(self, state: tuple[str, str, torch.nn.Module | None]) -> None:
        self.name, self.attribute, owner = state
        self.owner = _nothing if owner is None else weakref.ref(owner)


def _nothing() -> None:
    """Stand for a reference to a module that is gone."""


@dataclass(frozen=True)
class Places:
    """The places in a model of the tensors of its checkpoint.

    * `direct` has the name in memory of each key on disk that is one tensor in both.
    * `fused` has, for each tensor in memory that is made of several on disk, their keys in the loader's order, each
      with the pattern of the converter that it matches.
    * `results` has the names of all tensors in memory that such a converter makes.
    * `unknown` are keys that the loader read and that are in neither.
    """

    direct: Mapping[str, str]
    fused: Mapping[str, tuple[tuple[str, str], ...]]
    results: Mapping[str, tuple[str, ...]]
    unknown: frozenset[str]
    slots: Mapping[str, tuple[Slot, ...]]
    input_names: frozenset[str]
    output_names: frozenset[str]

    @classmethod
    def of(
        cls,
        model: "PreTrainedModel",
        keys: Iterable[str],
        read: Collection[str],
        *,
        key_mapping: Mapping[str, str] | None,
        left_out: Collection[str],
    ) -> "Places":
        """Write down where a model that was loaded just now has its tensors.

        Args:
            model (`PreTrainedModel`): The model.
            keys (`Iterable[str]`): The names on disk.
            read (`Collection[str]`): Those of them that the loader asked for.
            key_mapping (`Mapping[str, str]`, *optional*): The renaming that the caller gave to the loader.
            left_out (`Collection[str]`): Names in memory whose tensors on disk had another size, and which the loader
                initialized.
        """
        names, fused, results = _names_in_memory(model, keys, key_mapping)
        known = {*names, *(key for parts in fused.values() for key, _ in parts)}
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        owners: dict[int, list[str]] = {}
        slots: dict[str, Slot] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            tensors = {**module._parameters, **module._buffers}
            for attribute, tensor in tensors.items():
                if tensor is not None:
                    name = f"{path}.{attribute}" if path else attribute
                    slots[name] = Slot(name, module, attribute)
                    owners.setdefault(id(tensor), []).append(name)
        twins = {name: tuple(slots[other] for other in others) for others in owners.values() for name in others}
        first_of = {name: others for others in owners.values() for name in others}
        direct = {}
        for key, name in names.items():
            # Of two tensors on disk that are one in memory, the loader kept the one that is not the tie's target.
            others = [other for other in names.values() if other in first_of.get(name, ()) and other not in tied]
            if name not in left_out and (name not in tied or not others):
                direct[key] = name
        return cls(
            direct=direct,
            fused={name: parts for name, parts in fused.items() if name not in left_out},
            results=results,
            unknown=frozenset(read) - known,
            slots=twins,
            input_names=_names_of(model, _input_embeddings(model)),
            output_names=_names_of(model, model.get_output_embeddings()),
        )

    def find(self, model: "PreTrainedModel", merge: Merge, keys: Collection[str]) -> dict[str, tuple[Tensor, ...]]:
        """Return the tensors of a model that are to be changed, by their names when it was loaded.

        Args:
            model (`PreTrainedModel`): The model, as it is now.
            merge ([`Merge`]): What is to be written.
            keys (`Collection[str]`): The names on disk of the tensors that change.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If one of them is not in the model any more, is not a plain tensor of
                the merged shape, or is covered by a copy. All of them are listed.
        """
        _check_adapters(model)
        search = _Search(self, model, {id(module) for module in model.modules()}, _covered(model))
        names: dict[str, str] = {name: key for key, name in self.direct.items() if key in keys}
        for name, parts in self.fused.items():
            touched = [key for key, _ in parts if key in keys]
            if touched:
                names |= dict.fromkeys(self.results[name], touched[0])
        faults = [f"'{key}' was read, and what it became is not known" for key in sorted(self.unknown & set(keys))]
        found = {}
        for name, key in names.items():
            shape = None  # the converter decides
            if self.direct.get(key) == name:
                shape = merge.shape(key)
            try:
                found[name] = search.tensors(name, shape, is_float=merge.base[key].torch_dtype.is_floating_point)
            except _NotFound as fault:
                faults.append(str(fault))
        if faults:
            refuse(CoefficientError, "This model cannot be merged again in place; nothing was changed.", faults, REMEDY)
        return found


class _NotFound(Exception):
    """A tensor that cannot be changed in place, with the reason."""


@dataclass(frozen=True)
class _Search:
    """The search for tensors in a model as it is now."""

    places: Places
    model: "PreTrainedModel"
    modules: Collection[int]
    covered: Collection[int]

    def tensors(self, name: str, shape: tuple[int, ...] | None, *, is_float: bool) -> tuple[Tensor, ...]:
        """Return the different tensors that the model has for one name: several, if a tie was undone."""
        tensors: dict[int, Tensor] = {}
        for slot in self.places.slots[name]:
            tensor = self._tensor(name, slot, shape)
            self._check(name, tensor, shape, is_float=is_float)
            tensors.setdefault(id(tensor), tensor)
        return tuple(tensors.values())

    def _tensor(self, name: str, slot: Slot, shape: tuple[int, ...] | None) -> Tensor:
        owner = slot.owner()
        if owner is None or id(owner) not in self.modules:
            resized = self._resized_head(slot, shape)
            if resized is not None:
                return resized
            raise _NotFound(f"'{name}': its module was replaced or quantized since it was loaded")
        if id(owner) in self.covered:
            raise _NotFound(f"'{name}': PEFT trains a copy of it in its place (modules_to_save, or new tokens)")
        tensor: Tensor | None = owner._parameters.get(slot.attribute, owner._buffers.get(slot.attribute))
        if tensor is None:
            raise _NotFound(f"'{name}': it is computed from other tensors now (a parametrization, or pruning)")
        return tensor

    def _resized_head(self, slot: Slot, shape: tuple[int, ...] | None) -> Tensor | None:
        """Return the output embedding that transformers put into the place of the old one to resize the vocabulary."""
        output = self.model.get_output_embeddings()
        if slot.name not in self.places.output_names or shape is None or id(output) not in self.modules:
            return None
        tensor: Tensor | None = output._parameters.get(slot.attribute)
        if tensor is None or tensor.shape[:1] == shape[:1]:
            return None
        return tensor

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...] | None, *, is_float: bool) -> None:
        if tensor.device.type == "meta":
            raise _NotFound(f"'{name}' is offloaded, and is not in memory to be merged again")
        if type(tensor.data) is not Tensor:
            raise _NotFound(f"'{name}' is sharded or quantized ({type(tensor.data).__name__})")
        if tensor.is_floating_point() != is_float:
            raise _NotFound(f"'{name}' is {str(tensor.dtype).removeprefix('torch.')} now")
        if shape is None or tuple(tensor.shape) == shape:
            return
        is_vocabulary = name in self.places.input_names | self.places.output_names
        if not is_vocabulary or tensor.shape[1:] != shape[1:]:
            raise _NotFound(f"'{name}' is {list(tensor.shape)} in the model and {list(shape)} in the recipe")


def _names_in_memory(
    model: "PreTrainedModel", keys: Iterable[str], key_mapping: Mapping[str, str] | None
) -> tuple[dict[str, str], dict[str, tuple[tuple[str, str], ...]], dict[str, tuple[str, ...]]]:
    """Return `direct`, `fused` and `results` of [`Places`], by the rules of transformers' loader."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model, dict(key_mapping) if key_mapping else None)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    names: dict[str, str] = {}
    fused: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(keys, key=dot_natural_key):  # the loader's order, which decides the order of experts
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            # The rules rename this key to nothing that the model has, but the key itself is a name in memory.
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state and pattern is None:
            names[key] = name
        elif name in state and pattern is not None:
            fused.setdefault(name, []).append((key, pattern))
    targets = {pattern: entry.target_patterns for entry in converters for pattern in entry.source_patterns}
    results = {}
    for name, parts in fused.items():
        first, *_ = patterns = targets[parts[0][1]]
        results[name] = tuple(
            other for other in (name.replace(first, pattern) for pattern in patterns) if other in state
        )
    return names, {name: tuple(parts) for name, parts in fused.items()}, results


def _input_embeddings(model: "PreTrainedModel") -> torch.nn.Module | None:
    """Return the input embedding; `None` for a model that does not have one, or does not tell."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _names_of(model: "PreTrainedModel", module: torch.nn.Module | None) -> frozenset[str]:
    """Return the names in memory of a module's own tensors."""
    if module is None:
        return frozenset()
    paths = [path for path, other in model.named_modules(remove_duplicate=False) if other is module]
    attributes = [*module._parameters, *module._buffers]
    return frozenset(f"{path}.{attribute}" if path else attribute for path in paths for attribute in attributes)


def _covered(model: "PreTrainedModel") -> set[int]:
    """Return the modules that PEFT keeps aside, while the model computes with a copy that is trained."""
    if "peft" not in sys.modules:
        return set()
    from peft.utils.other import AuxiliaryTrainingWrapper

    covered: set[int] = set()
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            original = getattr(module, "original_module", None)
            if isinstance(original, torch.nn.Module):
                covered |= {id(inner) for inner in original.modules()}
    return covered


def _check_adapters(model: "PreTrainedModel") -> None:
    """Refuse a model in which PEFT has changed the weights below its adapters."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise CoefficientError(
                f"The adapters {list(module.merged_adapters)} are merged into '{name}'; new coefficients would "
                "overwrite them. Unmerge them first: unmerge_adapter(). Nothing was changed."
            )
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        initialization = getattr(config, "init_lora_weights", True)
        if not any(initialization is plain or initialization == plain for plain in _PLAIN_INITIALIZATIONS):
            raise CoefficientError(
                f"The adapter '{name}' was initialized with init_lora_weights={initialization!r}, which took a part "
                "of the weights away; new coefficients would bring it back. Change the coefficients before the "
                "adapter is added. Nothing was changed."
            )
