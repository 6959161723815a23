"""The choice of elements that are kept when a codec keeps a share of a tensor: one of each group of neighbouring
columns, drawn by a hash.

No index is stored. The columns of a row are cut into as many groups as elements are kept. The hash of
`numerics.noise`, of seed, row and group, draws one element of each group, so the same elements are drawn on every
device, in every version, for a whole tensor or a part of it. A kept element counts for its whole group, so the
decoded tensor is right in the mean. (DARE uses a sequential generator, which cannot start in the middle of a tensor
and draws differently on a GPU.)
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.numerics.noise import random_bits, row_keys
from dem_hub.numerics.slices import Index, rows_and_columns

_SEED_SAMPLES = (
    256  # elements of a fine-tune that its seed depends on: enough to tell two fine-tunes apart, and quick to hash
)


def count_kept(columns: int, density: float) -> int:
    """Return how many elements of a row are kept: at least one, if there are any.

    Example:

    ```python
    >>> from dem_hub.codecs.sampling import count_kept
    >>> count_kept(576, 0.1), count_kept(5, 0.01), count_kept(0, 0.5)
    (58, 1, 0)

    ```
    """
    return min(columns, max(1, round(density * columns)))


def seed_of(key: str, finetuned: Tensor, seed: int = 0) -> int:
    """Return a 32-bit seed for one tensor of one fine-tune, so that two vectors, or two tensors, do not drop the same
    elements.
    """
    flat = finetuned.reshape(-1)
    step = max(1, len(flat) // _SEED_SAMPLES)
    samples = flat[::step].float().cpu().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(f"{seed} {key} ".encode() + samples).digest()[:4], "little")


@dataclass(frozen=True)
class Sample:
    """The kept elements that may lie in a range of columns: G groups of each of R rows.

    `groups` numbers them among the kept elements of a row. `positions` (R, G) int64 has their columns, counted from
    the first column of the range; some may lie outside of it. `sizes` (G,) float32 says how many elements each stands
    for.
    """

    groups: slice
    positions: Tensor
    sizes: Tensor


def draw(index: Index, shape: tuple[int, ...], kept: int, seed: int, device: torch.device) -> Sample:
    """Draw the kept elements of the groups that a part of a tensor touches.

    Args:
        index (`tuple[slice, ...]`): the part.
        shape (`tuple[int, ...]`): the shape of the whole tensor, of at least one dimension.
        kept (`int`): how many elements of a row are kept.
        seed (`int`): the seed of the draw.
        device (`torch.device`): the device of the result.
    """
    rows, columns = rows_and_columns(index, shape)
    width = shape[-1]
    # Group j has the columns from j * width // kept to (j + 1) * width // kept.
    first = 0
    if width:
        first = -(-(columns.start + 1) * kept // width) - 1
    last = first
    if width and columns.stop > columns.start:
        last = -(-columns.stop * kept // width)
    bounds = torch.arange(first, last + 1, dtype=torch.int64, device=device) * width // max(kept, 1)
    starts = bounds[:-1]
    sizes = bounds.diff()
    bits = random_bits(row_keys(seed, "sample", rows.to(device)), first, last)
    positions = starts - columns.start + (bits * sizes >> 16)
    return Sample(slice(first, last), positions, sizes.float())


def scatter(values: Tensor, positions: Tensor, width: int) -> Tensor:
    """Return (R, width) zeros with (R, G) values added at their columns; positions outside are left out."""
    inside = (positions >= 0) & (positions < width)
    result = values.new_zeros(values.shape[0], width)
    return result.scatter_add_(1, positions.clamp(0, max(width - 1, 0)), torch.where(inside, values, 0))
