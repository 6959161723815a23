"""LoRAs on mixture-of-experts layers, whose experts are one tensor in memory and one matrix each on disk.

PEFT (`target_parameters`) keeps the factors of E experts in two matrices, A of shape (E * K, C) and B of shape (R,
K * E), where K is the rank. Its `ParamWrapper` adds to expert e

    scale * B[:, e::E] @ A[e * K : (e + 1) * K]

transformers lays several matrices of an expert one below the other in memory (`gate_up_proj`), so a matrix on disk
is a range of the R rows. The delta of each matrix on disk is therefore a plain LoRA. Its factors are cut out of
those of all experts when they are read.

Other models (gpt-oss, Llama 4) have one tensor of all experts on disk, too. There the delta is the tensor's, of three
dimensions.
"""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.key_names import Fused
from dem_hub.checkpoints.lazy import EveryNthColumn, LazyTensor, Rows, Transposed
from dem_hub.checkpoints.reader import TensorInfo

# The first version of PEFT whose factors are as the drawing above says; before it, A and B changed places.
_FIRST_UNSWAPPED = (0, 19)


@dataclass(frozen=True)
class ExpertsTarget:
    """The parameter that factors are for, and whether they are the other way round, as older PEFT wrote them.

    They are so in every version of PEFT if the model holds the parameter transposed.
    """

    name: str
    is_swapped: bool


def expert_shapes(architecture: Architecture, base: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    """Return the shape in memory of each parameter that has a matrix for each expert, by its name in memory.

    Args:
        architecture ([`Architecture`]): The architecture of the base.
        base (`Mapping[str, TensorInfo]`): The base's tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parts in architecture.fused.items():
        rows = sum(base[keys[0]].shape[0] for keys in parts)
        shapes[name] = (len(parts[0]), rows, base[parts[0][0]].shape[1])
    for name, key in architecture.parameters.items():
        # The weight of a convolution may have three dimensions, too.
        if key not in architecture.modules and len(base[key].shape) == 3:
            shapes[name] = base[key].shape
    return shapes


def find_experts(
    module: str,
    shapes: Mapping[str, tuple[int, ...]],
    transposed: Container[str],
    a_shape: list[int],
    b_shape: list[int],
    peft_version: str | None,
) -> ExpertsTarget | None:
    """Find the parameter of a module that A and B are for. PEFT does not write it down, so the shapes must tell.

    PEFT before 0.19 has A and B the other way round. Where both ways fit, as in a model whose hidden size is twice
    that of its experts, the version in the adapter's config decides, and without it nothing does.

    Args:
        module (`str`): The module's name in the model.
        shapes (`Mapping[str, tuple[int, ...]]`): The shapes of the model's parameters, from [`expert_shapes`].
        transposed (`Container[str]`): Those that the model holds transposed.
        a_shape, b_shape (`list[int]`): Shapes of the matrices A and B of all experts.
        peft_version (`str`, *optional*): The version of PEFT that wrote the adapter.

    Returns:
        [`ExpertsTarget`] or `None`: The parameter; `None` if no parameter fits, or several do.
    """
    candidates = []
    for name, shape in shapes.items():
        if name.rpartition(".")[0] != module:
            continue
        ways = (True,) if name in transposed else (False, True)
        candidates += [ExpertsTarget(name, way) for way in ways if _fits(shape, a_shape, b_shape, is_swapped=way)]
    if len(candidates) > 1:
        swapped = _writes_swapped(peft_version)
        candidates = [
            candidate for candidate in candidates if candidate.name in transposed or candidate.is_swapped is swapped
        ]
    return candidates[0] if len(candidates) == 1 else None


def _writes_swapped(peft_version: str | None) -> bool | None:
    """Return whether a version of PEFT has A and B of experts the other way round; `None` if that is not known.

    Versions of development between two releases may be on either side.
    """
    match = re.match(r"(\d+)\.(\d+)(.*)", str(peft_version))
    if match is None or "dev" in match[3]:
        return None
    return (int(match[1]), int(match[2])) < _FIRST_UNSWAPPED


def _fits(shape: tuple[int, ...], a_shape: list[int], b_shape: list[int], *, is_swapped: bool) -> bool:
    """Check whether A (E * K, C) and B (R, K * E) have the shapes of a LoRA on a parameter (E, R, C).

    Swapped, A is (E * K, R) and B is (C, K * E).
    """
    experts, rows, columns = shape
    if is_swapped:
        rows, columns = columns, rows
    has_one_rank = a_shape[0] == b_shape[1] and a_shape[0] % experts == 0
    return has_one_rank and b_shape[0] == rows and a_shape[1] == columns


def expert_factors(
    parts: Fused, base: Mapping[str, TensorInfo], a: LazyTensor, b: LazyTensor, *, is_swapped: bool
) -> Iterator[tuple[str, LazyTensor, LazyTensor]]:
    """Yield the key on disk of each matrix in a fused parameter, with its own B and A.

    Args:
        parts (`Fused`): The keys, as [`Architecture`] has them.
        base (`Mapping[str, TensorInfo]`): The base's tensors.
        a, b (`LazyTensor`): A and B of all experts.
        is_swapped (`bool`): Whether the delta is the transpose of B @ A.
    """
    start = 0
    for keys in parts:
        stop = start + base[keys[0]].shape[0]
        rank = a.get_shape()[0] // len(keys)
        for expert, key in enumerate(keys):
            left: LazyTensor = EveryNthColumn(b, expert, len(keys))
            right: LazyTensor = Rows(a, expert * rank, (expert + 1) * rank)
            if is_swapped:
                left, right = Transposed(right), Transposed(left)
            yield key, Rows(left, start, stop), right
        start = stop
