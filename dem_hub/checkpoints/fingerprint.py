"""Which base this is: a hash that is cheap, independent of sharding, and says *where* two checkpoints differ.

Each tensor is hashed over its dtype, shape and a fixed sample of its bytes; the whole over the sorted names and those digests. A
full hash would read every byte of every base at every load; a fine-tune touches nearly all elements, so a sample tells as surely.
"""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from dem_hub.checkpoints.reader import Checkpoint, TensorInfo

SAMPLES = 64  # places in a tensor
SAMPLE_BYTES = 64  # bytes at each place


class Places(Protocol):
    """A file of which single places are read."""

    def seek(self, position: int, /) -> object: ...
    def read(self, size: int, /) -> bytes: ...


def tensor_digest(info: TensorInfo, stream: Places) -> str:
    """The digest of one tensor, 16 hex digits, from at most 4 kB of its bytes in its open file.

    Small tensors are read whole; of larger ones `SAMPLES` pieces of `SAMPLE_BYTES` are read, evenly spaced, both ends included.
    """
    state = hashlib.sha256(f"{info.dtype} {list(info.shape)} ".encode())
    if info.nbytes <= SAMPLES * SAMPLE_BYTES:
        places, size = [info.start], info.nbytes
    else:
        span = info.nbytes - SAMPLE_BYTES
        places, size = [info.start + span * i // (SAMPLES - 1) for i in range(SAMPLES)], SAMPLE_BYTES
    for place in places:
        stream.seek(place)
        state.update(stream.read(size))
    return state.hexdigest()[:16]


def tensor_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """The digest of each tensor of a checkpoint, by name."""
    digests: dict[str, str] = {}
    for file in checkpoint.files:
        with file.open("rb", buffering=SAMPLE_BYTES) as stream:  # little more is read than is asked for
            digests |= {name: tensor_digest(info, stream) for name, info in checkpoint.items() if info.file == file}
    return digests


def fingerprint(digests: Mapping[str, str]) -> str:
    """The fingerprint of a checkpoint, 64 hex digits, from the digests of its tensors.

    Example:

    ```python
    >>> from dem_hub.checkpoints.fingerprint import fingerprint
    >>> fingerprint({"a": "00", "b": "11"}) == fingerprint({"b": "11", "a": "00"})
    True

    ```
    """
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
