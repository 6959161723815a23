"""LoRAs on experts, which are one tensor in memory and a matrix each on disk.

PEFT (`target_parameters`) keeps the factors of E experts in two matrices, A (E * K, C) and B (R, K * E), and what it adds to expert e is

    scale * B[:, e::E] @ A[e * K : (e + 1) * K]

(its `ParamWrapper`), of which the matrices on disk that were put together in memory are so many rows each. So each is a plain LoRA.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dem_hub.checkpoints.architecture import Fused
from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.checkpoints.reader import TensorInfo


@dataclass(frozen=True)
class ExpertLeft:
    """Some rows of one expert's B, out of that of all experts."""

    factor: LazyTensor
    rows: slice
    expert: int
    experts: int

    def get_shape(self) -> list[int]:
        """Rows and rank."""
        return [self.rows.stop - self.rows.start, self.factor.get_shape()[1] // self.experts]

    def get_dtype(self) -> str:
        """The dtype on disk."""
        return self.factor.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """All of it, or a slice."""
        rows, columns = index if index is not Ellipsis else (slice(None), slice(None))
        start, stop, _ = rows.indices(self.rows.stop - self.rows.start)
        return self.factor[self.rows.start + start : self.rows.start + stop, :][:, self.expert :: self.experts][
            :, columns
        ]


@dataclass(frozen=True)
class ExpertRight:
    """One expert's A, out of that of all experts."""

    factor: LazyTensor
    expert: int
    experts: int

    def get_shape(self) -> list[int]:
        """Rank and columns."""
        rows, columns = self.factor.get_shape()
        return [rows // self.experts, columns]

    def get_dtype(self) -> str:
        """The dtype on disk."""
        return self.factor.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """All of it, or a slice."""
        rows, columns = index if index is not Ellipsis else (slice(None), slice(None))
        rank = self.get_shape()[0]
        start, stop, _ = rows.indices(rank)
        return self.factor[self.expert * rank + start : self.expert * rank + stop, columns]


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
        stop = start + base[keys[0]].shape[0]
        for expert, key in enumerate(keys):
            yield key, ExpertLeft(second, slice(start, stop), expert, len(keys)), ExpertRight(first, expert, len(keys))
        start = stop
