"""A tensor that is computed when it is copied, and no more of it than is copied.

A server that divides a model among ranks hands whole tensors to its weight loaders. These take the part that a rank
keeps (`narrow`) and copy it into the model (`copy_`), and leave out what the rank has no place for, such as the layers
of another pipeline stage. So a rank computes only what it keeps. Any other operation computes the tensor first, as it
stands by then: a loader that does something else is slower, and gets the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dem_hub.numerics.slices import Index, index_shape

Compute = Callable[[Index], Tensor]


class DeferredTensor(torch.Tensor):
    """A slice of a tensor that nothing has been computed of yet.

    Args:
        compute (`Callable`): Returns a slice, by its index.
        index (`tuple[slice, ...]`): The slice, see [`dem_hub.numerics.slices`].
        dtype (`torch.dtype`): Of what `compute` returns.
        device (`torch.device`): Of what `compute` returns.
    """

    _compute: Compute
    _index: Index

    @staticmethod
    def __new__(cls, compute: Compute, index: Index, dtype: torch.dtype, device: torch.device) -> "DeferredTensor":
        deferred = Tensor._make_wrapper_subclass(cls, index_shape(index), dtype=dtype, device=device)
        deferred._compute = compute
        deferred._index = index
        return deferred

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def computed(self) -> Tensor:
        """Compute the slice."""
        return self._compute(self._index)

    def part(self, dim: int = 0, start: int | None = None, end: int | None = None) -> "DeferredTensor":
        """Return the positions from `start` to `end` of one dimension. Nothing is computed."""
        taken = self._index[dim]
        first, stop, _ = slice(start, end).indices(taken.stop - taken.start)
        index = list(self._index)
        index[dim] = slice(taken.start + first, taken.start + max(first, stop))
        return DeferredTensor(self._compute, tuple(index), self.dtype, self.device)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it like this, and has no types for it
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # `narrow` and brackets arrive as this one, as (tensor, dim, start, end, step).
        if func is torch.ops.aten.slice.Tensor and args[4:] in ((), (1,)) and not kwargs:
            return args[0].part(*args[1:4])
        if func is torch.ops.aten.detach.default:
            return args[0].part()
        args, kwargs = tree_map_only(DeferredTensor, DeferredTensor.computed, (args, dict(kwargs or {})))
        return func(*args, **kwargs)
