"""Export of a weighted sum of vectors as one LoRA adapter, which PEFT and vLLM load on the base.

    sum_i c_i B_i @ A_i = [B_1 ... B_n] @ [c_1 A_1; ...; c_n A_n]

Concatenating the factors is exact. Summing them (PEFT's `linear` combination) would add cross terms. With a rank the
adapter is the best approximation of the sum at that rank, and the relative error is returned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dem_hub.codecs.delta import Delta, Factors, add_deltas, combine_factors
from dem_hub.errors import AdapterError, refuse
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.folders import ADAPTER
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import OpenedRecipe
from dem_hub.numerics.norms import squared_norm
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.svd import balanced_factors
from dem_hub.vectors.lora.writer import AdapterWriter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportedAdapter:
    """The result of an export.

    `ranks` has the rank of each module, `error` is |adapter - sum| / |sum|, and `left_out` names the tensors that no
    LoRA can change.
    """

    ranks: tuple[int, ...]
    error: float
    left_out: tuple[str, ...]


def export_adapter(opened: OpenedRecipe, target: Path, *, rank: int | None = None) -> ExportedAdapter:
    """Write the weighted sum of a recipe's vectors as a PEFT adapter.

    Args:
        opened ([`OpenedRecipe`]): The recipe with its base and vectors.
        target (`Path`): The folder, which appears complete or not at all.
        rank (`int`, *optional*): Largest rank of a module. Without it the adapter is exactly the sum, and every delta
            must be of low rank.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If a delta cannot be in a LoRA; the message lists all of them. With a
            `rank`: if no delta can.
        [`~dem_hub.errors.ConfigError`]: If the folder is the base or a vector, or holds anything but an adapter.
    """
    from huggingface_hub.utils import tqdm

    opened.check_target(target, ADAPTER)
    merge = opened.merge(opened.recipe)
    changed = [name for name in merge.base if merge.active(name)]
    with atomic_folder(target) as folder:
        export = _Export(merge, AdapterWriter(folder, opened.base.architecture), rank)
        for name in tqdm(changed, desc="Merging", unit="tensor", delay=1):
            export.add(name)
        _refuse(opened, export)
        export.writer.close(opened.base.record)
    return ExportedAdapter(tuple(export.ranks), export.error, tuple(export.left_out))


@dataclass
class _Export:
    """The state of an export: what was written, squared norms of the sum and of the error, and what was refused."""

    merge: Merge
    writer: AdapterWriter
    rank: int | None
    ranks: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    squared_sum: float = 0.0
    squared_error: float = 0.0

    @property
    def error(self) -> float:
        """The norm of the error relative to that of the sum."""
        if not self.squared_sum:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_sum)

    def add(self, name: str) -> None:
        """Write the delta of one tensor, or note that no LoRA can change it."""
        shape = self.merge.base[name].shape
        module = self.writer.module(name)
        factors, dense = combine_factors(self.merge.summands(name, full_index(shape), CPU), torch.float32)
        is_low_rank = factors is not None and not dense and self.merge.shape(name) == shape
        if self.rank is None and (module is None or not is_low_rank):
            reason = "is in no module that takes a LoRA" if module is None else "is not of low rank"
            self.faults.append(f"'{name}' {list(self.merge.shape(name))} {reason}")
            return
        if module is None:
            self._lose(squared_norm(_sum(shape, factors, dense)))
            self.left_out.append(name)
            return
        if factors is not None and is_low_rank and (self.rank is None or factors[0].shape[1] <= self.rank):
            left, right = factors
        else:
            exact = _sum(shape, factors, dense)
            left, right = balanced_factors(exact, rank=self.rank)
            self._lose(squared_norm(torch.addmm(exact, left, right, alpha=-1)))
        # |left @ right|^2 from the factors. What is lost is orthogonal to it, so the squares add up to that of the
        # sum.
        self.squared_sum += float(((left.T @ left) * (right @ right.T)).sum(dtype=torch.float64))
        self.writer.write(module, left, right)
        self.ranks.append(left.shape[1])

    def _lose(self, squares: float) -> None:
        """Count a part of the sum that the adapter does not have, by its squared norm."""
        self.squared_sum += squares
        self.squared_error += squares


def _refuse(opened: OpenedRecipe, export: _Export) -> None:
    """Refuse a sum of which not everything, or with a rank nothing, could be written."""
    if export.faults:
        refuse(
            AdapterError,
            f"The sum {opened.recipe.coefficients} is not a LoRA.",
            export.faults,
            "Give a rank, and the sum is approximated; or merge it into a model.",
        )
    if not export.ranks:
        raise AdapterError(
            f"Nothing that these vectors change can be in a LoRA of '{opened.base}' (rank {export.rank}). Merge them "
            "into a model."
        )


def _sum(shape: tuple[int, ...], factors: Factors | None, dense: Sequence[tuple[float, Delta]]) -> Tensor:
    """Return the sum of the deltas of one tensor, in full."""
    total = torch.zeros(shape, dtype=torch.float32)
    if factors is not None:
        total.addmm_(*factors)
    return add_deltas(total, dense)
