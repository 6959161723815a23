"""Weights that are still on the Hub: their files, sizes and hashes, and a few of their bytes by ranged requests.

From these a base is told from another one, and the cost of a merge is known, before gigabytes are downloaded. An
answer is read in pieces: no more bytes of it than were asked for, and no longer than a time limit.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dem_hub._version import __version__
from dem_hub.errors import HubError
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.failures import download_errors
from dem_hub.hub.references import VectorSource

_Result = TypeVar("_Result")

# Bytes that a ranged request takes at least. A fingerprint reads places of 64 bytes: in a tensor of up to 16 kB all
# of them come with one request. Chosen by hand, not measured.
_READ_AHEAD = 1 << 14
# Bytes of one ranged request: safetensors reads no header that is longer. Whatever says that it needs more is lying.
LARGEST_READ = 100_000_000
# Seconds that one ranged request may take in all, and bytes that a second more is given for: a line of 400 kbit/s.
# Chosen by hand, not measured.
TIME_LIMIT = 60.0
SLOWEST = 50_000
# Bytes of a refusal that are read: its message is a few lines.
_LONGEST_MESSAGE = 1 << 16
# Seconds for which the thread of a request may give up by itself, with a message that says how much came.
_GRACE = 1.0
# Headers that say how the text of an answer is sent, which a copy of a part of it is not.
_FRAMING = ("content-encoding", "content-length", "transfer-encoding")


@dataclass(frozen=True)
class RemoteFile:
    """A file's size in bytes and its sha256 (empty where the Hub does not say it: for small files)."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class RemoteWeights:
    """Files of weights of one commit that have not been downloaded, by their paths in the repository."""

    source: VectorSource
    options: HubOptions
    files: Mapping[str, RemoteFile]

    @property
    def nbytes(self) -> int:
        """The size of the download."""
        return sum(file.nbytes for file in self.files.values())

    @property
    def cache(self) -> Path:
        """The cache directory of the download."""
        from huggingface_hub import constants

        return Path(self.options.cache_dir or constants.HF_HUB_CACHE)

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each file that has one, by its name without the subfolder."""
        return {Path(path).name: file.sha256 for path, file in self.files.items() if file.sha256}

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop` of a file, by a ranged request.

        Raises:
            [`~dem_hub.errors.HubError`]: If the connection or the Hub failed, fewer bytes came, other bytes came than
                were asked for, or the answer took too long.
            `huggingface_hub.errors.HfHubHTTPError`: If the Hub refused.
        """
        from huggingface_hub.errors import SafetensorsParsingError

        wanted = stop - start
        if not 0 <= wanted <= LARGEST_READ:
            raise HubError(
                f"{path} of '{self.source.repo_id}' says that {wanted} bytes of it are its header, and {LARGEST_READ} "
                "are the most that one has. Nothing was loaded. Do not use this repository."
            )
        seconds = TIME_LIMIT + wanted / SLOWEST
        with download_errors(self.source):
            content = _within(seconds, lambda: self._fetch(path, start, stop, time.monotonic() + seconds))
            if len(content) < wanted:
                raise SafetensorsParsingError(f"{len(content)} bytes of {wanted} of {path}")
        return content

    def _fetch(self, path: str, start: int, stop: int, deadline: float) -> bytes:
        """Return at most the bytes `start` to `stop` of a file; fewer if the answer ended earlier."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(token=self.options.token, library_name="dem-hub", library_version=__version__)
        headers["range"] = f"bytes={start}-{stop - 1}"
        # A compressed answer could be much larger than what comes over the line.
        headers["accept-encoding"] = "identity"
        url = hf_hub_url(self.source.repo_id, path, revision=self.source.revision, endpoint=hub_api().endpoint)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.is_error:
                hf_raise_for_status(_short_copy(response, deadline))
            _check_answer(response, path, start)
            return _read_pieces(response, stop - start, deadline)


def _read_pieces(response: Any, count: int, deadline: float) -> bytes:
    """Return the first `count` bytes of an answer, fewer if it has fewer, and read no more than the piece after them.

    Raises:
        `ReadTimeout`: If they did not come before the deadline.
    """
    from huggingface_hub.utils import httpx

    content = bytearray()
    for piece in response.iter_raw():
        content += piece
        if len(content) >= count:
            break
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout(f"{len(content)} bytes of {count} came in time")
    return bytes(content[:count])


def _short_copy(response: Any, deadline: float) -> Any:
    """Return a refusal with no more than the beginning of its text. The client would read all of it."""
    headers = {name: value for name, value in response.headers.items() if name.lower() not in _FRAMING}
    text = _read_pieces(response, _LONGEST_MESSAGE, deadline)
    return type(response)(response.status_code, headers=headers, content=text, request=response.request)


def _check_answer(response: Any, path: str, start: int) -> None:
    """Refuse an answer that is not the range which was asked for.

    A server that ignores the range sends the whole file. That is what was asked for if the range begins at 0.
    """
    from huggingface_hub.errors import SafetensorsParsingError

    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise SafetensorsParsingError(f"{path} came as {encoding[:20]}, and was asked for as it is")
    said = response.headers.get("content-range", "")
    begins_there = said.startswith(f"bytes {start}-") if said else response.status_code == 206 or start == 0
    if not begins_there:
        raise SafetensorsParsingError(
            f"{path} was asked for from byte {start}, and came as '{said[:60] or 'the whole file'}'"
        )


def in_time(ask: Callable[[], _Result]) -> _Result:
    """Return what a question to the Hub returns, whose answer is small, or raise what it raises.

    The client asks some questions without any time limit.

    Raises:
        `ReadTimeout`: If there is no whole answer within a minute.
    """
    return _within(TIME_LIMIT, ask)


def _within(seconds: float, fetch: Callable[[], _Result]) -> _Result:
    """Return what a function returns, or raise what it raises, if that takes no longer than so many seconds.

    The client has a time limit for each piece of an answer and none for all of it, so a server that sends the lines of
    its headers byte by byte could hold a caller for ever. The function runs in a thread of its own, which is left
    behind when the time is up: it ends with its connection, and does not keep the process alive.

    Raises:
        `ReadTimeout`: If the time is up.
    """
    from huggingface_hub.utils import httpx

    outcome: Future[_Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(fetch())
        except BaseException as error:  # noqa: BLE001  # the caller's thread raises it
            outcome.set_exception(error)

    threading.Thread(target=run, name="dem_hub-question", daemon=True).start()
    try:
        return outcome.result(seconds + _GRACE)
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no whole answer came within {seconds:.0f} seconds") from error


@dataclass
class RangeReader:
    """A file on the Hub as a stream that can be read at any position, as far as a fingerprint needs one.

    Each request takes at least 16 kB, which are kept for the reads that follow.
    """

    weights: RemoteWeights
    path: str
    position: int = 0
    _start: int = 0  # of the bytes that are kept
    _kept: bytes = b""

    def seek(self, position: int) -> None:
        """Set the position of the next read."""
        self.position = position

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        offset = self.position - self._start
        if offset < 0 or offset + size > len(self._kept):
            stop = min(self.position + max(size, _READ_AHEAD), self.weights.files[self.path].nbytes)
            self._kept = self.weights.read(self.path, self.position, stop)
            self._start = self.position
            offset = 0
        self.position += size
        return self._kept[offset : offset + size]
