"""A view gives the slices that the tensor it stands for would give."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import EveryNthColumn, InMemory, LazyTensor, OnDevice, Rows, Transposed

MATRIX = torch.arange(48, dtype=torch.bfloat16).reshape(8, 6)
BASE = InMemory(MATRIX)

VIEWS: dict[str, tuple[LazyTensor, Tensor]] = {
    "in memory": (BASE, MATRIX),
    "on a device": (OnDevice(BASE, torch.device("cpu")), MATRIX),
    "transposed": (Transposed(BASE), MATRIX.T),
    "rows": (Rows(BASE, 2, 7), MATRIX[2:7]),
    "columns": (EveryNthColumn(BASE, 1, 3), MATRIX[:, 1::3]),
    "an expert's left factor": (Rows(EveryNthColumn(BASE, 1, 2), 4, 8), MATRIX[4:8, 1::2]),
    "rows of the transpose": (Rows(Transposed(BASE), 1, 5), MATRIX.T[1:5]),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    "index", [..., (slice(0, 2), slice(0, 1)), (slice(1, 2), slice(0, 2)), (slice(1, 1), slice(0, 2))]
)
def test_a_view_is_the_tensor_it_stands_for(name: str, index: Any) -> None:
    view, expected = VIEWS[name]
    assert view.get_shape() == list(expected.shape)
    assert view.get_dtype() == "BF16"
    assert torch.equal(view[index], expected[index])


@pytest.mark.parametrize("index", [..., (slice(0, 2),), (slice(1, 2),)])
def test_rows_of_a_vector(index: Any) -> None:
    vector = torch.arange(5.0)
    rows = Rows(InMemory(vector), 3, 5)
    assert rows.get_shape() == [2]
    assert torch.equal(rows[index], vector[3:5][index])
