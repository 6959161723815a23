"""Weights that are still on the Hub: their files, sizes and hashes, and a few of their bytes by ranged requests.

From these a base is told from another one, and the cost of a merge is known, before gigabytes are downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dem_hub._version import __version__
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.failures import download_errors
from dem_hub.hub.references import VectorSource

# Bytes that a ranged request takes at least. A fingerprint reads places of 64 bytes: in a tensor of up to 16 kB all
# of them come with one request. Chosen by hand, not measured.
_READ_AHEAD = 1 << 14


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
            [`~dem_hub.errors.HubError`]: If the connection or the Hub failed, or fewer bytes came.
            `huggingface_hub.errors.HfHubHTTPError`: If the Hub refused.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import SafetensorsParsingError
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(token=self.options.token, library_name="dem-hub", library_version=__version__)
        headers["range"] = f"bytes={start}-{stop - 1}"
        url = hf_hub_url(self.source.repo_id, path, revision=self.source.revision, endpoint=hub_api().endpoint)
        with download_errors(self.source):
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
            content = bytes(response.content[: stop - start])  # a server may ignore the range and send all of it
            if len(content) < stop - start:
                raise SafetensorsParsingError(f"{len(content)} bytes of {stop - start} of {path}")
        return content


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
