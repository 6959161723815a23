"""The model in training as a checkpoint: what `save_pretrained` would write, read tensor by tensor and never written.

Keys are the base's own on disk. What transformers fuses in memory (the experts of a layer) is taken apart again by its own rules, and
what a PEFT method changes is merged for the moment of reading, into a copy of that one weight.
"""

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
from dem_hub.numerics.slices import Index, count_elements
from dem_hub.training.gathering import Gathering, shape_of
from dem_hub.vectors.lora.writer import PEFT_PREFIX

_LOOKED_AT = 16  # tensors, and rows of each
_RECENT = 2  # fused tensors of which the parts are kept: a layer's experts have two, and their parts alternate


@dataclass(frozen=True)
class _Slot:
    """Where a tensor of the checkpoint is: under a name in memory, alone or as one part of what is fused there."""

    name: str
    is_part: bool
    info: TensorInfo


class LiveModel:
    """Answers like a checkpoint ([`TensorSource`]); on the main process, within `Gathering.leading`."""

    path = Path("the model in training")

    def __init__(self, gathering: Gathering, base: Base) -> None:
        """Find out what each tensor is called on disk; nothing is read."""
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
        """The tensor, or a slice of it, where the model is; not to be written into."""
        slot = self._slots[name]
        tensor = self._parts(slot.name)[name] if slot.is_part else self._read(slot.name)
        return tensor[index] if index else tensor

    def is_copy(self, name: str, other: str) -> bool:  # noqa: ARG002
        """Never: a tensor with several names in memory is here once."""
        return False

    def try_merging(self) -> None:
        """Merge one weight of each kind of PEFT layer.

        Raises:
            `AdapterError`: PEFT cannot merge such a layer.
        """
        kinds = {type(layer): name for name, layer in self._layers.items()}
        for kind, name in kinds.items():
            try:
                self._read(name)
            except (NotImplementedError, AttributeError, ValueError, RuntimeError) as error:
                raise AdapterError(
                    f"PEFT cannot merge '{name}' ({kind.__name__}: {error}), so that its change of the weight is not known. Train a LoRA."
                ) from error

    def differing(self, base: Base) -> list[str]:
        """Which tensors are not the base's in their dtype, of a few spread over the model, by the beginning of each."""
        known = {
            name: info
            for name, info in base.checkpoint.items()
            if name in self._slots and self[name].shape == info.shape
        }
        names = sorted(
            name for name, info in known.items() if info.shape and self._slots[name].name not in self._layers
        )
        start = (slice(0, _LOOKED_AT),)
        found = []
        for name in names[:: max(1, len(names) // _LOOKED_AT)]:
            tensor = self.read(name, start)
            if not torch.equal(tensor, base.checkpoint.read(name, start).to(tensor)):
                found.append(name)
        return found

    def _tensor(self, name: str) -> Tensor:
        return self._gathering.tensors[name]

    def _read(self, name: str) -> Tensor:
        layer = self._layers.get(name)
        return merged_weight(layer, name.rpartition(".")[2]) if layer is not None else self._gathering.read(name)

    def _parts(self, name: str) -> Mapping[str, Tensor]:
        """What one tensor in memory is on disk."""
        if name not in self._recent:
            if len(self._recent) == _RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[name] = _on_disk(self._core, self._plain(name), self._read(name))
        return self._recent[name]

    def _find_slots(self, base: Base) -> dict[str, _Slot]:
        known = base.architecture.parameters if base.architecture is not None else {key: key for key in base.checkpoint}
        ignored = set(getattr(self._core, "_keys_to_ignore_on_save", None) or ())
        names: dict[int, list[str]] = {}
        for name in self._names():
            names.setdefault(id(self._tensor(name)), []).append(name)
        slots: dict[str, _Slot] = {}
        for same in names.values():
            if len(same) > 1:
                self._refuse_unlike(same)
            name = next((name for name in same if known.get(self._plain(name)) in base.checkpoint), same[0])
            key = known.get(self._plain(name))
            if key is not None:
                slots[key] = _Slot(name, is_part=False, info=self._info(name, shape_of(self._tensor(name))))
            elif self._plain(name) not in ignored:
                slots |= self._unknown(name)
        return slots

    def _refuse_unlike(self, same: Sequence[str]) -> None:
        """Refuse one tensor of the base that PEFT makes into several: a tied embedding changed on one side, a layer used twice."""
        changes = {name: _trained(self._layers.get(name)) for name in same}
        other = next((name for name in same if changes[name] != changes[same[0]]), None)
        if other is not None:
            first, second = (self._plain(name).rpartition(".")[0] for name in (same[0], other))
            raise AdapterError(
                f"'{first}' and '{second}' are one tensor of the base, and PEFT changes them differently: there is no one difference to "
                "the base. Train neither of them, or tied embeddings with ensure_weight_tying=True."
            )

    def _unknown(self, name: str) -> dict[str, _Slot]:
        """The slots of a tensor that the base does not have as it is: fused in memory, or new."""
        outline = torch.empty(shape_of(self._tensor(name)), dtype=self._tensor(name).dtype, device="meta")
        parts = _on_disk(self._core, self._plain(name), outline)
        return {key: _Slot(name, is_part=True, info=self._info(name, tuple(part.shape))) for key, part in parts.items()}

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        dtype = torch.float32 if name in self._layers else self._tensor(name).dtype
        return TensorInfo(CODES[dtype], shape, self.path, 0, dtype.itemsize * count_elements(shape))

    @property
    def _core(self) -> Any:
        """The transformers model, without PEFT's around it."""
        return self._model.get_base_model() if hasattr(self._model, "peft_config") else self._model

    def _names(self) -> Iterator[str]:
        """The names in memory of the weights that make up the model, as PEFT has merged it."""
        if not hasattr(self._model, "peft_config"):
            yield from self._gathering.tensors
            return
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper

        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        own: dict[str, Any] = {
            name: module for name, module in self._model.named_modules() if isinstance(module, kinds)
        }
        for name in self._gathering.tensors:
            owner = next((prefix for prefix in reversed(own) if name.startswith(prefix + ".")), None)  # the innermost
            if owner is None:
                if name.startswith(PEFT_PREFIX):  # and not a bank of vectors that all layers draw from
                    yield name
                continue
            rest = name.removeprefix(owner + ".")
            if rest.startswith("base_layer."):
                self._layers[name] = own[owner]
                yield name
            elif rest.startswith(f"modules_to_save.{self._model.active_adapter}."):
                yield name

    def _plain(self, name: str) -> str:
        """A name as the transformers model has it without PEFT."""
        if not hasattr(self._model, "peft_config"):
            return name
        name = name.removeprefix(PEFT_PREFIX).replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
        return name.replace(f".modules_to_save.{self._model.active_adapter}.", ".")


def _trained(layer: Any) -> set[int] | None:
    """The memory that a PEFT layer trains, which tied layers share; `None` where there is no such layer."""
    if layer is None:
        return None
    layer = getattr(layer, "tied_adapter", None) or layer
    return {parameter.untyped_storage().data_ptr() for parameter in layer.parameters() if parameter.requires_grad}


def merged_weight(layer: Any, attribute: str) -> Tensor:
    """A parameter of a PEFT layer's base layer with the active adapters merged in, in float32; the layer is left as it was, bit for bit."""
    parameters = list(layer.get_base_layer().parameters())
    originals = [parameter.data for parameter in parameters]
    with torch.no_grad():
        try:
            for parameter in parameters:
                parameter.data = parameter.data.to(torch.float32, copy=True)
            layer.merge(safe_merge=False, adapter_names=layer.active_adapters)
            return layer.get_base_layer().get_parameter(attribute).detach().to(torch.float32, copy=True)  # type: ignore[no-any-return]
        finally:
            if layer.merged:
                with warnings.catch_warnings():  # that it is inexact for some, which is why the originals are put back
                    warnings.simplefilter("ignore")
                    layer.unmerge()
                layer.merged_adapters.clear()  # of a kind that cannot unmerge (OSF), and would be skipped from now on
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.data = original


def _on_disk(model: Any, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """What transformers would save of one tensor in memory, by its names on disk."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, {name: tensor})  # type: ignore[no-any-return]
