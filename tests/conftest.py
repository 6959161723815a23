"""What every test has: an empty Hugging Face home, no network, no progress bars, and tiny models made once a session."""

import os
import tempfile

# Before huggingface_hub is imported: it reads these once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dem_hub-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Models, Zoo

OTHERS = (  # what the libraries warn of among themselves
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let the warnings of other libraries pass where warnings are errors."""
    for line in OTHERS:
        config.addinivalue_line("filterwarnings", line)


def pytest_unconfigure() -> None:
    """Take the empty home away again."""
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors are faster on one thread, and several workers share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse sockets to anywhere but this machine."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise OSError(f"The tests have no network; something connects to {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


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
