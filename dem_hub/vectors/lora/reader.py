"""The tensors of a PEFT LoRA adapter, read as the deltas of a distribution vector.

The factors are used exactly as they are: the delta of a module is scale * B @ A, so no SVD is needed and nothing is
lost. Where a module of the adapter belongs in the checkpoint follows from the architecture of the base and is never
guessed from names. Tensors that PEFT keeps whole become deltas too (`whole_tensors.py`).

[`read_adapter`] reads headers only, except for whole tensors, which are compared with the base. Everything that
does not fit the base is listed in one error.
[`read_adapter_config`][dem_hub.vectors.lora.config.read_adapter_config] has refused before what is not a plain sum.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import Transposed
from dem_hub.checkpoints.reader import Checkpoint, Tensors
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.errors import AdapterError
from dem_hub.files.names import ADAPTER_WEIGHTS
from dem_hub.vectors.lora.contents import (
    DAMAGED,
    OTHER_BASE,
    UNTIE,
    Fault,
    check_contents,
    refuse_adapter,
    wrapper_remedy,
)
from dem_hub.vectors.lora.experts import expert_factors, expert_shapes, find_experts
from dem_hub.vectors.lora.factors import Factors, Target
from dem_hub.vectors.lora.names import FACTOR, current_parameters, ends_with_any, parameter_of, rename
from dem_hub.vectors.lora.patterns import Patterns
from dem_hub.vectors.lora.products import ConvolutionProduct, ExpertsProduct
from dem_hub.vectors.lora.whole_tensors import WholeTensors
from dem_hub.vectors.lora.writer import PEFT_PREFIX

logger = logging.getLogger(__name__)


def read_adapter(name: str, folder: Path, config: Mapping[str, Any], base: Base) -> dict[str, StoredDelta]:
    """Return the stored delta of each tensor that an adapter changes.

    Of weights that are still on the Hub, the adapter's or the base's, the shapes alone are compared. Once they are here
    the adapter is read again, and their values are.

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
    base_has_values = not base.remotes
    make_reader = partial(
        _AdapterReader, weights, config, base.checkpoint, architecture, base_has_values=base_has_values
    )
    reader = make_reader({})
    deltas = reader.read()
    renamed: dict[str, str] = {}
    if reader.faults:
        renamed = current_parameters(map(parameter_of, weights), base, architecture)
    if renamed:
        reader = make_reader(renamed)
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


class _AdapterReader:
    """Reads the deltas of one adapter. What does not fit the base is collected in `faults`, one line each."""

    def __init__(
        self,
        weights: Checkpoint,
        config: Mapping[str, Any],
        base: Tensors,
        architecture: Architecture,
        renamed: Mapping[str, str],
        *,
        base_has_values: bool,
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
        self._whole_tensors = WholeTensors(weights, config, base, architecture, self.names, base_has_values)

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
                self._add_whole(name, deltas)
            elif self._has_target(match["module"]) or match["module"] in self._architecture.tied:
                factors.setdefault(match["module"], {})[match["factor"]] = name
            else:
                self._fault(
                    f"'{name}': the base has no single weight for a module '{match['module']}' "
                    f"({self._architecture.name})"
                )
        pairs = self._pairs(factors)
        for module, pair in sorted(pairs.items()):
            if not self._is_at_all_ends(module, pairs):
                self._fault(
                    f"'{module}' is one tensor with another embedding, and its LoRA is not that embedding's: the "
                    "change of one end is none of the tensor",
                    UNTIE,
                )
                continue
            if module in self._architecture.tied and module not in self._architecture.keys:
                # The other end is on disk.
                continue
            for key, component in self._components(module, pair):
                whole = deltas.get(key, StoredDelta())
                deltas[key] = StoredDelta((component, *whole.components), whole.rows)
        return deltas

    def _add_whole(self, name: str, deltas: dict[str, StoredDelta]) -> None:
        """Add the delta of a tensor that PEFT keeps whole."""
        delta = self._whole_tensors.delta(name)
        if isinstance(delta, Fault):
            self.faults.append(delta)
        else:
            deltas.update(delta)

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
            if self._scale(module, rank) != self._scale(end, rank):
                return False
            if self._weights.has_values and not pairs[module].is_same(pairs[end]):
                return False
        return True

    def _fault(self, text: str, remedy: str = OTHER_BASE) -> None:
        self.faults.append(Fault(text, remedy))

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
                    OTHER_BASE if a_shape[0] == b_shape[1] else DAMAGED,
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
        return ends_with_any(parameter, self._config.get("target_parameters"))

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


def _owner(module: str) -> str:
    """Return the module's own name. PEFT nests the LoRAs of several parameters of a module in `base_layer`s."""
    return module.replace(".base_layer", "")
