"""Downloads of the Hub's client that come to an end, whatever the server does.

The client has a time limit for each piece of an answer and none for all of them, and counts the bytes of a file when
it is whole. So a server could hold a caller for ever, or fill the disk. Here a download is stopped if far more bytes
come than were announced, or if no file of the cache has grown for some minutes. A process that waits for another one,
which downloads the same file, sees that file grow. Meanwhile, what has come is hashed.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from dem_hub.hub import remote
from dem_hub.hub.arrivals import Arrivals, arrivals

_Result = TypeVar("_Result")

# Bytes by which a file grows at a time: the client writes pieces of 10 MB.
_PIECE = 10_000_000
# Of all bytes that were announced, so many times as many may come. Xet, which sends blocks, may send some twice.
_MOST = 2
# Seconds between two looks at the cache. Chosen by hand, not measured.
_POLL = 0.25


def bounded(
    download: Callable[[type[Any]], _Result], repo_id: str, cache_dir: str | os.PathLike[str] | None
) -> _Result:
    """Return what a download of the Hub's client returns, or raise what it raises.

    Args:
        download (`Callable`): Calls the client with a class of progress bars, its argument `tqdm_class`.
        repo_id (`str`): The repository.
        cache_dir (`str` or `os.PathLike`, *optional*): The cache.

    Raises:
        `ReadTimeout`: If no file has grown in time. A line of 40 kB/s is fast enough.
        `ReadError`: If more than twice as many bytes come as were announced.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import close_session

    folder = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"))
    stopped = threading.Event()
    outcome: Future[_Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(download(_meter(stopped)))
        except BaseException as error:  # noqa: BLE001  # the caller's thread raises it
            outcome.set_exception(error)

    threading.Thread(target=run, name="dem_hub-download", daemon=True).start()
    try:
        with arrivals(folder) as files:
            _wait(outcome, folder, files)
            files.remember()
    except BaseException:
        # The thread that is left behind ends with its connection, or with the next piece of its file.
        stopped.set()
        close_session()
        raise
    return outcome.result()


def _wait(outcome: Future[Any], folder: Path, files: Arrivals) -> None:
    """Wait for the end of a download, and hash what comes.

    Raises:
        `ReadTimeout`: If no file has grown in time.
    """
    from huggingface_hub.utils import httpx

    limit = remote.TIME_LIMIT + _PIECE / remote.SLOWEST
    since = time.monotonic()
    before = _growing(folder)
    while wait([outcome], min(_POLL, limit / 2)).not_done:
        files.read()
        now = _growing(folder)
        if now != before:
            before = now
            since = time.monotonic()
        elif time.monotonic() - since > limit:
            raise httpx.ReadTimeout(f"no file has grown for {limit:.0f} seconds")


def _growing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of each file of a repository, also of those that are being downloaded."""
    files = {}
    for path in folder.glob("blobs/*"):
        try:
            status = path.stat()
        except OSError:  # it was moved to its place
            continue
        files[path.name] = (status.st_size, status.st_mtime_ns)
    return files


def _meter(stopped: threading.Event) -> type[Any]:
    """Return a class of progress bars that count bytes, and end the download which they show."""
    from huggingface_hub.utils import httpx, tqdm

    class Meter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]
            # A bar that is not shown has no unit, and counts nothing.
            self._counts_bytes = options.get("unit") == "B"
            self._received = 0

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes:
                self._received += int(n or 0)
                if stopped.is_set():
                    raise httpx.ReadError("the download was stopped")
                if self.total and self._received > _MOST * self.total:
                    raise httpx.ReadError(f"{self._received} bytes came, and {self.total} were announced")
            shown: bool | None = super().update(n)
            return shown

    return Meter
