"""LoRAs on experts, which are one tensor in memory and a matrix each on disk.

PEFT (`target_parameters`) keeps the factors of E experts in two matrices, A (E * K, C) and B (R, K * E), and what it adds to expert e is

    scale * B[:, e::E] @ A[e * K : (e + 1) * K]

(its `ParamWrapper`), of which the matrices on disk that were put together in memory are so many rows each. So each is a plain LoRA.
"""

from collections.abc import Iterator, Mapping

from dem_hub.checkpoints.architecture import Fused
from dem_hub.checkpoints.lazy import EveryNthColumn, LazyTensor, Rows
from dem_hub.checkpoints.reader import TensorInfo


def find_fused(
    module: str, fused: Mapping[str, Fused], base: Mapping[str, TensorInfo], first: list[int], second: list[int]
) -> str | None:
    """Which fused parameter of a module A and B of these shapes are for, if it is just one: PEFT does not write it down."""
    found = [
        name
        for name, parts in fused.items()
        if name.rpartition(".")[0] == module
        and len(first) == len(second) == 2
        and first[0] == second[1]
        and first[0] % len(parts[0]) == 0
        and (second[0], first[1]) == (sum(base[keys[0]].shape[0] for keys in parts), base[parts[0][0]].shape[1])
    ]
    return found[0] if len(found) == 1 else None


def expert_factors(
    parts: Fused, base: Mapping[str, TensorInfo], first: LazyTensor, second: LazyTensor
) -> Iterator[tuple[str, LazyTensor, LazyTensor]]:
    """The key on disk of each matrix in a fused parameter, with its own B and A.

    Args:
        parts (`Fused`): the keys, as [`Architecture`] has them.
        base (`Mapping[str, TensorInfo]`): the base's tensors.
        first, second (`LazyTensor`): A and B of all experts.
    """
    start = 0
    for keys in parts:
        rank = first.get_shape()[0] // len(keys)
        stop = start + base[keys[0]].shape[0]
        for expert, key in enumerate(keys):
            left = Rows(EveryNthColumn(second, expert, len(keys)), start, stop)
            right = Rows(first, expert * rank, (expert + 1) * rank)
            yield key, left, right
        start = stop
