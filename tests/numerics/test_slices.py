"""Parts of tensors: what a loader may ask for, blocks of rows, and which rows and columns a part is."""

import pytest
import torch

from dem_hub.numerics.slices import Index, full_index, index_shape, normalize_index, row_blocks, rows_and_columns


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (..., (slice(0, 3), slice(0, 4))),
        (slice(1, 2), (slice(1, 2), slice(0, 4))),
        ((slice(None), slice(-2, None)), (slice(0, 3), slice(2, 4))),
        ((..., slice(0, 1)), (slice(0, 3), slice(0, 1))),
        ((slice(5, 9), ...), (slice(3, 3), slice(0, 4))),
        ((), (slice(0, 3), slice(0, 4))),
    ],
    ids=["all", "rows", "last columns", "ellipsis first", "beyond the end", "nothing"],
)
def test_normalize_index(index: object, expected: object) -> None:
    assert normalize_index(index, (3, 4)) == expected


@pytest.mark.parametrize("index", [1, slice(0, 3, 2), (slice(None), 0)], ids=["integer", "step", "integer column"])
def test_other_indices_are_refused(index: object) -> None:
    with pytest.raises(TypeError, match="only"):
        normalize_index(index, (3, 4))


@pytest.mark.parametrize("shape", [(7, 3), (1,), (), (0, 3), (4, 2, 2)], ids=str)
@pytest.mark.parametrize("elements", [1, 6, 100])
def test_row_blocks_cover_all_rows_once(shape: tuple[int, ...], elements: int) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [tensor[block] for block in row_blocks(full_index(shape), elements)]
    if shape:
        assert torch.equal(torch.cat(parts) if parts else tensor[:0], tensor)
    assert all(
        part.shape == index_shape(block)
        for part, block in zip(parts, row_blocks(full_index(shape), elements), strict=True)
    )


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        ((), ()),
        ((5,), (slice(1, 4),)),
        ((4, 3), (slice(1, 3), slice(0, 2))),
        ((2, 3, 4), (slice(1, 2), slice(1, 3), slice(2, 4))),
    ],
    ids=str,
)
def test_rows_and_columns(shape: tuple[int, ...], index: Index) -> None:
    """Against a tensor that counts its own elements."""
    counting = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rows, columns = rows_and_columns(index, shape)
    flat = counting.reshape(-1, shape[-1] if shape else 1)
    assert torch.equal(flat[rows][:, columns].reshape(index_shape(index)), counting[index])
