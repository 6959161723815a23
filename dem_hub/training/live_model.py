"""Read the model in training like a checkpoint: the tensors that `save_pretrained` would write, one at a time,
without writing any.

Keys are those of the base's checkpoint. Tensors that transformers fuses in memory (the experts of a layer) are
split by transformers' own rules. Changes of a PEFT method are merged into a copy of one weight while it is read, so
the model in training is not touched.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import CODES
from dem_hub.checkpoints.reader import TensorInfo
from dem_hub.errors import AdapterError
from dem_hub.numerics.slices import Index
from dem_hub.training.gathering import Gathering, shape_of
from dem_hub.vectors.lora.writer import PEFT_PREFIX

# Tensors, and rows of each, that are compared with the base before the first step. A model that is not the base
# differs nearly everywhere, so a few are enough. Chosen by hand, not measured.
_SAMPLED = 16

# Fused tensors whose parts are kept in memory. The experts of a layer are two fused tensors, and their parts
# alternate in the order of keys.
_RECENT = 2


@dataclass(frozen=True)
class _Slot:
    """The place in memory of a tensor of the checkpoint: under `name`, either alone or as one part of a fused tensor
    (`is_part`).
    """

    name: str
    is_part: bool
    info: TensorInfo


class LiveModel:
    """The model in training, with the interface of a checkpoint ([`TensorSource`]).

    Use it on the main process, within [`Gathering.leading`].

    Args:
        gathering ([`Gathering`]): The model.
        base ([`Base`]): The base, whose keys are used.
    """

    path = Path("the model in training")

    def __init__(self, gathering: Gathering, base: Base) -> None:
        """Find the key of each tensor on disk. Nothing is read."""
        self._gathering = gathering
        self._model = gathering.model
        self._layers: dict[str, Any] = {}  # the PEFT layer around each weight, by the weight's name in memory
        self._recent: dict[str, Mapping[str, Tensor]] = {}
        self._slots = self._find_slots(base)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._slots[name].info

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def read(self, name: str, index: Index | None = None) -> Tensor:
        """Return a tensor, or a slice of it, on the model's device. Do not write into it.

        Args:
            name (`str`): The tensor's key.
            index (`Index`, *optional*): The slice.
        """
        slot = self._slots[name]
        tensor = self._parts(slot.name)[name] if slot.is_part else self._read(slot.name)
        if not index:
            return tensor
        return tensor[index]

    def is_copy(self, name: str, other: str) -> bool:  # noqa: ARG002
        """Return `False`: a tensor that has several names in memory has one key here."""
        return False

    def try_merging(self) -> None:
        """Merge one weight of each kind of PEFT layer, to see that it works.

        Raises:
            `AdapterError`: If PEFT cannot merge such a layer.
        """
        kinds = {type(layer): name for name, layer in self._layers.items()}
        for kind, name in kinds.items():
            try:
                self._read(name)
            except (NotImplementedError, AttributeError, ValueError, RuntimeError) as error:
                raise AdapterError(
                    f"PEFT cannot merge '{name}' ({kind.__name__}: {error}), so that its change of the weight is "
                    "not known. Train a LoRA."
                ) from error

    def differing(self, base: Base) -> list[str]:
        """Compare a sample of tensors with the base: the first rows of a few tensors spread over the model.

        Args:
            base ([`Base`]): The base.

        Returns:
            `list[str]`: Keys of the tensors that differ, when the base's are cast to the model's dtype.
        """
        comparable = []
        for name, info in sorted(base.checkpoint.items()):
            slot = self._slots.get(name)
            has_same_shape = slot is not None and slot.info.shape == info.shape
            if slot is not None and has_same_shape and info.shape and slot.name not in self._layers:
                comparable.append(name)
        first_rows = (slice(0, _SAMPLED),)
        different = []
        for name in comparable[:: max(1, len(comparable) // _SAMPLED)]:
            tensor = self.read(name, first_rows)
            if not torch.equal(tensor, base.checkpoint.read(name, first_rows).to(tensor)):
                different.append(name)
        return different

    def _tensor(self, name: str) -> Tensor:
        return self._gathering.tensors[name]

    def _read(self, name: str) -> Tensor:
        """Return a tensor by its name in memory, with PEFT's change of it."""
        layer = self._layers.get(name)
        if layer is None:
            return self._gathering.read(name)
        return merged_weight(layer, name.rpartition(".")[2])

    def _parts(self, name: str) -> Mapping[str, Tensor]:
        """Return the parts of a fused tensor by their keys on disk, and keep those of the last few."""
        if name not in self._recent:
            if len(self._recent) == _RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[name] = _on_disk(self._gathering.core, self._plain(name), self._read(name))
        return self._recent[name]

    def _find_slots(self, base: Base) -> dict[str, _Slot]:
        """Return the slot of each key on disk."""
        if base.architecture is not None:
            keys: Mapping[str, str] = base.architecture.parameters
        else:
            keys = {key: key for key in base.checkpoint}
        ignored = set(getattr(self._gathering.core, "_keys_to_ignore_on_save", None) or ())
        slots: dict[str, _Slot] = {}
        for names in self._names_by_tensor():
            self._check_changed_alike(names)
            # Of several names of one tensor, the one that the base has on disk.
            name = next((name for name in names if keys.get(self._plain(name)) in base.checkpoint), names[0])
            key = keys.get(self._plain(name))
            if key is not None:
                slots[key] = _Slot(name, is_part=False, info=self._info(name, shape_of(self._tensor(name))))
            elif self._plain(name) not in ignored:
                slots |= self._split_slots(name)
        return slots

    def _names_by_tensor(self) -> list[list[str]]:
        """Return the names in memory of each tensor. A tied or shared tensor has several."""
        names: dict[int, list[str]] = {}
        for name in self._names():
            names.setdefault(id(self._tensor(name)), []).append(name)
        return list(names.values())

    def _check_changed_alike(self, names: Sequence[str]) -> None:
        """Refuse one tensor of the base that PEFT makes into several: a tied embedding changed on one side, a layer
        used twice.
        """
        first = names[0]
        for other in names[1:]:
            if _trained_storage(self._layers.get(other)) != _trained_storage(self._layers.get(first)):
                modules = [self._plain(name).rpartition(".")[0] for name in (first, other)]
                raise AdapterError(
                    f"'{modules[0]}' and '{modules[1]}' are one tensor of the base, and PEFT changes them "
                    "differently: there is no one "
                    "difference to the base. Train neither of them, or tied embeddings with ensure_weight_tying=True."
                )

    def _split_slots(self, name: str) -> dict[str, _Slot]:
        """Return the slots of a tensor that the base does not have under this name: it is fused in memory, or new."""
        outline = torch.empty(shape_of(self._tensor(name)), dtype=self._tensor(name).dtype, device="meta")
        slots = {}
        for key, part in _on_disk(self._gathering.core, self._plain(name), outline).items():
            slots[key] = _Slot(name, is_part=True, info=self._info(name, tuple(part.shape)))
        return slots

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        # A weight with a PEFT layer is merged in float32, whatever its own dtype is.
        dtype = torch.float32 if name in self._layers else self._tensor(name).dtype
        return TensorInfo(CODES[dtype], shape, self.path, 0, dtype.itemsize * math.prod(shape))

    def _names(self) -> Iterator[str]:
        """Yield the names in memory of the weights that the merged model has, and note the PEFT layer around each.

        PEFT's own tensors (the factors of a LoRA) are left out; so is the base's copy of a module that PEFT saves.
        """
        if not hasattr(self._model, "peft_config"):
            yield from self._gathering.tensors
            return
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper

        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        layers: dict[str, Any] = {
            name: module for name, module in self._model.named_modules() if isinstance(module, kinds)
        }
        for name in self._gathering.tensors:
            # Layers can be nested, and `named_modules` has the outer one first: the last match is the innermost.
            owner = next((prefix for prefix in reversed(layers) if name.startswith(f"{prefix}.")), None)
            if owner is None:
                # Outside the wrapped model lie tensors of PEFT's own, such as the vector bank that all layers of a
                # VB-LoRA share.
                if name.startswith(PEFT_PREFIX):
                    yield name
                continue
            attribute = name.removeprefix(f"{owner}.")
            if attribute.startswith("base_layer."):
                self._layers[name] = layers[owner]
                yield name
            elif attribute.startswith(f"modules_to_save.{self._model.active_adapter}."):
                yield name

    def _plain(self, name: str) -> str:
        """Return the name that a tensor has in the transformers model without PEFT."""
        if not hasattr(self._model, "peft_config"):
            return name
        name = name.removeprefix(PEFT_PREFIX).replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
        return name.replace(f".modules_to_save.{self._model.active_adapter}.", ".")


def _trained_storage(layer: Any) -> set[int] | None:
    """Return the addresses of the memory that a PEFT layer trains, which tied layers share; `None` if there is no
    layer.
    """
    if layer is None:
        return None
    layer = getattr(layer, "tied_adapter", None) or layer
    return {parameter.untyped_storage().data_ptr() for parameter in layer.parameters() if parameter.requires_grad}


def merged_weight(layer: Any, attribute: str) -> Tensor:
    """Return a parameter of a PEFT layer's base layer with the active adapters merged in.

    The layer is left as it was, bit for bit: the original parameters are put back, since unmerging is inexact.

    Args:
        layer (`Any`): A layer of PEFT.
        attribute (`str`): Name of the parameter in its base layer.

    Returns:
        `torch.Tensor`: The merged parameter in float32, a copy.
    """
    parameters = list(layer.get_base_layer().parameters())
    originals = [parameter.data for parameter in parameters]
    with torch.no_grad():
        try:
            for parameter in parameters:
                parameter.data = parameter.data.to(torch.float32, copy=True)
            layer.merge(safe_merge=False, adapter_names=layer.active_adapters)
            merged: Tensor = layer.get_base_layer().get_parameter(attribute)
            return merged.detach().to(torch.float32, copy=True)
        finally:
            if layer.merged:
                # Some methods warn that unmerging is inexact; the originals below make that harmless.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    layer.unmerge()
                # A method that cannot unmerge (OSF) leaves the layer marked as merged, and its forward pass would
                # skip the adapter.
                layer.merged_adapters.clear()
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.data = original


def _on_disk(model: Any, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """Return what transformers would save for one tensor in memory, by its keys on disk."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, {name: tensor})  # type: ignore[no-any-return]
