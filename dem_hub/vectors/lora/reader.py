"""The tensors of a PEFT LoRA adapter, read as the deltas of a distribution vector.

The factors are used exactly as they are: the delta of a module is scale * B @ A, so no SVD is needed and nothing is
lost. Where a module of the adapter belongs in the checkpoint follows from the architecture of the base and is never
guessed from names. Tensors that PEFT keeps whole (`modules_to_save`, trained biases, resized embeddings) become
deltas too.

[`read_adapter`] reads headers only, except for whole tensors, which are compared with the base. Everything that
does not fit the base is listed in one error.
[`read_adapter_config`][dem_hub.vectors.lora.config.read_adapter_config] has refused before what is not a plain sum.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import Rows, Transposed
from dem_hub.checkpoints.reader import Checkpoint, Tensors
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.codecs.whole import Full
from dem_hub.errors import AdapterError
from dem_hub.files.names import ADAPTER_WEIGHTS
from dem_hub.vectors.lora.contents import DAMAGED, Fault, check_contents, refuse_adapter, wrapper_remedy
from dem_hub.vectors.lora.experts import expert_factors, expert_shapes, find_experts
from dem_hub.vectors.lora.factors import Factors, Target
from dem_hub.vectors.lora.names import FACTOR, current_parameters, parameter_of, rename, whole_parameter
from dem_hub.vectors.lora.patterns import Patterns
from dem_hub.vectors.lora.products import ConvolutionProduct, ExpertsProduct
from dem_hub.vectors.lora.writer import PEFT_PREFIX

logger = logging.getLogger(__name__)

_OTHER_BASE = (
    "Use the base it was trained on. If this is that base, merge the adapter into it with PEFT, and extract the vector of "
    "the result."
)
_UNTIE = "Train both ends with ensure_weight_tying=True, or on a base whose embeddings are untied."


def read_adapter(name: str, folder: Path, config: Mapping[str, Any], base: Base) -> dict[str, StoredDelta]:
    """Return the stored delta of each tensor that an adapter changes.

    Args:
        name (`str`): What the adapter is called in messages.
        folder (`Path`): Its folder.
        config (`Mapping[str, Any]`): Its config, from [`read_adapter_config`].
        base ([`Base`]): The base that the adapter is put on.

    Returns:
        `dict[str, StoredDelta]`: The deltas, unread, by the base's checkpoint keys.

    Raises:
        `AdapterError`: If the base has no place for a tensor, or a tensor has the wrong shape. All of them are
            listed. Also if the adapter does not hold what its config says, or the base's architecture is not known.
    """
    if base.architecture is None:
        raise AdapterError(
            f"The architecture of '{base}' is not known (no config.json with architectures that transformers "
            f"has), so where the LoRA '{name}' goes cannot be known either. Merge it with PEFT and extract "
            "the vector."
        )
    weights = Checkpoint(folder, index=ADAPTER_WEIGHTS)
    architecture = trained_architecture(weights, base)
    reader = _AdapterReader(weights, config, base.checkpoint, architecture, {})
    deltas = reader.read()
    renamed: dict[str, str] = {}
    if reader.faults:
        renamed = current_parameters(map(parameter_of, weights), base, architecture)
    if renamed:
        reader = _AdapterReader(weights, config, base.checkpoint, architecture, renamed)
        deltas = reader.read()
    faults = reader.faults
    remedy = wrapper_remedy(weights)
    if remedy:
        faults = [fault._replace(remedy=remedy) for fault in faults]
    if faults:
        refuse_adapter(f"The adapter '{folder}' does not fit the base '{base.checkpoint.path}'.", faults)
    contents = check_contents(config, architecture, reader.names.values(), has_old_names=bool(renamed))
    if contents.faults:
        refuse_adapter(f"The adapter '{folder}' does not hold what its config says.", contents.faults)
    for note in contents.notes:
        logger.warning("The adapter '%s': %s", folder, note)
    return deltas


def trained_architecture(weights: Checkpoint, base: Base) -> Architecture:
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
        match = FACTOR.fullmatch(name.removeprefix(PEFT_PREFIX))
        unknown += match is not None and match["module"] not in architecture.keys
    return unknown


def saves_one_end(module: str, architecture: Architecture, config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Check whether an adapter keeps its own copy (`modules_to_save`) of one of two tied embeddings alone.

    PEFT ties the copies if `ensure_weight_tying` asks for it, but not in every model. It writes all of them if it did.

    Args:
        module (`str`): The module's name in the model.
        architecture ([`Architecture`]): The architecture of the base.
        config (`Mapping[str, Any]`): The adapter's config.
        names (`Iterable[str]`): The names of the adapter's tensors.
    """
    if module not in architecture.tied or not _ends_with_any(module, config.get("modules_to_save")):
        return False
    saved = {whole_parameter(name) for name in names}
    return not config.get("ensure_weight_tying") or not architecture.other_ends(f"{module}.weight") <= saved


def _ends_with_any(name: str, suffixes: list[str] | None) -> bool:
    """Check whether a dotted name ends with one of several dotted names, as PEFT matches `target_modules`."""
    return any(f".{name}".endswith(f".{suffix}") for suffix in suffixes or ())


class _AdapterReader:
    """Reads the deltas of one adapter. What does not fit the base is collected in `faults`, one line each."""

    def __init__(
        self,
        weights: Checkpoint,
        config: Mapping[str, Any],
        base: Tensors,
        architecture: Architecture,
        renamed: Mapping[str, str],
    ) -> None:
        self.faults: list[Fault] = []
        self._weights = weights
        self._config = config
        self._base = base
        self._architecture = architecture
        # Each tensor of the adapter with its name in the model of today, and the names that modules had before.
        self.names, self._old_modules = rename(weights, renamed)
        self._alphas = Patterns(config.get("alpha_pattern") or {}, "alpha_pattern")
        self._experts = expert_shapes(architecture, base)

    def read(self) -> dict[str, StoredDelta]:
        """Return the deltas by the base's keys, without those that do not fit."""
        deltas: dict[str, StoredDelta] = {}
        factors: dict[str, dict[str, str]] = {}  # the names of A and B of each module
        for name, bare in self.names.items():
            if ".original_module." in name:
                # PEFT's copy of the base's module, beside the trained one.
                continue
            match = FACTOR.fullmatch(bare)
            if match is None:
                deltas.update(self._whole_delta(name))
            elif self._has_target(match["module"]) or match["module"] in self._architecture.tied:
                factors.setdefault(match["module"], {})[match["factor"]] = name
            else:
                self._unknown(f"'{name}': the base has no single weight for a module '{match['module']}'")
        pairs = self._pairs(factors)
        for module, pair in sorted(pairs.items()):
            if not self._is_at_all_ends(module, pairs):
                self._fault(
                    f"'{module}' is one tensor with another embedding, and its LoRA is not that embedding's: the change "
                    "of one end is none of the tensor",
                    _UNTIE,
                )
                continue
            if module in self._architecture.tied and module not in self._architecture.keys:
                # The other end is on disk.
                continue
            for key, component in self._components(module, pair):
                whole = deltas.get(key, StoredDelta())
                deltas[key] = StoredDelta((component, *whole.components), whole.rows)
        return deltas

    def _pairs(self, factors: Mapping[str, Mapping[str, str]]) -> dict[str, Factors]:
        """Return A and B of each module that has both, and note the faults of those that do not fit together."""
        pairs = {}
        for module, names in sorted(factors.items()):
            if len(names) == 1:
                self._fault(f"'{module}' has only lora_{next(iter(names))}", DAMAGED)
                continue
            a, b = self._weights.lazy(names["A"]), self._weights.lazy(names["B"])
            a_shape, b_shape = a.get_shape(), b.get_shape()
            form = f"'{module}' has factors of shape {a_shape} and {b_shape}"
            if len(a_shape) != self._dimensions(module) or len(b_shape) != len(a_shape):
                self._fault(f"{form}; only matrices are supported, and kernels for convolutions")
            elif 0 in a_shape + b_shape:
                self._fault(f"{form}: a rank or a size is 0", DAMAGED)
            else:
                pairs[module] = Factors(a, b, ".lora_embedding_" in names["A"])
        return pairs

    def _dimensions(self, module: str) -> int:
        """Return how many dimensions the factors of a module have."""
        key = self._architecture.keys.get(module)
        if key is None or self._architecture.modules[key].kind != "convolution":
            return 2
        return len(self._base[key].shape)

    def _is_at_all_ends(self, module: str, pairs: Mapping[str, Factors]) -> bool:
        """Check that all modules with the same tensor have the same LoRA; `True` if the tensor is of one module alone.

        With `ensure_weight_tying` PEFT writes the factors of each of them: those of an embedding are those of an
        output embedding, transposed.
        """
        rank = pairs[module].rank
        for parameter in self._architecture.other_ends(f"{module}.weight"):
            end = parameter.rpartition(".")[0]
            if end not in pairs:
                return False
            if not pairs[module].is_same(pairs[end]) or self._scale(module, rank) != self._scale(end, rank):
                return False
        return True

    def _fault(self, text: str, remedy: str = _OTHER_BASE) -> None:
        self.faults.append(Fault(text, remedy))

    def _unknown(self, text: str) -> None:
        """Note a fault of a name that the base does not have."""
        self._fault(f"{text} ({self._architecture.name})")

    # Factors

    def _components(self, module: str, pair: Factors) -> Iterator[tuple[str, Component]]:
        """Yield the key and the component of each tensor that the LoRA of a module changes."""
        a_shape, b_shape = pair.a.get_shape(), pair.b.get_shape()
        targets = self._targets(module, pair)
        if not targets:
            self._fault(
                f"'{module}' has factors of shape {a_shape} and {b_shape}, which are for none of its experts' "
                "parameters, or for several (or for one in two ways: PEFT before 0.19 has A and B the other way "
                "round, so peft_version in adapter_config.json must say which wrote it)"
            )
        for target in targets:
            in_base = self._base[target.key].shape
            if in_base != target.shape or a_shape[0] != b_shape[1]:
                self._fault(
                    f"'{target.key}' is {list(in_base)} in the base, and the LoRA's B @ A is {list(target.shape)} (A "
                    f"{a_shape}, B {b_shape})",
                    _OTHER_BASE if a_shape[0] == b_shape[1] else DAMAGED,
                )
                continue
            yield target.key, Component(target.codec, target.parts, in_base, self._scale(target.name, target.rank))

    def _scale(self, name: str, rank: int) -> float:
        """Return the factor that PEFT multiplies B @ A by: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        alpha = self._alphas.first(self._old_modules.get(name, name), self._config.get("lora_alpha", 8))
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
        return any(name.rpartition(".")[0] == owner for name in self._experts)

    def _is_targeted(self, parameter: str) -> bool:
        """Check whether a parameter outside the linear layers, such as the router of experts, has a LoRA."""
        if parameter not in self._architecture.parameters:
            return False
        return _ends_with_any(parameter, self._config.get("target_parameters"))

    def _targets(self, module: str, pair: Factors) -> list[Target]:
        """Return the tensors of the checkpoint that A and B of a module change, or none if that is not clear."""
        architecture = self._architecture
        a, b = pair.a, pair.b
        key = architecture.keys.get(module)
        if key is not None and architecture.modules[key].kind == "convolution":
            return [Target.product(key, module, a.get_shape()[0], ConvolutionProduct(b, a))]
        if key is not None and architecture.modules[key].transposed:
            return [Target.matrix(key, module, Transposed(a), Transposed(b))]
        if key is not None:
            return [Target.matrix(key, module, b, a)]
        owner = _owner(module)
        weight = f"{owner}.weight"
        if weight in architecture.expert_keys:
            # A LoRA on one expert's own layer, as transformers 4 had them. Its name is that of the tensor on disk.
            return [Target.matrix(weight, module, b, a)]
        if self._is_targeted(weight):
            return [Target.matrix(architecture.parameters[weight], weight, b, a)]
        # PEFT does not write down which parameter of the experts the factors are for: their shapes must tell.
        version = self._config.get("peft_version")
        found = find_experts(owner, self._experts, architecture.transposed, a.get_shape(), b.get_shape(), version)
        if found is None:
            return []
        experts = self._experts[found.name][0]
        if found.name in architecture.fused:
            parts = architecture.fused[found.name]
            factors = expert_factors(parts, self._base, a, b, is_swapped=found.is_swapped)
            return [Target.matrix(key, found.name, left, right) for key, left, right in factors]
        product = ExpertsProduct(b, a, experts, found.is_swapped)
        return [Target.product(architecture.parameters[found.name], found.name, a.get_shape()[0] // experts, product)]

    # Tensors that PEFT keeps whole

    def _whole_delta(self, name: str) -> dict[str, StoredDelta]:
        """Return the delta of a saved module, a trained bias or an embedding beside its LoRA; empty if it changes
        nothing.
        """
        parameter = whole_parameter(self.names[name])
        saved = self._weights[name]
        if ".modules_to_save." in name and not self._is_written_alike(name):
            self._fault(
                f"'{name}' and '{name.replace('.modules_to_save.', '.')}' are one tensor, and differ in the file",
                DAMAGED,
            )
            return {}
        key = self._key(parameter)
        is_other_end = key is None
        if key is None:
            # PEFT writes the output embedding out beside the input embedding that it is tied to.
            if self._architecture.tied and _has_copy(name, self._weights):
                return {}
            key = next(filter(None, map(self._key, self._architecture.other_ends(parameter))), None)
        if key is None:
            self._unknown(f"'{name}' {list(saved.shape)}: the base has no tensor for '{parameter}'")
            return {}
        in_base = self._base[key]
        is_grown = _has_more_rows(saved.shape, in_base.shape)
        if saved.shape != in_base.shape and not is_grown:
            self._fault(f"'{key}' is {list(saved.shape)} in the adapter and {list(in_base.shape)} in the base")
            return {}
        is_trained = is_grown or not torch.equal(self._weights.read(name).to(in_base.torch_dtype), self._base.read(key))
        if not is_trained:
            return {}
        module = parameter.rpartition(".")[0]
        if is_other_end or not self._is_saved_at_all_ends(name, module):
            self._fault(
                f"'{module}' is one tensor with another embedding, and PEFT changed one end alone (modules_to_save)",
                _UNTIE,
            )
            return {}
        values = self._weights.lazy(name)
        new_rows = Rows(values, in_base.shape[0], saved.shape[0]) if is_grown else None
        return {key: StoredDelta((Component(Full(), {"full": values}, saved.shape),), new_rows)}

    def _key(self, parameter: str) -> str | None:
        """Return the key of a parameter in the checkpoint; `None` if the checkpoint has no such tensor."""
        key = self._architecture.parameters.get(parameter)
        return key if key in self._base else None

    def _is_saved_at_all_ends(self, name: str, module: str) -> bool:
        """Check that a saved module is the same at all ends of a tie; `True` if it has no other end."""
        if saves_one_end(module, self._architecture, self._config, self.names.values()):
            return False
        if not _ends_with_any(module, self._config.get("modules_to_save")):
            # PEFT adds both embeddings to the file of an adapter that has more tokens than its base.
            return True
        ends = self._architecture.other_ends(whole_parameter(self.names[name]))
        copies = [other for other, bare in self.names.items() if whole_parameter(bare) in ends]
        return all(torch.equal(self._weights.read(copy), self._weights.read(name)) for copy in copies)

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
