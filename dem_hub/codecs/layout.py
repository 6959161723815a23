"""What the parts of one tensor must look like in a file: names, dtypes and shapes, known before any of it is read.

A layout answers two questions without a tensor: how many bytes a codec will take (so that a budget can be kept), and whether a file
that somebody else wrote is what its config says (so that a header that lies is refused and not decoded).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dem_hub.checkpoints.lazy import CODES, DTYPES, LazyTensor

FLOATS = tuple(code for code, dtype in DTYPES.items() if dtype.is_floating_point)


@dataclass(frozen=True)
class Part:
    """One part: the dtypes it may have (safetensors codes), and its shape.

    A size that the data decides has a name, and is the same wherever a layout has that name. An `optional` part may be missing.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | str, ...]
    optional: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in the first of its dtypes; sizes that the data decides count as 0."""
        return DTYPES[self.dtypes[0]].itemsize * math.prod(size if isinstance(size, int) else 0 for size in self.shape)

    def __str__(self) -> str:
        return f"{' or '.join(self.dtypes)} [{', '.join(map(str, self.shape))}]"


Layout = Mapping[str, Part]


def layout_bytes(layout: Layout) -> int:
    """Bytes of all parts that are always there.

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
    """What is wrong with the parts of a tensor, a line each; nothing is read but headers."""
    faults = [f"'{key}' has a part '{name}' that its codec does not have" for name in sorted(set(parts) - set(layout))]
    sizes: dict[int | str, int] = {}
    for name, part in layout.items():
        if name not in parts:
            if not part.optional:
                faults.append(f"'{key}' lacks its part '{name}'")
            continue
        dtype, shape = parts[name].get_dtype(), parts[name].get_shape()
        fits = len(shape) == len(part.shape) and all(
            found == (size if isinstance(size, int) else sizes.setdefault(size, found))
            for size, found in zip(part.shape, shape, strict=True)
        )
        if dtype not in part.dtypes or not fits:
            faults.append(f"'{key}::{name}' is {dtype} {shape}, and must be {part}")
    halves = [
        name
        for name, part in layout.items()
        if part.optional and name not in parts and any(size in sizes for size in part.shape)
    ]
    return faults + [f"'{key}' lacks its part '{name}', without which another means nothing" for name in halves]


def code_of(dtype: str) -> str:
    """The safetensors code of a dtype that an option names: `"bfloat16"` is BF16."""
    return next(code for known, code in CODES.items() if str(known) == f"torch.{dtype}")
