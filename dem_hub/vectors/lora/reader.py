"""The tensors of a PEFT LoRA adapter, read as the deltas of a distribution vector.

The factors are used exactly as they are: the delta of a module is scale * B @ A, so no SVD is needed and nothing is
lost. Where a module of the adapter belongs in the checkpoint follows from the architecture of the base and is never
guessed from names. Tensors that PEFT keeps whole (`modules_to_save`, trained biases, resized embeddings) become
deltas too.

[`read_adapter`] reads headers only, except for whole tensors, which are compared with the base. Everything that
does not fit the base is listed in one error.
[`read_adapter_config`][dem_hub.vectors.lora.config.read_adapter_config] has refused before what is not a plain sum.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import LazyTensor, Rows, Transposed
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.whole import Full
from dem_hub.errors import AdapterError, refuse
from dem_hub.files.names import ADAPTER_WEIGHTS
from dem_hub.vectors.lora.contents import missing_modules, wrapper_remedy
from dem_hub.vectors.lora.experts import expert_factors, find_fused
from dem_hub.vectors.lora.patterns import Patterns
from dem_hub.vectors.lora.writer import PEFT_PREFIX

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")


def read_adapter(folder: Path, config: Mapping[str, Any], base: Base) -> dict[str, StoredDelta]:
    """Return the stored delta of each tensor that an adapter changes.

    Args:
        folder (`Path`): Folder of the adapter.
        config (`Mapping[str, Any]`): Its config, from [`read_adapter_config`].
        base ([`Base`]): The base that the adapter is put on. Its architecture is known.

    Returns:
        `dict[str, StoredDelta]`: The deltas, unread, by the base's checkpoint keys.

    Raises:
        `AdapterError`: If the base has no place for a tensor, or a tensor has the wrong shape. All of them are
            listed. Also if the adapter does not hold what its config says.
    """
    weights = Checkpoint(folder, index=ADAPTER_WEIGHTS)
    architecture = _trained_architecture(weights, base)
    reader = _AdapterReader(weights, config, base.checkpoint, architecture)
    deltas = reader.read()
    if reader.faults:
        refuse(
            AdapterError,
            f"The adapter '{folder}' does not fit the base '{base.folder}'.",
            reader.faults,
            wrapper_remedy(reader.names) or "Use the base it was trained on.",
        )
    missing = missing_modules(config, architecture, reader.names)
    if missing:
        refuse(
            AdapterError,
            f"The adapter '{folder}' does not hold what its config says.",
            missing,
            "Fetch it again, or save it again. If it is meant to be so, say it in adapter_config.json: target_modules "
            "and layers_to_transform name what there is.",
        )
    return deltas


def _trained_architecture(weights: Checkpoint, base: Base) -> Architecture:
    """Return the architecture whose names an adapter has: the base's, or that of its text model alone."""
    assert base.architecture is not None
    unknown = _count_unknown(weights, base.architecture)
    if unknown and base.text_architecture is not None and _count_unknown(weights, base.text_architecture) < unknown:
        return base.text_architecture
    return base.architecture


def _count_unknown(weights: Checkpoint, architecture: Architecture) -> int:
    """Return the number of LoRA's tensors of an adapter whose module an architecture does not have."""
    unknown = 0
    for name in weights:
        match = _FACTOR.fullmatch(name.removeprefix(PEFT_PREFIX))
        unknown += match is not None and match["module"] not in architecture.keys
    return unknown


def saves_one_side(module: str, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Check whether an adapter keeps its own copy (`modules_to_save`) of one of two tied embeddings.

    Args:
        module (`str`): The module's name in the model.
        architecture (`Architecture`): The architecture of the base.
        config (`Mapping[str, Any]`): The adapter's config.
    """
    if not _is_one_sided(module, architecture, config):
        return False
    return _ends_with_any(module, config.get("modules_to_save"))


def _is_one_sided(module: str, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Check whether a module is one of two tied embeddings, and PEFT changes that one alone."""
    return module in architecture.tied and not config.get("ensure_weight_tying")


def _ends_with_any(name: str, suffixes: list[str] | None) -> bool:
    """Check whether a dotted name ends with one of several dotted names, as PEFT matches `target_modules`."""
    return any(f".{name}".endswith(f".{suffix}") for suffix in suffixes or ())


@dataclass(frozen=True)
class _Target:
    """A tensor of the checkpoint that a LoRA changes, with B and A as its left and right factor.

    `name` is what the patterns of the config are matched with: the module, or the parameter where the LoRA is on a
    parameter.
    """

    key: str
    name: str
    left: LazyTensor
    right: LazyTensor


class _AdapterReader:
    """Reads the deltas of one adapter. What does not fit the base is collected in `faults`, one line each."""

    def __init__(
        self, weights: Checkpoint, config: Mapping[str, Any], base: Checkpoint, architecture: Architecture
    ) -> None:
        self.faults: list[str] = []
        self._weights = weights
        self._config = config
        self._base = base
        self._architecture = architecture
        self._alphas = Patterns(config.get("alpha_pattern") or {}, "alpha_pattern")

    def read(self) -> dict[str, StoredDelta]:
        """Return the deltas by the base's keys, without those that do not fit."""
        deltas: dict[str, StoredDelta] = {}
        factors: dict[str, dict[str, LazyTensor]] = {}  # "A" and "B" of each module
        for name in sorted(self._weights):
            if ".original_module." in name:
                # PEFT's copy of the base's module, beside the trained one.
                continue
            match = _FACTOR.fullmatch(name.removeprefix(PEFT_PREFIX))
            if match is None:
                deltas.update(self._whole_delta(name))
            elif self._has_target(match["module"]) or match["module"] in self._architecture.tied:
                factors.setdefault(match["module"], {})[match["factor"]] = self._weights.lazy(name)
            else:
                self._add_fault(f"'{name}': the base has no single weight for a module '{match['module']}'")
        for module, pair in sorted(factors.items()):
            if self._is_other_end(module, factors):
                continue
            for key, component in self._components(module, pair):
                whole = deltas.get(key, StoredDelta())
                deltas[key] = StoredDelta((component, *whole.components), whole.rows)
        return deltas

    @property
    def names(self) -> list[str]:
        """The names of all tensors of the adapter."""
        return list(self._weights)

    def _is_other_end(self, module: str, factors: Mapping[str, Mapping[str, LazyTensor]]) -> bool:
        """Check whether a module is the end of a tie that is not on disk, and note the fault if the ends differ.

        With `ensure_weight_tying` PEFT writes the factors of the output embedding as well. They are those of the
        input embedding, transposed, and the change of one tensor.
        """
        if module not in self._architecture.tied or module in self._architecture.keys:
            return False
        mine = factors[module]
        for other in self._architecture.tied - {module}:
            theirs = factors.get(other, {})
            if all(
                mine[a].get_shape() == theirs[b].get_shape()[::-1] and torch.equal(mine[a][...], theirs[b][...].T)
                for a, b in (("A", "B"), ("B", "A"))
                if a in mine and b in theirs
            ) and mine.keys() == theirs.keys() == {"A", "B"}:
                return True
        self.faults.append(
            f"'{module}' is one tensor with another embedding, and its LoRA is not that embedding's: the change of one "
            "end is none of the tensor. Train with ensure_weight_tying=True, or on a base whose embeddings are untied"
        )
        return True

    def _add_fault(self, fault: str) -> None:
        self.faults.append(f"{fault} ({self._architecture.name})")

    # Factors

    def _components(self, module: str, pair: Mapping[str, LazyTensor]) -> Iterator[tuple[str, Component]]:
        """Yield the key and the low-rank component of each tensor that the LoRA of a module changes."""
        if len(pair) == 1:
            self.faults.append(f"'{module}' has only lora_{next(iter(pair))}")
            return
        if _is_one_sided(module, self._architecture, self._config):
            self.faults.append(
                f"'{module}' is one tensor with another embedding, and PEFT changes one side alone: not a change "
                "of the tensor"
            )
            return
        a_shape = pair["A"].get_shape()
        b_shape = pair["B"].get_shape()
        if len(a_shape) != 2 or len(b_shape) != 2:
            self.faults.append(f"'{module}' has factors of shape {a_shape} and {b_shape}; only matrices are supported")
            return
        if 0 in a_shape + b_shape:
            self.faults.append(f"'{module}' has factors of shape {a_shape} and {b_shape}: a rank or a size is 0")
            return
        targets = self._targets(module, pair["A"], pair["B"])
        if not targets:
            self.faults.append(
                f"'{module}' has factors of shape {a_shape} and {b_shape}, which are for none of its experts' "
                "parameters, or for several (or for one in two ways: PEFT before 0.19 has A and B the other way "
                "round, so peft_version in adapter_config.json must say which wrote it)"
            )
        for target in targets:
            rows, rank = target.left.get_shape()
            right_rank, columns = target.right.get_shape()
            in_base = self._base[target.key].shape
            if in_base != (rows, columns) or rank != right_rank:
                self.faults.append(
                    f"'{target.key}' is {list(in_base)} in the base, and the LoRA's B @ A is {[rows, columns]} (A "
                    f"{a_shape}, B {b_shape})"
                )
                continue
            parts = {"left": target.left, "right": target.right}
            yield target.key, Component(LowRank(), parts, (rows, columns), self._scale(target.name, rank))

    def _scale(self, name: str, rank: int) -> float:
        """Return the factor that PEFT multiplies B @ A by: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        alpha = self._alphas.first(name, self._config.get("lora_alpha", 8))
        if self._config.get("use_rslora"):
            return alpha / math.sqrt(rank)
        return alpha / rank

    def _has_target(self, module: str) -> bool:
        """Check whether the base has something that A and B of a module can be for."""
        if module in self._architecture.keys:
            return True
        owner = _owner(module)
        if f"{owner}.weight" in self._architecture.expert_keys or self._is_targeted(f"{owner}.weight"):
            return True
        return any(name.rpartition(".")[0] == owner for name in self._architecture.fused)

    def _is_targeted(self, parameter: str) -> bool:
        """Check whether a parameter outside the linear layers, such as the router of experts, has a LoRA."""
        if parameter not in self._architecture.parameters:
            return False
        return _ends_with_any(parameter, self._config.get("target_parameters"))

    def _targets(self, module: str, a: LazyTensor, b: LazyTensor) -> list[_Target]:
        """Return the tensors of the checkpoint that A and B of a module change, or none if that is not clear."""
        architecture = self._architecture
        key = architecture.keys.get(module)
        if key is not None and architecture.modules[key].transposed:
            return [_Target(key, module, Transposed(a), Transposed(b))]
        if key is not None:
            return [_Target(key, module, b, a)]
        owner = _owner(module)
        weight = f"{owner}.weight"
        if weight in architecture.expert_keys:
            # A LoRA on one expert's own layer, as transformers 4 had them. Its name is that of the tensor on disk.
            return [_Target(weight, module, b, a)]
        if self._is_targeted(weight):
            return [_Target(architecture.parameters[weight], weight, b, a)]
        # PEFT does not write down which fused parameter of the experts the factors are for: their shapes must tell.
        version = self._config.get("peft_version")
        fused = find_fused(owner, architecture.fused, self._base, a.get_shape(), b.get_shape(), version)
        if fused is None:
            return []
        parts = architecture.fused[fused.name]
        experts = expert_factors(parts, self._base, a, b, is_swapped=fused.is_swapped)
        return [_Target(key, fused.name, left, right) for key, left, right in experts]

    # Tensors that PEFT keeps whole

    def _whole_delta(self, name: str) -> dict[str, StoredDelta]:
        """Return the delta of a saved module, a trained bias or an embedding beside its LoRA; empty if it changes
        nothing.
        """
        parameter = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        saved = self._weights[name]
        if ".modules_to_save." in name and not self._is_written_alike(name):
            self.faults.append(
                f"'{name}' and '{name.replace('.modules_to_save.', '.')}' are one tensor, and differ in the file"
            )
            return {}
        key = self._architecture.parameters.get(parameter)
        if key is None or key not in self._base:
            # PEFT writes the output embedding out beside the input embedding that it is tied to.
            is_tied_copy = self._architecture.tied and _has_copy(name, self._weights)
            if not is_tied_copy:
                self._add_fault(f"'{name}' {list(saved.shape)}: the base has no tensor for '{parameter}'")
            return {}
        in_base = self._base[key]
        is_grown = _has_more_rows(saved.shape, in_base.shape)
        if saved.shape != in_base.shape and not is_grown:
            self.faults.append(f"'{key}' is {list(saved.shape)} in the adapter and {list(in_base.shape)} in the base")
            return {}
        is_trained = is_grown or not torch.equal(self._weights.read(name).to(in_base.torch_dtype), self._base.read(key))
        if not is_trained:
            return {}
        module = parameter.rpartition(".")[0]
        if saves_one_side(module, self._architecture, self._config):
            self.faults.append(
                f"'{module}' is one tensor with another embedding, and PEFT changed one side alone (modules_to_save)"
            )
            return {}
        values = self._weights.lazy(name)
        new_rows = Rows(values, in_base.shape[0], saved.shape[0]) if is_grown else None
        return {key: StoredDelta((Component(Full(), {"full": values}, saved.shape),), new_rows)}

    def _is_written_alike(self, name: str) -> bool:
        """Check whether a saved module has the same values under its own name, if PEFT wrote it twice."""
        twice = name.replace(".modules_to_save.", ".")
        if twice not in self._weights:
            return True
        return torch.equal(self._weights.read(name), self._weights.read(twice))


def _owner(module: str) -> str:
    """Return the module's own name. PEFT nests the LoRAs of several parameters of a module in `base_layer`s."""
    return module.replace(".base_layer", "")


def _has_more_rows(shape: tuple[int, ...], base_shape: tuple[int, ...]) -> bool:
    """Check whether a tensor is the base's with rows added: a vocabulary that fine-tuning extended."""
    if not base_shape or len(shape) != len(base_shape):
        return False
    return shape[1:] == base_shape[1:] and shape[0] > base_shape[0]


def _has_copy(name: str, weights: Checkpoint) -> bool:
    """Check whether another tensor of the file has the same values."""
    info = weights[name]
    for other in weights:
        has_same_form = weights[other].shape == info.shape and weights[other].dtype == info.dtype
        if other != name and has_same_form and torch.equal(weights.read(other), weights.read(name)):
            return True
    return False
