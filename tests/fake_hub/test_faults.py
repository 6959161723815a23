"""What each fault does to the plain client. Tests of the library build on this."""

import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, get_session, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx

from tests.fake_hub.commits import add, commit
from tests.fake_hub.faults import Fault
from tests.fake_hub.server import Hub

DATA = bytes(range(256)) * 64  # 16 kB
WEIGHTS = r"/resolve/.*safetensors"


@pytest.fixture
def weights(api: HfApi) -> str:
    """A repository with a file in LFS; its name."""
    commit(api, add("a.safetensors", DATA))
    return "a.safetensors"


def cached() -> list[Path]:
    """What the cache holds of weights, half-written too."""
    return [
        path
        for path in Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*")
        if path.is_file() and path.suffix in {".safetensors", ".incomplete"}
    ]


@pytest.mark.parametrize(
    ("what", "error", "tries"),
    [
        ({"status": 401}, HfHubHTTPError, 1),
        ({"status": 403, "code": "GatedRepo"}, GatedRepoError, 1),
        ({"status": 404}, EntryNotFoundError, 1),
        ({"status": 404, "code": "RepoNotFound"}, RepositoryNotFoundError, 1),
        ({"status": 412}, LocalEntryNotFoundError, 1),
        ({"status": 429, "retry_after": 7}, LocalEntryNotFoundError, 7),
        ({"status": 503}, LocalEntryNotFoundError, 7),
    ],
)
def test_status_of_a_download(
    hub: Hub, weights: str, what: dict[str, object], error: type[Exception], tries: int, sleeps: list[float]
) -> None:
    """One quick look, for a cache to step in; with an empty one the client looks again, patiently."""
    with hub.fault("HEAD", WEIGHTS, **what) as fault, pytest.raises(error):
        hf_hub_download("ann/x", weights)
    assert fault.hits == tries and cached() == []
    assert sleeps == {1: [], 7: [1, 2, 4, 8, 8] if "retry_after" not in what else [8] * 5}[tries]
    assert Path(hf_hub_download("ann/x", weights)).read_bytes() == DATA


def test_cache_steps_in(hub: Hub, weights: str, sleeps: list[float]) -> None:
    hf_hub_download("ann/x", weights)
    with hub.fault("HEAD", WEIGHTS, status=503) as fault:
        assert Path(hf_hub_download("ann/x", weights)).read_bytes() == DATA
        with pytest.raises(ValueError, match="Force download failed"):
            hf_hub_download("ann/x", weights, force_download=True)
    assert fault.hits == 2


def test_rate_limit_is_waited_for(hub: Hub, weights: str, sleeps: list[float]) -> None:
    with hub.fault("GET", WEIGHTS, origin="cdn", status=429, retry_after=7, times=2):
        assert Path(hf_hub_download("ann/x", weights)).read_bytes() == DATA
    assert sleeps == [8, 8], "Retry-After and a second"


def test_server_error_of_the_storage_is_not_retried(hub: Hub, weights: str, sleeps: list[float]) -> None:
    with hub.fault("GET", WEIGHTS, origin="cdn", status=503) as fault, pytest.raises(HfHubHTTPError):
        hf_hub_download("ann/x", weights)
    assert fault.hits == 1 and cached() == []


def test_cut_once(hub: Hub, weights: str, sleeps: list[float]) -> None:
    with hub.fault("GET", WEIGHTS, cut=1000, times=1):
        assert Path(hf_hub_download("ann/x", weights)).read_bytes() == DATA
    assert [one.fault for one in hub.requests("GET", WEIGHTS, origin="cdn")] == ["cut", None]


def test_cut_always(hub: Hub, weights: str, sleeps: list[float]) -> None:
    with (
        hub.fault("GET", WEIGHTS, cut=1000) as fault,
        pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"),
    ):
        hf_hub_download("ann/x", weights)
    assert fault.hits == 6 and sleeps == [1] * 5 and cached() == []


def test_cut_late_goes_on_where_it_was(hub: Hub, api: HfApi, sleeps: list[float]) -> None:
    """In steps of 10 MiB: what came after the last whole one comes again."""
    data = hashlib.sha256(b"").digest() * 393216  # 12 MiB
    commit(api, add("a.safetensors", data))
    with hub.fault("GET", WEIGHTS, cut=11 * 2**20, times=1):
        assert Path(hf_hub_download("ann/x", "a.safetensors")).read_bytes() == data
    assert [one.headers.get("range") for one in hub.requests("GET", WEIGHTS, origin="cdn")] == [
        None,
        f"bytes={10 * 2**20}-",
    ]


def test_truncated(hub: Hub, weights: str) -> None:
    with (
        hub.fault("GET", WEIGHTS, truncate=1000),
        pytest.raises(OSError, match="should be of size 16384 but has size 1000"),
    ):
        hf_hub_download("ann/x", weights)
    assert cached() == []


def test_corrupted_goes_unnoticed(hub: Hub, weights: str) -> None:
    """The client checks sizes only: the reason why the library must hash."""
    with hub.fault("GET", WEIGHTS, corrupt=True):
        path = Path(hf_hub_download("ann/x", weights))
    got = path.read_bytes()
    assert len(got) == len(DATA) and sum(a != b for a, b in zip(got, DATA, strict=True)) == 1
    assert path.resolve().name == hashlib.sha256(DATA).hexdigest() != hashlib.sha256(got).hexdigest()


def test_slow(hub: Hub, weights: str) -> None:
    start = time.monotonic()
    with hub.fault("HEAD", WEIGHTS, delay=0.3):
        hf_hub_download("ann/x", weights)
    assert time.monotonic() - start >= 0.3


def test_slower_than_the_client_waits(hub: Hub, weights: str, sleeps: list[float]) -> None:
    """The first look gives up; the second waits longer."""
    with hub.fault("HEAD", WEIGHTS, delay=0.4) as fault:
        assert Path(hf_hub_download("ann/x", weights, etag_timeout=0.1)).read_bytes() == DATA
    assert fault.hits > 1


def test_server_errors_of_an_upload_are_retried(hub: Hub, api: HfApi, sleeps: list[float]) -> None:
    with hub.fault("PUT", "/upload/", status=503, times=3):
        commit(api, add("a.safetensors", DATA))
    assert sleeps == [1, 2, 4] and hub.files("ann/x") == {"a.safetensors": DATA}


def test_server_errors_that_stay(hub: Hub, api: HfApi, sleeps: list[float]) -> None:
    with (
        hub.fault("PUT", "/upload/", status=503) as fault,
        pytest.raises(RuntimeError, match=r"uploading 'a\.safetensors'"),
    ):
        commit(api, add("a.safetensors", DATA))
    assert fault.hits == 6 and sleeps == [1, 2, 4, 8, 8] and hub.files("ann/x") == {}


def test_commits_are_not_retried(hub: Hub, api: HfApi, sleeps: list[float]) -> None:
    with hub.fault("POST", "/commit/", status=503) as fault, pytest.raises(HfHubHTTPError):
        commit(api, add("a.txt", "1"))
    assert fault.hits == 1 and hub.files("ann/x") == {}


def test_answer_that_is_lost(hub: Hub, api: HfApi) -> None:
    """The commit is there, and the client does not know."""
    with hub.fault("POST", "/commit/", lost=True), pytest.raises(httpx.RemoteProtocolError):
        commit(api, add("a.txt", "1"))
    assert hub.files("ann/x") == {"a.txt": b"1"}


def test_which_requests(hub: Hub, weights: str) -> None:
    url = f"{hub.endpoint}/ann/x/resolve/main/{weights}"
    hub.forget_requests()
    with hub.fault("GET", WEIGHTS, origin="hub", status=500, after=1, times=1):
        assert [get_session().get(url, follow_redirects=False).status_code for _ in range(3)] == [302, 500, 302]
        assert get_session().head(url, follow_redirects=False).status_code == 302
    assert get_session().get(url, follow_redirects=False).status_code == 302
    assert [(one.method, one.status, one.fault) for one in hub.requests(pattern=WEIGHTS)] == [
        ("GET", 302, None), ("GET", 500, "500"), ("GET", 302, None), ("HEAD", 302, None), ("GET", 302, None),
    ]  # fmt: skip


def test_fault_that_does_nothing() -> None:
    with pytest.raises(ValueError, match="does nothing"):
        Fault("GET", "/")


def test_nothing_but_the_hub_is_reached(hub: Hub) -> None:
    with pytest.raises(httpx.ConnectError, match=r"no network; something connects to .*127\.0\.0\.1', 9"):
        get_session().get("http://127.0.0.1:9/")


def test_other_tests_are_offline() -> None:
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        HfApi().model_info("ann/x")


def test_many_at_once(hub: Hub, api: HfApi) -> None:
    """Of several pushes onto one parent one gets through; without a parent all do."""
    parent = api.model_info("ann/x").sha

    def push(number: int, parent: str | None) -> int:
        try:
            commit(api, add(f"{number}.safetensors", bytes([number + 1]) * 1000), parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda number: push(number, parent), range(8))) == [200, *[412] * 7]
        assert set(pool.map(lambda number: push(number, None), range(8))) == {200}
    assert hub.files("ann/x") == {f"{number}.safetensors": bytes([number + 1]) * 1000 for number in range(8)}


def test_another_process(hub: Hub, weights: str, tmp_path: Path) -> None:
    code = "import huggingface_hub as h; print(h.hf_hub_download('ann/x', 'a.safetensors'), h.whoami()['name'])"
    user = hub.add_user("bob")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path / "home", user=user),
        capture_output=True,
        text=True,
        check=True,
    )
    path, name = done.stdout.split()
    assert Path(path).read_bytes() == DATA and Path(path).is_relative_to(tmp_path / "home") and name == "bob"


def test_unknown_addresses(hub: Hub) -> None:
    answer = get_session().get(f"{hub.endpoint}/api/nothing")
    assert (answer.status_code, json.loads(answer.content)) == (
        404,
        {"error": "The tests' Hub has no GET /api/nothing"},
    )
    assert get_session().put(f"{hub.endpoint}/api/whoami-v2", content=b"x" * 100_000).status_code == 405
    assert get_session().get(f"{hub.endpoint}/api/models").json() == [], "the connection is still in step"
