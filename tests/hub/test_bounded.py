"""Downloads end: a slow, an endless or a silent server is one `HubError`, in bounded time and on a bounded disk."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dem_hub import DistributionVector
from dem_hub.errors import HubError
from dem_hub.hub import bounded, commits, remote
from dem_hub.hub.bounded import bounded as bounded_download
from dem_hub.hub.listing import licenses, list_vectors
from tests.fake_hub.server import Hub
from tests.support.published_repos import VECTOR, Published

SMALL = r"/resolve/.*vector_config.json"
WEIGHTS = r"/resolve/.*vector_model.safetensors"


@contextmanager
def short_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "TIME_LIMIT", 0.4)
        patch.setattr(remote, "SLOWEST", 1e12)
        patch.setattr(remote, "_GRACE", 0.1)
        yield


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "slow body": ({"drip": "body"}, r"ReadTimeout: no file has grown for 0 seconds"),
    "slow headers": ({"drip": "headers"}, r"ReadTimeout: no file has grown for 0 seconds"),
    "no answer": ({"delay": 5}, r"ReadTimeout: no file has grown for 0 seconds"),
    "endless": ({"endless": True}, r"ReadError: \d+ bytes came, and \d+ were announced"),
}


@pytest.mark.usefixtures("sleeps")
@pytest.mark.parametrize("path", [SMALL, WEIGHTS], ids=["config", "weights"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_error_in_bounded_time(hub: Hub, published: Published, fault: str, path: str) -> None:
    what, message = FAULTS[fault]
    start = time.monotonic()
    with (
        short_time(),
        hub.fault("GET", path, **what) as spoilt,
        pytest.raises(HubError, match=rf"'{VECTOR}' .*{message}.*Nothing was loaded"),
    ):
        DistributionVector.from_pretrained(VECTOR)
    assert spoilt.hits
    assert time.monotonic() - start < 5
    blobs = list(Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*"))
    assert sum(blob.stat().st_size for blob in blobs) < 30_000_000
    assert DistributionVector.from_pretrained(VECTOR).commit, "the next try succeeds"


@pytest.mark.usefixtures("sleeps")
def test_the_head_of_a_push(hub: Hub, published: Published) -> None:
    head = commits.Head(VECTOR, None, {"README.md": ""})
    slow = hub.fault("GET", r"/resolve/.*README.md", drip="body")
    with short_time(), slow, pytest.raises(HubError, match="no file has grown"):
        head.read("README.md")


ASKED: dict[str, tuple[str, Callable[[], object]]] = {
    "headers": (r"/api/models/ann/maths/revision", lambda: DistributionVector.describe(VECTOR)),
    "listing": (r"/api/models", lambda: list_vectors("org/base")),
    "license": (r"/api/models", lambda: licenses([VECTOR])),
}


@pytest.mark.usefixtures("sleeps")
@pytest.mark.parametrize("what", [{"drip": "body"}, {"delay": 3}], ids=["slow", "silent"])
@pytest.mark.parametrize("question", ASKED)
def test_a_question_without_an_answer(hub: Hub, published: Published, question: str, what: dict[str, Any]) -> None:
    path, ask = ASKED[question]
    start = time.monotonic()
    with short_time(), hub.fault("GET", path, **what) as spoilt, pytest.raises(HubError, match="ReadTimeout"):
        ask()
    assert spoilt.hits
    assert time.monotonic() - start < 3
    ask()


def test_a_file_that_another_process_downloads_is_waited_for(tmp_path: Path) -> None:
    """The client waits for the lock of that file, and nothing comes here meanwhile."""
    blobs = tmp_path / "models--org--base" / "blobs"
    blobs.mkdir(parents=True)

    def download(meter: object) -> str:
        for size in range(8):
            (blobs / "file.incomplete").write_bytes(bytes(size))
            time.sleep(0.1)
        return "done"

    with short_time():
        assert bounded_download(download, "org/base", tmp_path) == "done"


def test_an_error_stops_what_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the thread that waits. The others must not go on with the download."""
    ended = threading.Event()

    def interrupted(folder: Path) -> dict[str, tuple[int, int]]:
        raise KeyboardInterrupt

    def download(meter: Any) -> None:
        bar = meter(unit="B", total=10**9, disable=True)
        try:
            while True:
                bar.update(1)
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(bounded, "_growing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bounded_download(download, "org/base", tmp_path)
    assert ended.wait(5)
