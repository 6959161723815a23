"""Downloads end: a slow, an endless or a silent server is one `HubError`, in bounded time and on a bounded disk."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from dem_hub import DistributionVector
from dem_hub.errors import HubError
from dem_hub.hub import bounded, commits, remote
from dem_hub.hub.bounded import bounded as bounded_download
from dem_hub.hub.listing import licenses, list_vectors
from tests.conftest import end_questions
from tests.fake_hub.faults import Fault
from tests.fake_hub.server import Hub
from tests.support.published_repos import VECTOR, Published

SMALL = r"/resolve/.*vector_config.json"
WEIGHTS = r"/resolve/.*vector_model.safetensors"


@contextmanager
def time_flies(fault: Fault) -> Iterator[None]:
    """Let no time pass until the server has got the request that it will not answer, and from then on all there is.

    Whatever else is asked has its time, on the slowest machine.
    """

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            if fault.hits:
                self.now += 1000
            return self.now

    class Impatient(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            while wait([self], 0.01).not_done:
                if fault.hits:
                    raise TimeoutError
            return super().result()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "_POLL", 0.01)
        patch.setattr(bounded, "time", Clock())
        patch.setattr(remote, "Future", Impatient)
        yield


# An answer that is still to come when the test ends.
NEVER = {"delay": 600}

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "slow body": ({"drip": "body"}, r"ReadTimeout: no file has grown for 260 seconds"),
    "slow headers": ({"drip": "headers"}, r"ReadTimeout: no file has grown for 260 seconds"),
    "no answer": (NEVER, r"ReadTimeout: no file has grown for 260 seconds"),
    "endless": ({"endless": True}, r"ReadError: \d+ bytes came, and \d+ were announced"),
}


@pytest.mark.usefixtures("sleeps")
@pytest.mark.parametrize("path", [SMALL, WEIGHTS], ids=["config", "weights"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_error_in_bounded_time(hub: Hub, published: Published, fault: str, path: str) -> None:
    what, message = FAULTS[fault]
    with (
        hub.fault("GET", path, **what) as spoilt,
        # What never ends grows, and is stopped by its size.
        nullcontext() if fault == "endless" else time_flies(spoilt),
        pytest.raises(HubError, match=rf"'{VECTOR}' .*{message}.*Nothing was loaded"),
    ):
        DistributionVector.from_pretrained(VECTOR)
    assert spoilt.hits == 1
    blobs = list(Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*"))
    assert sum(blob.stat().st_size for blob in blobs) < 30_000_000
    # The thread that was left behind has the lock of the file.
    end_questions()
    assert DistributionVector.from_pretrained(VECTOR).commit, "the next try succeeds"


@pytest.mark.usefixtures("sleeps")
def test_the_head_of_a_push(hub: Hub, published: Published) -> None:
    head = commits.Head(VECTOR, None, {"README.md": ""})
    slow = hub.fault("GET", r"/resolve/.*README.md", drip="body")
    with slow as spoilt, time_flies(spoilt), pytest.raises(HubError, match="no file has grown"):
        head.read("README.md")


ASKED: dict[str, tuple[str, Callable[[], object]]] = {
    "headers": (r"/api/models/ann/maths/revision", lambda: DistributionVector.describe(VECTOR)),
    "listing": (r"/api/models", lambda: list_vectors("org/base")),
    "license": (r"/api/models", lambda: licenses([VECTOR])),
}


@pytest.mark.usefixtures("sleeps")
@pytest.mark.parametrize("what", [{"drip": "body"}, NEVER], ids=["slow", "silent"])
@pytest.mark.parametrize("question", ASKED)
def test_a_question_without_an_answer(hub: Hub, published: Published, question: str, what: dict[str, Any]) -> None:
    path, ask = ASKED[question]
    with (
        hub.fault("GET", path, **what) as spoilt,
        time_flies(spoilt),
        pytest.raises(HubError, match="ReadTimeout: no (whole answer came within 60|file has grown for 260) seconds"),
    ):
        ask()
    assert spoilt.hits == 1
    ask()


def test_a_file_that_another_process_downloads_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for the lock of that file, and nothing comes here meanwhile. It grows at every second look."""
    blobs = tmp_path / "models--org--base" / "blobs"
    blobs.mkdir(parents=True)
    seconds = count(0, 200)
    looks = count(1)
    is_whole = threading.Event()
    growing = bounded._growing

    def look(folder: Path) -> dict[str, tuple[int, int]]:
        number = next(looks)
        if number % 2:
            (blobs / "file.incomplete").write_bytes(bytes(number))
        if number == 12:
            is_whole.set()
        return growing(folder)

    def download(meter: object) -> str:
        is_whole.wait()
        return "done"

    monkeypatch.setattr(bounded, "_POLL", 0.01)
    monkeypatch.setattr(bounded, "_growing", look)
    monkeypatch.setattr(bounded, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
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
    assert ended.wait(60)
