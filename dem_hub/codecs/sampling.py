"""Which elements of a tensor are kept when only a share of them is: one in each group of neighbouring columns, drawn by a hash.

No index is stored. The columns of a row are cut into as many groups as elements are kept, and one element of each is drawn by the
hash of `rounding` from seed, row and group: the same elements on every device, for ever, for all of a tensor or a part of it. What is
kept counts for its whole group, so that the decoded tensor is right in the mean. (A sequential generator, as DARE uses, cannot start
in the middle, and draws differently on a GPU.)
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.numerics.noise import random_bits, row_keys
from dem_hub.numerics.slices import Index, rows_and_columns


def count_kept(columns: int, density: float) -> int:
    """How many elements of a row are kept, at least one.

    Example:

    ```python
    >>> from dem_hub.codecs.sampling import count_kept
    >>> count_kept(576, 0.1), count_kept(5, 0.01), count_kept(0, 0.5)
    (58, 1, 0)

    ```
    """
    return min(columns, max(1, round(density * columns)))


def seed_of(key: str, finetuned: Tensor, seed: int = 0) -> int:
    """A seed for one tensor of one fine-tune, 32 bits: two vectors, or two tensors, do not drop the same elements."""
    flat = finetuned.reshape(-1)
    some = flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(f"{seed} {key} ".encode() + some).digest()[:4], "little")


@dataclass(frozen=True)
class Sample:
    """The kept elements that a range of columns may hold: G groups of each of R rows.

    `groups` are their places among the kept elements of a row; `positions` (R, G) int64 their columns, counted from the first of
    the range and possibly outside of it; `sizes` (G,) float32 how many elements each stands for.
    """

    groups: slice
    positions: Tensor
    sizes: Tensor


def draw(index: Index, shape: tuple[int, ...], kept: int, seed: int, device: torch.device) -> Sample:
    """Draw the elements that a part of a tensor may have kept.

    Args:
        index (`tuple[slice, ...]`): the part.
        shape (`tuple[int, ...]`): of the whole tensor, at least one dimension.
        kept (`int`): elements kept in a row.
        seed (`int`): another seed, other elements.
        device (`torch.device`): where the answer is wanted.
    """
    rows, columns = rows_and_columns(index, shape)
    width = shape[-1]
    # Group j is the columns from j * width // kept to (j + 1) * width // kept.
    first = -(-(columns.start + 1) * kept // width) - 1 if width else 0
    last = -(-columns.stop * kept // width) if width and columns.stop > columns.start else first
    bounds = torch.arange(first, last + 1, dtype=torch.int64, device=device) * width // max(kept, 1)
    starts, sizes = bounds[:-1], bounds.diff()
    bits = random_bits(row_keys(seed, "sample", rows.to(device)), first, last)
    positions = starts - columns.start + (bits * sizes >> 16)
    return Sample(slice(first, last), positions, sizes.float())


def scatter(values: Tensor, positions: Tensor, width: int) -> Tensor:
    """Put (R, G) values at their columns of (R, width) zeros; positions outside are left out."""
    inside = (positions >= 0) & (positions < width)
    result = values.new_zeros(values.shape[0], width)
    return result.scatter_add_(1, positions.clamp(0, max(width - 1, 0)), torch.where(inside, values, 0))
