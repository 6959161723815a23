"""The layout of a tensor's parts in a file: their names, dtypes and shapes, known before any data is read.

A layout answers two questions without a tensor: how many bytes a codec takes (so that a budget can be kept), and
whether a file that somebody else wrote is what its config says (so that a wrong header is refused and not decoded).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dem_hub.checkpoints.lazy import CODES, DTYPES, LazyTensor

FLOATS = tuple(code for code, dtype in DTYPES.items() if dtype.is_floating_point)


@dataclass(frozen=True)
class Part:
    """One part: the dtypes that it may have (safetensors codes), and its shape.

    A size that the data decides is a name. It must be the same size in all parts of a layout that have this name. An
    `optional` part may be missing.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | str, ...]
    optional: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in the first of its dtypes; 0 if the data decides its size."""
        elements = math.prod(size if isinstance(size, int) else 0 for size in self.shape)
        return DTYPES[self.dtypes[0]].itemsize * elements

    def __str__(self) -> str:
        return f"{' or '.join(self.dtypes)} [{', '.join(map(str, self.shape))}]"


Layout = Mapping[str, Part]


def layout_bytes(layout: Layout) -> int:
    """Return the bytes of all parts that are never missing.

    Example:

    ```python
    >>> from dem_hub.codecs import get_codec
    >>> from dem_hub.codecs.layout import layout_bytes
    >>> layout_bytes(get_codec("dense", {"dtype": "bfloat16"}).layout((4, 8)))
    64

    ```
    """
    return sum(part.nbytes for part in layout.values() if not part.optional)


def check_parts(key: str, parts: Mapping[str, LazyTensor], layout: Layout) -> list[str]:
    """Return what is wrong with the parts of a tensor, a line for each fault. Only headers are read.

    Args:
        key (`str`): the tensor's name.
        parts (`Mapping[str, LazyTensor]`): its parts in the file.
        layout (`Mapping[str, Part]`): the parts that it must have.
    """
    faults = [f"'{key}' has a part '{name}' that its codec does not have" for name in sorted(set(parts) - set(layout))]
    sizes: dict[str, int] = {}  # of the dimensions that have a name
    for name, part in layout.items():
        if name not in parts:
            if not part.optional:
                faults.append(f"'{key}' lacks its part '{name}'")
            continue
        dtype = parts[name].get_dtype()
        shape = parts[name].get_shape()
        if dtype not in part.dtypes or not _fits(shape, part, sizes):
            faults.append(f"'{key}::{name}' is {dtype} {shape}, and must be {part}")
    for name, part in layout.items():
        # Optional parts belong together if they share a named size, as `index` and `remainder` of the codec `dense` do.
        if part.optional and name not in parts and not sizes.keys().isdisjoint(part.shape):
            faults.append(f"'{key}' has only one of two parts that belong together: '{name}' is missing")
    return faults


def _fits(shape: list[int], part: Part, sizes: dict[str, int]) -> bool:
    """Return whether a shape is that of a part.

    Sizes with a name are compared with `sizes`, or added to it at their first occurrence.
    """
    if len(shape) != len(part.shape):
        return False
    for size, wanted in zip(shape, part.shape, strict=True):
        expected = wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size)
        if size != expected:
            return False
    return True


def code_of(dtype: str) -> str:
    """Return the safetensors code of a dtype that an option names: BF16 for `"bfloat16"`."""
    return next(code for known, code in CODES.items() if str(known) == f"torch.{dtype}")
