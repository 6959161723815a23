"""LoRAs on mixture-of-experts layers, whose experts are one tensor in memory and one matrix each on disk.

PEFT (`target_parameters`) keeps the factors of E experts in two matrices, A of shape (E * K, C) and B of shape (R,
K * E), where K is the rank. Its `ParamWrapper` adds to expert e

    scale * B[:, e::E] @ A[e * K : (e + 1) * K]

transformers lays several matrices of an expert one below the other in memory (`gate_up_proj`), so a matrix on disk
is a range of the R rows. The delta of each matrix on disk is therefore a plain LoRA. Its factors are cut out of
those of all experts when they are read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dem_hub.checkpoints.key_names import Fused
from dem_hub.checkpoints.lazy import EveryNthColumn, LazyTensor, Rows, Transposed
from dem_hub.checkpoints.reader import TensorInfo

# The first version of PEFT whose factors are as the drawing above says; before it, A and B changed places.
_FIRST_UNSWAPPED = (0, 19)


@dataclass(frozen=True)
class FusedTarget:
    """The fused parameter that factors are for, and whether they are the other way round, as older PEFT wrote them."""

    name: str
    is_swapped: bool


def find_fused(
    module: str,
    fused: Mapping[str, Fused],
    base: Mapping[str, TensorInfo],
    a_shape: list[int],
    b_shape: list[int],
    peft_version: str | None,
) -> FusedTarget | None:
    """Find the fused parameter of a module that A and B are for. PEFT does not write it down, so the shapes must tell.

    PEFT before 0.19 has A and B the other way round. Where both ways fit, as in a model whose hidden size is twice
    that of its experts, the version in the adapter's config decides, and without it nothing does.

    Args:
        module (`str`): The module's name in the model.
        fused (`Mapping[str, Fused]`): The fused parameters of the model, as [`Architecture`] has them.
        base (`Mapping[str, TensorInfo]`): The base's tensors.
        a_shape, b_shape (`list[int]`): Shapes of the matrices A and B of all experts.
        peft_version (`str`, *optional*): The version of PEFT that wrote the adapter.

    Returns:
        [`FusedTarget`] or `None`: The parameter; `None` if no parameter fits, or several do.
    """
    own = [FusedTarget(name, is_swapped) for name in fused for is_swapped in (False, True)]
    candidates = [
        target
        for target in own
        if target.name.rpartition(".")[0] == module
        and _fits(fused[target.name], base, a_shape, b_shape, is_swapped=target.is_swapped)
    ]
    if len(candidates) > 1:
        swapped = _writes_swapped(peft_version)
        candidates = [candidate for candidate in candidates if candidate.is_swapped is swapped]
    return candidates[0] if len(candidates) == 1 else None


def _writes_swapped(peft_version: str | None) -> bool | None:
    """Return whether a version of PEFT has A and B of experts the other way round; `None` if that is not known.

    Versions of development between two releases may be on either side.
    """
    match = re.match(r"(\d+)\.(\d+)(.*)", str(peft_version))
    if match is None or "dev" in match[3]:
        return None
    return (int(match[1]), int(match[2])) < _FIRST_UNSWAPPED


def _fits(
    parts: Fused, base: Mapping[str, TensorInfo], a_shape: list[int], b_shape: list[int], *, is_swapped: bool
) -> bool:
    """Check whether A (E * K, C) and B (R, K * E) have the shapes of a LoRA on this fused parameter.

    Swapped, A is (E * K, R) and B is (C, K * E).
    """
    experts = len(parts[0])
    rows = sum(base[keys[0]].shape[0] for keys in parts)
    columns = base[parts[0][0]].shape[1]
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
