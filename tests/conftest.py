"""What every test has: an empty Hugging Face home, no network, no progress bars, and tiny models made once a session.

A test that takes `hub` has a Hub of its own, on this machine; all others have none, and sockets are refused to them.
"""

import gc
import itertools
import os
import tempfile

from tests.fake_hub.session import HUB

# Before huggingface_hub is imported: it reads these once.
os.environ["HF_ENDPOINT"] = HUB.endpoint
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dem_hub-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["no_proxy"] = "127.0.0.1"  # in lower case it wins over NO_PROXY
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import shutil
import socket
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import close_session

from dem_hub.numerics import passes
from tests.fake_hub.server import Hub
from tests.support.counting_models import Counters, make_counters
from tests.support.crossed_models import make_crossed
from tests.support.published_repos import Published, publish
from tests.support.tiny_models import Models, Zoo

OTHERS = (  # what the libraries warn of among themselves
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
    "ignore:Use 'content=:DeprecationWarning",  # huggingface_hub of itself, as it sends a file
)


# The libraries and the list of tests are half a million objects that stay. A full collection looks at each of them, for
# a third of a second, and tests cause hundreds. So there is none until all are listed, and later ones leave these out,
# and from time to time what tests have loaded since.
gc.disable()

TESTS_UNTIL_FREEZE = 300
FINISHED = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let the warnings of other libraries pass where warnings are errors."""
    for line in OTHERS:
        config.addinivalue_line("filterwarnings", line)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let garbage be collected from here on, but not among what is there by now."""
    found = yield
    gc.freeze()
    gc.enable()
    return found


def pytest_runtest_logfinish() -> None:
    """Leave out what is there after some hundreds of tests: the libraries that they have loaded, without their garbage."""
    if next(FINISHED) % TESTS_UNTIL_FREEZE == 0:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Take the empty home away again, and the Hub."""
    HUB.stop()
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors are faster on one thread, and several workers share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def compiled_passes() -> None:
    """Use the compiled passes for tiny models, too, for which a process of its own would not load them."""
    passes.BY_TORCH = -1


@pytest.fixture(autouse=True)
def open_addresses(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """Refuse sockets to everywhere, except to what a fixture adds here."""
    connect = socket.socket.connect
    allowed: set[tuple[str, int]] = set()

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address not in allowed:
            raise OSError(f"The tests have no network; something connects to {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return allowed


@pytest.fixture
def hub(open_addresses: set[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub with an empty cache before it. `ann`, who may write, is logged in; `token=False` is nobody."""
    if not HUB.started:
        HUB.start()
    HUB.reset()
    open_addresses |= HUB.addresses
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", HUB.user.token)
    yield HUB
    end_questions()
    close_session()
    if HUB.journal.failures:
        raise ExceptionGroup("The tests' Hub itself failed.", HUB.journal.failures)


def end_questions() -> None:
    """Let the threads end that dem_hub left behind at a time limit: one may ask again, in the middle of the next test."""
    HUB.journal.released.set()
    for thread in threading.enumerate():
        if thread.name in {"dem_hub-question", "dem_hub-download"}:
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} still asks the tests' Hub."
    HUB.journal.released.clear()


@pytest.fixture
def published(hub: Hub, llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A Hub with a base, a vector, a store and a recipe on it, and an empty cache."""
    found = publish(hub, llama)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    return found


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client backs off as it always does, in no time. What it would have slept, in seconds."""
    found: list[float] = []

    class Clock:
        """The time module as the client sees it."""

        sleep = staticmethod(found.append)

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", Clock())
    return found


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Models and vectors, made when first asked for. Tests do not write into them."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def llama(zoo: Zoo) -> Models:
    """A tied Llama in bfloat16 and its fine-tunes."""
    return zoo.models("llama-tied", "bfloat16")


@pytest.fixture
def example_names(zoo: Zoo) -> dict[str, str]:
    """What examples in the docs call things."""
    models = zoo.models("llama-tied", "bfloat16")
    vector = zoo.vector("llama-tied", "bfloat16", "lowrank")
    return {"base_folder": str(models.base), "vector_folder": str(vector), "finetuned_folder": str(models.low)}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead nowhere but here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Fine-tunes that count by their own steps, for searches; made once."""
    return make_counters(tmp_path_factory.mktemp("counters"))


@pytest.fixture(scope="session")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Fine-tunes that harm each other's distribution, so that RegMean is better than any weighted sum."""
    return make_crossed(tmp_path_factory.mktemp("crossed"))


@pytest.fixture(scope="session")
def gentle(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Trained so briefly that the kept logits tell the whole truth."""
    return make_counters(tmp_path_factory.mktemp("gentle"), steps=8, learning_rate=4e-4)
