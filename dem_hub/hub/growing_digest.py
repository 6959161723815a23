"""The hash of a file, worked out while this process writes it: the system still has in memory what was written."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

# Bytes that are read at a time. Chosen by hand, not measured.
_CHUNK = 1 << 20


class GrowingDigest:
    """The sha256 of a file that is written from front to back, worked out while it grows.

    Example:

    ```python
    >>> import tempfile
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from pathlib import Path
    >>> from dem_hub.hub.growing_digest import GrowingDigest
    >>> from dem_hub.hub.hashes import digest
    >>> file = Path(tempfile.mkdtemp()) / "file"
    >>> def write():
    ...     file.write_bytes(b"......tensors")
    ...     yield 7
    ...     with file.open("r+b") as stream:
    ...         stream.write(b"header")
    >>> with ThreadPoolExecutor(1) as pool:
    ...     growing = GrowingDigest(pool, file, b"header")
    ...     print(list(growing.follow(write())))
    [7]
    >>> growing.hexdigest() == digest(file)
    True

    ```
    """

    def __init__(self, pool: Executor, file: Path, header: bytes) -> None:
        """Begin with the first bytes.

        Args:
            pool (`Executor`): A pool of one thread, which reads and hashes.
            file (`Path`): The file.
            header (`bytes`): Its first bytes, which are written last.
        """
        self._pool = pool
        self._file = file
        self._header_size = len(header)
        self._position = len(header)
        self._sha256 = hashlib.sha256(header)
        self._reading: Future[None] | None = None

    def follow(self, written: Iterable[int]) -> Iterator[int]:
        """Yield each number of bytes that are written after the header, and hash them in the background."""
        for nbytes in written:
            self._reading = self._pool.submit(self._read_to, self._header_size + nbytes)
            yield nbytes

    def hexdigest(self) -> str:
        """Return the sha256 of the whole file, which nothing is written to any more: 64 hex digits."""
        if self._reading is not None:
            self._reading.result()
        self._read_to(self._file.stat().st_size)
        return self._sha256.hexdigest()

    def _read_to(self, position: int) -> None:
        with self._file.open("rb") as stream:
            stream.seek(self._position)
            while self._position < position:
                chunk = stream.read(min(_CHUNK, position - self._position))
                if not chunk:
                    raise EOFError(f"'{self._file}' ends at byte {self._position}, before {position}.")
                self._sha256.update(chunk)
                self._position += len(chunk)
