"""The tensors of an adapter that PEFT keeps whole, beside the factors.

They are saved modules (`modules_to_save`), trained biases, and embeddings that fine-tuning resized. PEFT writes some of
them twice, and some that were not trained at all, so each is compared with the base.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.lazy import Rows
from dem_hub.checkpoints.reader import Checkpoint, Tensors
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.codecs.whole import Full
from dem_hub.vectors.lora.contents import DAMAGED, OTHER_BASE, UNTIE, Fault
from dem_hub.vectors.lora.names import ends_with_any, whole_parameter


def saves_one_end(module: str, architecture: Architecture, config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Check whether an adapter keeps its own copy (`modules_to_save`) of one of two tied embeddings alone.

    PEFT ties the copies if `ensure_weight_tying` asks for it, but not in every model. It writes all of them if it did.

    Args:
        module (`str`): The module's name in the model.
        architecture ([`Architecture`]): The architecture of the base.
        config (`Mapping[str, Any]`): The adapter's config.
        names (`Iterable[str]`): The names of the adapter's tensors.
    """
    if module not in architecture.tied or not ends_with_any(module, config.get("modules_to_save")):
        return False
    saved = {whole_parameter(name) for name in names}
    return not config.get("ensure_weight_tying") or not architecture.other_ends(f"{module}.weight") <= saved


@dataclass(frozen=True)
class WholeTensors:
    """The whole tensors of one adapter. `names` are all of its tensors, by their names in the file, as those of the
    model of today. Of weights that are still on the Hub, the adapter's or the base's, shapes and dtypes alone are
    compared; `base_has_values` is false while the base's are.
    """

    weights: Checkpoint
    config: Mapping[str, Any]
    base: Tensors
    architecture: Architecture
    names: Mapping[str, str]
    base_has_values: bool

    def delta(self, name: str) -> dict[str, StoredDelta] | Fault:
        """Return the delta of a saved module, a trained bias or an embedding beside its LoRA, by the base's key.

        It is empty if the tensor changes nothing, and a fault if it does not fit the base.
        """
        parameter = whole_parameter(self.names[name])
        saved = self.weights[name]
        if ".modules_to_save." in name and not self._is_written_alike(name):
            twice = name.replace(".modules_to_save.", ".")
            return Fault(f"'{name}' and '{twice}' are one tensor, and differ in the file", DAMAGED)
        key = self._key(parameter)
        is_other_end = key is None
        if key is None:
            # PEFT writes the output embedding out beside the input embedding that it is tied to.
            if self.architecture.tied and self._has_copy(name):
                return {}
            key = next(filter(None, map(self._key, self.architecture.other_ends(parameter))), None)
        if key is None:
            text = f"'{name}' {list(saved.shape)}: the base has no tensor for '{parameter}' ({self.architecture.name})"
            return Fault(text, OTHER_BASE)
        in_base = self.base[key]
        is_grown = _has_more_rows(saved.shape, in_base.shape)
        if saved.shape != in_base.shape and not is_grown:
            text = f"'{key}' is {list(saved.shape)} in the adapter and {list(in_base.shape)} in the base"
            return Fault(text, OTHER_BASE)
        if self.base_has_values and self.weights.has_values:
            if not is_grown and self._is_unchanged(name, key):
                return {}
            module = parameter.rpartition(".")[0]
            if is_other_end or not self._is_saved_at_all_ends(name, module):
                text = (
                    f"'{module}' is one tensor with another embedding, and PEFT changed one end alone (modules_to_save)"
                )
                return Fault(text, UNTIE)
        values = self.weights.lazy(name)
        new_rows = Rows(values, in_base.shape[0], saved.shape[0]) if is_grown else None
        return {key: StoredDelta((Component(Full(), {"full": values}, saved.shape),), new_rows)}

    def _is_unchanged(self, name: str, key: str) -> bool:
        """Check whether a tensor has the base's values, in the base's dtype."""
        in_base = self.base.read(key)
        return torch.equal(self.weights.read(name).to(in_base.dtype), in_base)

    def _key(self, parameter: str) -> str | None:
        """Return the key of a parameter in the checkpoint; `None` if the checkpoint has no such tensor."""
        key = self.architecture.parameters.get(parameter)
        return key if key in self.base else None

    def _is_saved_at_all_ends(self, name: str, module: str) -> bool:
        """Check that a saved module is the same at all ends of a tie; `True` if it has no other end."""
        if saves_one_end(module, self.architecture, self.config, self.names.values()):
            return False
        if not ends_with_any(module, self.config.get("modules_to_save")):
            # PEFT adds both embeddings to the file of an adapter that has more tokens than its base.
            return True
        ends = self.architecture.other_ends(whole_parameter(self.names[name]))
        copies = [other for other, bare in self.names.items() if whole_parameter(bare) in ends]
        return all(self._are_equal(copy, name) for copy in copies)

    def _is_written_alike(self, name: str) -> bool:
        """Check whether a saved module has the same values under its own name, if PEFT wrote it twice."""
        twice = name.replace(".modules_to_save.", ".")
        return twice not in self.weights or self._are_equal(name, twice)

    def _has_copy(self, name: str) -> bool:
        """Check whether another tensor of the file has the same values."""
        return any(other != name and self._are_equal(other, name) for other in self.weights)

    def _are_equal(self, name: str, other: str) -> bool:
        """Check whether two tensors of the file are the same; while they are on the Hub, whether they may be."""
        first = self.weights[name]
        second = self.weights[other]
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            return False
        return not self.weights.has_values or torch.equal(self.weights.read(name), self.weights.read(other))


def _has_more_rows(shape: tuple[int, ...], base_shape: tuple[int, ...]) -> bool:
    """Check whether a tensor is the base's with rows added: a vocabulary that fine-tuning extended."""
    if not base_shape or len(shape) != len(base_shape):
        return False
    return shape[1:] == base_shape[1:] and shape[0] > base_shape[0]
