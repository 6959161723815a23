"""A file is hashed while it is written."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dem_hub.hub.growing_digest import GrowingDigest


@pytest.mark.parametrize("sizes", [[], [0], [7], [7, 7], [1, 3 << 20, (3 << 20) + 5]])
@pytest.mark.parametrize("start", [0, 5])
def test_a_file_is_hashed_while_it_grows(tmp_path: Path, sizes: list[int], start: int) -> None:
    """Its first bytes are zeros until all others are there. `start` bytes are there from an earlier process."""
    file, header = tmp_path / "file", b"header"
    file.write_bytes(bytes(len(header)) + b"x" * start)

    def write() -> Iterator[int]:
        for size in sizes:
            with file.open("ab") as stream:
                stream.write(os.urandom(len(header) + start + size - stream.tell()))
            yield start + size
        with file.open("r+b") as stream:
            stream.write(header)

    with ThreadPoolExecutor(1) as pool:
        growing = GrowingDigest(pool, file, header)
        assert list(growing.follow(write())) == [start + size for size in sizes]
    assert growing.hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_that_does_not_grow_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"header")
    with ThreadPoolExecutor(1) as pool:
        growing = GrowingDigest(pool, tmp_path / "file", b"header")
        list(growing.follow([1]))
    with pytest.raises(EOFError, match="ends at byte 6, before 7"):
        growing.hexdigest()
