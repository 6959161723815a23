"""Export of a weighted sum of vectors as one LoRA adapter, which PEFT and vLLM load on the base.

    sum_i c_i B_i @ A_i = [B_1 ... B_n] @ [c_1 A_1; ...; c_n A_n]

Concatenating the factors is exact. Summing them (PEFT's `linear` combination) would add cross terms. With a rank the
adapter is the best approximation of the sum at that rank, and the relative error is returned.

All modules get one rank, because readers other than PEFT take one scale for all of them; see
[`dem_hub.vectors.lora.writer`].
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import CODES
from dem_hub.checkpoints.writer import FLOAT_DTYPES
from dem_hub.codecs.delta import Delta, Factors, add_deltas, combine_factors
from dem_hub.errors import AdapterError, ConfigError, refuse
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.folders import ADAPTER
from dem_hub.files.names import MLX_WEIGHTS
from dem_hub.files.plain_numbers import plain
from dem_hub.merging.merge import Merge
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.numerics.norms import is_finite, squared_norm
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.svd import balanced_factors
from dem_hub.vectors.lora.writer import AdapterWriter

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

_FLOAT32 = "float32"


@dataclass(frozen=True)
class ExportedAdapter:
    """The result of an export.

    `ranks` has the rank of each module in the file, `error` is |adapter - sum| / |sum|, rounding to `dtype` included,
    and `left_out` names the tensors that no LoRA can change.
    """

    ranks: tuple[int, ...]
    error: float
    left_out: tuple[str, ...]
    dtype: str


def export_adapter(
    opened: OpenedRecipe,
    target: Path,
    *,
    rank: int | None = None,
    dtype: str | None = None,
    rank_pattern: bool = False,
) -> ExportedAdapter:
    """Write the weighted sum of a recipe's vectors as a PEFT adapter.

    Args:
        opened ([`OpenedRecipe`]): The recipe with its base and vectors.
        target (`Path`): The folder, which appears complete or not at all.
        rank (`int`, *optional*): Largest rank of a module. Without it the adapter is exactly the sum, and every delta
            must be of low rank.
        dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`. Defaults to the dtype of the vectors'
            factors, and to float32 if they differ or a vector is not of low rank.
        rank_pattern (`bool`, *optional*, defaults to `False`): Let each module have the rank that it needs, which
            takes fewer bytes. PEFT and vLLM read such an adapter rightly, and llama.cpp scales its lower ranks
            wrongly. Without it all modules have one rank.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the dtype is unknown, or the rank is not a whole number from 1.
        [`~dem_hub.errors.AdapterError`]: If a delta cannot be in a LoRA; the message lists all of them. With a
            `rank`: if no delta can.
        [`~dem_hub.errors.ConfigError`]: If the folder is the base or a vector, or holds anything but an adapter.
    """
    from huggingface_hub.utils import tqdm

    rank = plain(rank)
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ConfigError(f"rank is {rank}; it must be a whole number from 1. Leave it out for an exact export.")
    opened.check_target(target, ADAPTER)
    quantization = opened.recipe.base_quantized
    if quantization is not None:
        logger.warning(
            "The recipe adds its vectors to a quantized base (%s). Load the adapter on such a base.", quantization
        )
    merge = opened.merge(replace(opened.recipe, base_quantized=None))
    changed = [name for name in merge.base if merge.is_changed(name)]
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise ConfigError(f"dtype is '{dtype}'; choose one of {', '.join(FLOAT_DTYPES)}.")
    # mlx-lm's weights of an older export would not belong to the new config.
    with atomic_folder(target, {MLX_WEIGHTS}.__contains__) as folder:
        writer = AdapterWriter(folder, opened.base.architecture)
        chosen = dtype or _dtype_of_inputs(merge, [name for name in changed if writer.module(name)])
        export = _Export(merge, writer, rank, FLOAT_DTYPES[chosen])
        for name in tqdm(changed, desc="Merging", unit="tensor", delay=1):
            export.add(name)
        _refuse(opened, export)
        opened.check_unchanged()
        writer.close(opened.base.record, most_padding=0.0 if rank_pattern else math.inf)
    return ExportedAdapter(writer.ranks, export.error, tuple(export.left_out), chosen)


@dataclass
class _Export:
    """The state of an export: what was written, squared norms of the sum and of the error, and what was refused, by the reason."""

    merge: Merge
    writer: AdapterWriter
    rank: int | None
    dtype: torch.dtype
    left_out: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
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
        if self.merge.moved(name):
            self._refuse(f"'{name}' {list(shape)}", "has rows of new tokens that are elsewhere in some vector")
            return
        module = self.writer.module(name)
        factors, dense = combine_factors(self.merge.summands(name, full_index(shape), CPU), torch.float32)
        is_low_rank = factors is not None and not dense and self.merge.shape(name) == shape
        if self.rank is None and (module is None or not is_low_rank):
            reason = "is in no module that takes a LoRA" if module is None else "is not of low rank"
            self._refuse(f"'{name}' {list(self.merge.shape(name))}", reason)
            return
        if module is None:
            self._lose(squared_norm(_sum(shape, factors, dense)))
            self.left_out.append(name)
            return
        if factors is not None and is_low_rank and (self.rank is None or factors[0].shape[1] <= self.rank):
            left, right = _without_zeros(*factors)
        else:
            exact = _sum(shape, factors, dense)
            left, right = balanced_factors(exact, rank=self.rank)
            self._lose(squared_norm(torch.addmm(exact, left, right, alpha=-1)))
        # |left @ right|^2 from the factors. What is lost is orthogonal to it, so the squares add up to that of the
        # sum.
        self.squared_sum += float(((left.T @ left) * (right @ right.T)).sum(dtype=torch.float64))
        rounded_left = self._round(left, name)
        rounded_right = self._round(right, name)
        if self.dtype != torch.float32:
            # |left @ right - rounded|^2, from factors again. In float64 the difference of nearly equal products keeps
            # enough digits.
            both_left = torch.cat([left, rounded_left.float()], dim=1).double()
            both_right = torch.cat([right, -rounded_right.float()]).double()
            self.squared_error += max(0.0, float(((both_left.T @ both_left) * (both_right @ both_right.T)).sum()))
        self.writer.write(module, rounded_left, rounded_right)

    def _round(self, factor: Tensor, name: str) -> Tensor:
        """Return a factor in the adapter's dtype, or refuse one whose numbers are too large for it."""
        rounded = factor.to(self.dtype)
        if not is_finite(rounded):
            largest = float(factor.abs().max())
            self._refuse(f"'{name}'", f"has factors of up to {largest:.3g}, too large for {self.dtype}")
        return rounded

    def _refuse(self, tensor: str, reason: str) -> None:
        """Note that a tensor cannot be written, and why."""
        self.faults.setdefault(reason, []).append(f"{tensor} {reason}")

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
            list(chain.from_iterable(export.faults.values())),
            "Give a rank (--rank), and the sum is approximated; or merge it into a model.",
        )
    if not export.writer.ranks:
        raise AdapterError(
            f"Nothing that these vectors change can be in a LoRA of '{opened.base}' (rank {export.rank}). Merge them "
            "into a model."
        )


def _dtype_of_inputs(merge: Merge, names: Sequence[str]) -> str:
    """Return the dtype that the factors of all deltas have, or float32 if they differ or there is another delta."""
    codes = set()
    for name in names:
        for _, stored in merge.active(name):
            for component in stored.components:
                if not component.codec.is_factored:
                    return _FLOAT32
                codes |= {part.get_dtype() for part in component.parts.values()}
    for dtype, torch_dtype in FLOAT_DTYPES.items():
        if codes == {CODES[torch_dtype]}:
            return dtype
    return _FLOAT32


def _without_zeros(left: Tensor, right: Tensor) -> Factors:
    """Return both factors without directions that are zero, such as those that padded an input; at least one stays."""
    is_used = left.any(dim=0) & right.any(dim=1)
    is_used[0] |= not is_used.any()
    return left[:, is_used], right[is_used]


def _sum(shape: tuple[int, ...], factors: Factors | None, dense: Sequence[tuple[float, Delta]]) -> Tensor:
    """Return the sum of the deltas of one tensor, in full."""
    total = torch.zeros(shape, dtype=torch.float32, device="cpu")
    if factors is not None:
        total.addmm_(*factors)
    return add_deltas(total, dense)
