"""The fingerprint of a base: a hash that is cheap, independent of sharding, and can say where two checkpoints differ.

Each tensor is hashed over its dtype, its shape and a fixed sample of its bytes; the fingerprint is the hash of the
sorted names and these digests. A full hash would read every byte of every base at every load. A fine-tune changes
nearly all elements, so a sample detects it as well.

A fingerprint is stored in every vector and recipe. No constant and no step here may change, or all of them would no
longer fit their bases.
"""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from dem_hub.checkpoints.reader import Checkpoint, TensorInfo

# Of a tensor, so many places of so many bytes are read: 4 kB at the most. Both chosen by hand, not measured.
SAMPLES = 64
SAMPLE_BYTES = 64
# Hex digits of a tensor's digest (64 bits).
_DIGEST_DIGITS = 16


class Seekable(Protocol):
    """A file of which single places are read."""

    def seek(self, position: int, /) -> object: ...
    def read(self, size: int, /) -> bytes: ...


def tensor_digest(info: TensorInfo, stream: Seekable) -> str:
    """Return the digest of one tensor, 16 hex digits, from at most 4 kB of its bytes.

    Args:
        info ([`TensorInfo`]): Where the tensor is. stream ([`Seekable`]): Its file. A tensor of up to 4 kB is read
        whole. Of a larger one `SAMPLES` pieces of `SAMPLE_BYTES` are read, evenly spaced, both ends included.
    """
    state = hashlib.sha256(f"{info.dtype} {list(info.shape)} ".encode())
    if info.nbytes <= SAMPLES * SAMPLE_BYTES:
        positions = [info.start]
        size = info.nbytes
    else:
        span = info.nbytes - SAMPLE_BYTES
        positions = [info.start + span * number // (SAMPLES - 1) for number in range(SAMPLES)]
        size = SAMPLE_BYTES
    for position in positions:
        stream.seek(position)
        state.update(stream.read(size))
    return state.hexdigest()[:_DIGEST_DIGITS]


def tensor_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the digest of each tensor of a checkpoint, by name."""
    digests: dict[str, str] = {}
    for file in checkpoint.files:
        # A small buffer: with the default one every read of 64 bytes would fetch kilobytes.
        with file.open("rb", buffering=SAMPLE_BYTES) as stream:
            for name, info in checkpoint.items():
                if info.file == file:
                    digests[name] = tensor_digest(info, stream)
    return digests


def fingerprint(digests: Mapping[str, str]) -> str:
    """Return the fingerprint of a checkpoint, 64 hex digits.

    Args:
        digests (`Mapping[str, str]`): The digest of each of its tensors, by name, in any order.

    Example:

    ```python
    >>> from dem_hub.checkpoints.fingerprint import fingerprint
    >>> fingerprint({"a": "00", "b": "11"}) == fingerprint({"b": "11", "a": "00"})
    True

    ```
    """
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
