"""Ranged reads: what comes from a slow, endless, lying or broken server is one `HubError`, in bounded time and memory."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import CheckpointError, HubError
from dem_hub.hub import remote
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.hub.remote import LARGEST_READ, RangeReader, RemoteFile, RemoteWeights
from dem_hub.vectors.comparison import compare
from tests.fake_hub.server import Hub
from tests.support.published_repos import VECTOR, Published
from tests.support.tiny_models import Models

DATA = bytes(range(256)) * 512  # 128 kB
WEIGHTS = r"/resolve/.*safetensors"


@pytest.fixture
def weights(hub: Hub) -> RemoteWeights:
    api = HfApi()
    api.create_repo("ann/raw")
    api.upload_file(path_or_fileobj=DATA, path_in_repo="model.safetensors", repo_id="ann/raw")
    return RemoteWeights(VectorSource("ann/raw"), HubOptions(), {"model.safetensors": RemoteFile(len(DATA), "")})


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIME_LIMIT", 0.4)
    monkeypatch.setattr(remote, "SLOWEST", 1e12)
    monkeypatch.setattr(remote, "_GRACE", 0.4)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, len(DATA)), (1000, 70_000), (len(DATA) - 3, len(DATA))])
def test_the_bytes_are_those_of_the_file(weights: RemoteWeights, start: int, stop: int) -> None:
    assert weights.read("model.safetensors", start, stop) == DATA[start:stop]


def test_a_reader_reads_what_the_file_has(weights: RemoteWeights) -> None:
    reader = RangeReader(weights, "model.safetensors")
    for position in (0, 5, 90_000, 17, len(DATA) - 64):
        reader.seek(position)
        assert reader.read(64) == DATA[position : position + 64]


def test_an_endless_answer_takes_no_memory(hub: Hub, weights: RemoteWeights) -> None:
    with hub.fault("GET", WEIGHTS, endless=True):
        tracemalloc.start()
        assert weights.read("model.safetensors", 7, 1007) == DATA[7:1007]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4_000_000


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "slow body": ({"drip": "body"}, r"The connection failed \(ReadTimeout: \d+ bytes of 1000 came in time\)"),
    "slow headers": ({"drip": "headers"}, r"ReadTimeout: no whole answer came within 0 seconds"),
    "no answer": ({"delay": 5}, r"ReadTimeout: no whole answer came within 0 seconds"),
    "cut": ({"cut": 20}, "The connection failed"),
    "truncated": ({"truncate": 20}, "Its answer broke off .20 bytes of 1000 of model.safetensors"),
    "another range": (
        {"headers": {"Content-Range": "bytes 0-999/131072"}},
        "was asked for from byte 7, and came as 'bytes 0-999/131072'",
    ),
    "compressed": ({"headers": {"Content-Encoding": "gzip"}}, "came as gzip, and was asked for as it is"),
    "503": ({"status": 503}, "It answered 503"),
    "lost": ({"lost": True}, "The connection failed"),
}


@pytest.mark.usefixtures("short_time", "sleeps")
@pytest.mark.parametrize("fault", FAULTS)
def test_one_error_in_bounded_time(hub: Hub, weights: RemoteWeights, fault: str) -> None:
    what, message = FAULTS[fault]
    start = time.monotonic()
    with (
        hub.fault("GET", WEIGHTS, origin="cdn", **what),
        pytest.raises(HubError, match=f"'ann/raw' .*{message}.*Nothing was loaded"),
    ):
        weights.read("model.safetensors", 7, 1007)
    assert time.monotonic() - start < 4
    assert weights.read("model.safetensors", 7, 1007) == DATA[7:1007], "the next try succeeds"


def test_a_server_that_ignores_ranges(hub: Hub, weights: RemoteWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fake_hub import reading

    ranged = reading.ranged
    monkeypatch.setattr(reading, "ranged", lambda body, wanted, headers: ranged(body, None, headers))
    assert weights.read("model.safetensors", 0, 1000) == DATA[:1000]
    with pytest.raises(HubError, match="was asked for from byte 7, and came as 'the whole file'"):
        weights.read("model.safetensors", 7, 1007)


def test_a_refusal_stays_one(hub: Hub, weights: RemoteWeights) -> None:
    with pytest.raises(EntryNotFoundError, match="absent"):
        weights.read("absent.safetensors", 0, 10)


@pytest.mark.parametrize("count", [LARGEST_READ + 1, 1 << 60, -5])
def test_no_header_is_that_large(hub: Hub, weights: RemoteWeights, count: int) -> None:
    hub.forget_requests()
    with pytest.raises(HubError, match=f"says that {count} bytes of it are its header"):
        weights.read("model.safetensors", 8, 8 + count)
    assert hub.requests() == []


def test_a_header_that_lies_about_its_length(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dem_hub.hub import headers

    api = HfApi()
    api.create_repo("ann/liar")
    api.upload_file(
        path_or_fileobj=(1 << 40).to_bytes(8, "little") + DATA, path_in_repo="model.safetensors", repo_id="ann/liar"
    )
    size = RemoteFile(1 << 41, "")
    monkeypatch.setattr(headers, "_weights_on_hub", lambda source, options: {"model.safetensors": size})
    with pytest.raises(HubError, match="bytes of it are its header"):
        resolve_headers(VectorSource("ann/liar"), ("*.safetensors",), scratch=tmp_path)


@pytest.mark.usefixtures("short_time", "sleeps")
@pytest.mark.parametrize("what", [{"drip": "body"}, {"drip": "headers"}, {"truncate": 20}])
def test_looking_at_a_vector(hub: Hub, published: Published, what: dict[str, Any]) -> None:
    with hub.fault("GET", WEIGHTS, **what), pytest.raises(HubError, match="Nothing was loaded"):
        DistributionVector.describe(VECTOR)


@pytest.mark.parametrize(
    "read",
    [
        lambda vector, base, folder: vector.decode(next(iter(vector.config.tensors)), base),
        lambda vector, base, folder: vector.save_pretrained(folder / "copy"),
        lambda vector, base, folder: vector.push_to_hub("ann/copy"),
        lambda vector, base, folder: compare([vector, vector], Base(Resolved.local(base))),
    ],
    ids=["decode", "save", "push", "compare"],
)
def test_tensors_that_are_still_on_the_hub_are_not_read_as_zeros(
    published: Published, llama: Models, read: Callable[..., object], tmp_path: Path
) -> None:
    vector = DistributionVector.describe(VECTOR)
    with pytest.raises(CheckpointError, match=f"Only the headers of '{VECTOR}'.*from_pretrained"):
        read(vector, llama.base, tmp_path)
    assert not (tmp_path / "copy").exists()
