"""A weighted sum of vectors as one LoRA adapter, which PEFT and vLLM load beside the base.

    sum_i c_i B_i @ A_i = [B_1 ... B_n] @ [c_1 A_1; ...; c_n A_n]

so that putting the factors side by side is exact, where summing them (PEFT's `linear`) has cross terms. A rank makes it smaller: the best
approximation at that rank, and its error is told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dem_hub.codecs.delta import Delta, Factors, add_deltas, combine_factors
from dem_hub.errors import AdapterError, refuse
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.folders import ADAPTER
from dem_hub.merging.opening import OpenedRecipe
from dem_hub.numerics.norms import squared_norm
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.svd import balanced_factors
from dem_hub.vectors.lora.writer import AdapterWriter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportedAdapter:
    """What became of a sum: the ranks of its modules, |adapter - sum| / |sum|, and the tensors that no LoRA can change."""

    ranks: tuple[int, ...]
    error: float
    left_out: tuple[str, ...]


def export_adapter(opened: OpenedRecipe, target: Path, *, rank: int | None = None) -> ExportedAdapter:
    """Write the weighted sum of a recipe's vectors as a PEFT adapter.

    Args:
        opened ([`OpenedRecipe`]): the recipe with its base and vectors.
        target (`Path`): the folder, which appears complete or not at all.
        rank (`int`, *optional*): of every module at the most. Without it the adapter is the sum, and every delta must be of low rank.

    Raises:
        `AdapterError`: deltas that are no LoRA; lists all of them. With a `rank`: nothing that a LoRA could change.
        `ConfigError`: a target that holds the base, one of the vectors, or anything but an adapter.
    """
    from huggingface_hub.utils import tqdm

    opened.check_target(target, ADAPTER)
    merge = opened.merge(opened.recipe)
    ranks, left_out, squares, errors, faults = [], [], 0.0, 0.0, []
    with atomic_folder(target) as folder:
        writer = AdapterWriter(folder, opened.base.architecture)
        for name in tqdm([name for name in merge.base if merge.active(name)], desc="Merging", unit="tensor", delay=1):
            summands, module = merge.summands(name, full_index(merge.base[name].shape), CPU), writer.module(name)
            factors, dense = combine_factors(summands, torch.float32)
            whole = factors is not None and not dense and merge.shape(name) == merge.base[name].shape
            if rank is None and (module is None or not whole):
                faults.append(
                    f"'{name}' {list(merge.shape(name))}"
                    + (" is in no module that takes a LoRA" if module is None else " is not of low rank")
                )
            elif module is None:
                left_out.append(name)
                lost = squared_norm(_sum(merge.base[name].shape, factors, dense))
                squares, errors = squares + lost, errors + lost
            else:
                if factors is not None and whole and (rank is None or factors[0].shape[1] <= rank):
                    left, right = factors
                else:
                    exact = _sum(merge.base[name].shape, factors, dense)
                    left, right = balanced_factors(exact, rank=rank)
                    lost = squared_norm(torch.addmm(exact, left, right, alpha=-1))
                    squares, errors = squares + lost, errors + lost
                squares += float(
                    ((left.T @ left) * (right @ right.T)).sum(dtype=torch.float64)
                )  # what is lost is orthogonal to it
                writer.write(module, left, right)
                ranks.append(left.shape[1])
        _refuse(opened, faults, rank, ranks)
        writer.close(opened.base.record)
    return ExportedAdapter(tuple(ranks), math.sqrt(errors / squares) if squares else 0.0, tuple(left_out))


def _refuse(opened: OpenedRecipe, faults: Sequence[str], rank: int | None, ranks: Sequence[int]) -> None:
    if faults:
        remedy = "Give a rank, and the sum is approximated; or merge it into a model."
        refuse(AdapterError, f"The sum {opened.recipe.coefficients} is not a LoRA.", faults, remedy)
    if not ranks:
        raise AdapterError(
            f"Nothing that these vectors change can be in a LoRA of '{opened.base}' (rank {rank}). Merge them into a model."
        )


def _sum(shape: tuple[int, ...], factors: Factors | None, dense: Sequence[tuple[float, Delta]]) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float32)
    return add_deltas(total.addmm_(*factors) if factors is not None else total, dense)
