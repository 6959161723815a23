"""Pushing during a run, on the tests' own Hub: what arrives, and that no fault of the Hub ends or delays the training."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import Trainer

from dem_hub import DEMCallback, DEMModel, DistributionVector
from dem_hub.cli.app import main
from dem_hub.errors import ConfigError
from dem_hub.training import background_push as uploading
from dem_hub.training.background_push import Uploader
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models
from tests.support.training_runs import adapted, arguments, load, rows, train

BASE = "org/base"


@pytest.fixture
def base(hub: Hub, llama: Models) -> str:
    """The base on the Hub, with a licence."""
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo(BASE)
    HfApi().upload_folder(repo_id=BASE, folder_path=llama.base)
    HfApi().upload_file(
        repo_id=BASE, path_in_repo="README.md", path_or_fileobj=b"---\nlicense: apache-2.0\n---\n# Base\n"
    )
    return BASE


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried as often as ever, at once."""
    monkeypatch.setattr(uploading, "DELAYS", (0.0, 0.0, 0.0))


def test_a_run_leaves_a_vector_on_the_hub(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    callback = DEMCallback(base, push_to_hub=True, hub_model_id="ann/maths", datasets=["org/maths"])
    trainer = train(load(llama.base), callback, tmp_path)
    assert set(hub.files("ann/maths")) == {"vector_config.json", "vector_model.safetensors", "norms.png", "README.md"}
    back = DistributionVector.from_pretrained("ann/maths")
    assert back.sha256 == callback.vector.sha256
    assert (back.base.repo_id, back.base.commit) == (BASE, HfApi().model_info(BASE).sha)
    card = ModelCard(hub.files("ann/maths")["README.md"].decode())
    card.validate()
    assert (card.data.base_model, card.data.datasets, card.data.license) == ([BASE], ["org/maths"], "apache-2.0")
    loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    assert all(
        text in card.text
        for text in ("| steps | 4 |", f"| loss | {loss} |", "| datasets | org/maths |", "](norms.png)")
    )
    DEMModel.from_pretrained(BASE, vectors={"ann/maths": 0.4})


def test_a_lora_run(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    train(
        adapted(llama.base),
        DEMCallback(base, push_to_hub=True, hub_model_id="ann/lora", datasets=["org/maths"]),
        tmp_path,
    )
    names = {"adapter_config.json", "adapter_model.safetensors", "dem_training.json", "norms.png", "README.md"}
    assert set(hub.files("ann/lora")) == names
    assert json.loads(hub.files("ann/lora")["adapter_config.json"])["base_model_name_or_path"] == BASE
    card = ModelCard(hub.files("ann/lora")["README.md"].decode())
    card.validate()
    assert card.data.datasets == ["org/maths"] and "| steps | 4 |" in card.text
    DEMModel.from_pretrained(BASE, vectors={"ann/lora": 0.4})


def test_each_save_is_a_commit_or_gives_way(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    callback = DEMCallback(
        base, when="save", push_to_hub=True, hub_model_id="ann/maths", hub_revision="draft", hub_private_repo=True
    )
    train(load(llama.base), callback, tmp_path, save_steps=1)
    assert HfApi().model_info("ann/maths").private
    assert DistributionVector.from_pretrained("ann/maths", revision="draft").sha256 == callback.vector.sha256
    commits = [
        commit.title for commit in HfApi().list_repo_commits("ann/maths", revision="draft") if "Push" in commit.title
    ]
    assert 1 <= len(commits) <= 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")  # transformers, as it pushes
def test_the_trainers_own_repository_is_left_alone(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    """The Trainer pushes its folder, and the vector's name is made from its name."""
    callback = DEMCallback(base, push_to_hub=True)
    settings = arguments(tmp_path / "run", push_to_hub=True, hub_model_id="ann/model", save_steps=4, hub_strategy="end")
    trainer = Trainer(load(llama.base), settings, train_dataset=rows(), callbacks=[callback])
    trainer.train()
    trainer.save_model()
    assert callback.folder == tmp_path / "run" / "_dem" / "vector"
    assert not [name for name in hub.files("ann/model") if "vector" in name or "_dem" in name or "norms" in name]
    assert "vector_config.json" in hub.files("ann/model-vector")
    with pytest.raises(ConfigError, match="Give the vector its own repository"):
        Trainer(
            load(llama.base),
            settings,
            train_dataset=rows(),
            callbacks=[DEMCallback(base, push_to_hub=True, hub_model_id="ann/model")],
        ).train()
    inside = DEMCallback(base, output_dir=tmp_path / "run" / "mine")
    with pytest.raises(ConfigError, match="which the Trainer pushes. Name a folder elsewhere"):
        Trainer(load(llama.base), settings, train_dataset=rows(), callbacks=[inside]).train()


# What goes wrong, before training


@pytest.mark.usefixtures("without_matplotlib")
@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT's own look at the Hub
@pytest.mark.parametrize("make", [load, adapted], ids=["full", "lora"])
def test_a_model_of_another_revision(
    hub: Hub, base: str, llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[..., Any]
) -> None:
    """The model has no record of its commit, so its weights tell."""
    commit = HfApi().model_info(BASE).sha
    HfApi().upload_folder(repo_id=BASE, folder_path=llama.full)
    for name, told in ((f"{BASE}@{commit}", False), (BASE, True)):
        caplog.clear()
        train(make(BASE, revision=commit), DEMCallback(name), tmp_path / str(told), max_steps=1)
        assert ("Before its first step the model is not the base" in caplog.text) == told


def test_a_base_that_nobody_else_has(hub: Hub, llama: Models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Say what the Hub calls it"):
        train(load(llama.base), DEMCallback(push_to_hub=True, hub_model_id="ann/maths"), tmp_path)
    assert not HfApi().repo_exists("ann/maths")


def test_no_right_to_write(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    callback = DEMCallback(base, push_to_hub=True, hub_model_id="bob/maths")
    with pytest.raises(HfHubHTTPError, match="don't have the rights"):
        train(load(llama.base), callback, tmp_path)
    assert not (tmp_path / "checkpoint-2").exists()


# What goes wrong, during training

FAULTS = [
    pytest.param({"method": "POST", "pattern": "/commit/", "status": 503}, id="503"),
    pytest.param({"method": "POST", "pattern": "/commit/", "status": 429}, id="429"),
    pytest.param({"method": "POST", "pattern": "/commit/", "status": 412}, id="412"),
    pytest.param({"method": "POST", "pattern": "/commit/", "status": 403}, id="403"),
    pytest.param({"method": "POST", "pattern": "/preupload/", "status": 401}, id="401"),
    pytest.param({"method": "PUT", "pattern": "", "origin": "cdn", "status": 503}, id="storage"),
    pytest.param({"method": "POST", "pattern": "objects/batch", "cut": 5}, id="cut"),
]


@pytest.mark.usefixtures("without_matplotlib")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_fails_to_the_end(
    hub: Hub, base: str, llama: Models, tmp_path: Path, sleeps: list[float], caplog: pytest.LogCaptureFixture, fault: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The run ends as it would have; the vector is whole on disk, and the command in the log pushes it."""
    callback = DEMCallback(base, when="save", push_to_hub=True, hub_model_id="ann/maths")
    with hub.fault(**fault) as struck:
        trainer = train(load(llama.base), callback, tmp_path)
    assert struck.hits and trainer.state.global_step == 4
    assert "The push to 'ann/maths' failed" in caplog.text and "It is complete in" in caplog.text
    assert hub.user.token not in caplog.text
    expected = DistributionVector.extract(llama.base, tmp_path / "checkpoint-4")
    assert callback.vector.sha256 == expected.sha256
    command = caplog.records[-1].getMessage().splitlines()[-1].split()
    assert command[:2] == ["dem-hub", "push"]
    assert main(command[1:]) == 0
    assert DistributionVector.from_pretrained("ann/maths").sha256 == expected.sha256


LOST = pytest.param(
    {"method": "POST", "pattern": "/commit/", "lost": True}, id="lost answer"
)  # it was done, and is found done


@pytest.mark.usefixtures("without_matplotlib")
@pytest.mark.parametrize("fault", [LOST, *(one for one in FAULTS if one.id not in ("403", "401"))])
def test_a_hub_that_fails_once(
    hub: Hub,
    base: str,
    llama: Models,
    tmp_path: Path,
    sleeps: list[float],
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
) -> None:
    callback = DEMCallback(base, push_to_hub=True, hub_model_id="ann/maths")
    with hub.fault(**fault, times=1), caplog.at_level(logging.INFO, "dem_hub"):
        train(load(llama.base), callback, tmp_path)
    assert "Pushed to 'ann/maths'" in caplog.text and "It is complete in" not in caplog.text
    assert DistributionVector.from_pretrained("ann/maths").sha256 == callback.vector.sha256


def test_a_hub_that_is_away_at_the_start(
    hub: Hub, base: str, llama: Models, tmp_path: Path, sleeps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    callback = DEMCallback(base, push_to_hub=True, hub_model_id="ann/maths")
    with hub.fault("POST", "/api/repos/create", status=503, times=1):
        train(load(llama.base), callback, tmp_path)
    assert "The Hub did not answer as it should" in caplog.text
    assert DistributionVector.from_pretrained("ann/maths").sha256 == callback.vector.sha256


def test_a_slow_hub_does_not_hold_up_training(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    """Steps go on while the push of an earlier save waits for its answer."""
    callback = DEMCallback(base, when="save", push_to_hub=True, hub_model_id="ann/maths")
    settings = arguments(tmp_path, save_steps=1, max_steps=3)
    trainer = Trainer(load(llama.base), settings, train_dataset=rows(), callbacks=[callback])
    trained: list[int] = []
    end = callback.on_train_end

    def answer_at_the_end(*args: Any, **kwargs: Any) -> None:
        latest = time.monotonic() + 60
        while not fault.hits:  # until the push of the first save is on its way
            assert time.monotonic() < latest, "nothing was pushed"
            time.sleep(0.01)
        trained.append(trainer.state.global_step)
        hub.journal.released.set()
        end(*args, **kwargs)

    callback.on_train_end = answer_at_the_end  # type: ignore[method-assign]
    with hub.fault("POST", "/preupload/", delay=600, times=1) as fault:
        trainer.train()
    hub.journal.released.clear()
    assert trained == [3]
    assert DistributionVector.from_pretrained("ann/maths").sha256 == callback.vector.sha256


# The queue, without a Hub


def make(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    new = folder / "new"
    new.write_text(text)
    new.replace(folder / "vector")
    return folder


def test_only_the_newest_waits_and_never_two_at_once(tmp_path: Path) -> None:
    pushed: list[str] = []
    running, started, gate = threading.Lock(), threading.Event(), threading.Event()

    def push(folder: Path) -> None:
        assert running.acquire(blocking=False), "two at once"
        started.set()
        gate.wait(10)
        pushed.append((folder / "vector").read_text())
        running.release()

    uploader = Uploader(push, "ann/maths")
    for number in range(4):
        uploader.submit(make(tmp_path / "v", str(number)))
        assert started.wait(10), "the first is on its way before the next comes"
    gate.set()
    assert uploader.finish() is None
    assert pushed == ["0", "3"], "a snapshot each: the first is what it was when it was submitted"
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_newer_vector_ends_the_attempts_at_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "DELAYS", (30.0,))
    tried: list[str] = []
    first = threading.Event()

    def push(folder: Path) -> None:
        tried.append((folder / "vector").read_text())
        first.set()
        if tried[-1] == "old":
            raise ConnectionError("away")

    uploader = Uploader(push, "ann/maths")
    uploader.submit(make(tmp_path / "v", "old"))
    assert first.wait(10)
    start = time.monotonic()
    uploader.submit(make(tmp_path / "v", "new"))
    assert uploader.finish() is None
    assert tried == ["old", "new"] and time.monotonic() - start < 10


def test_no_snapshot(tmp_path: Path) -> None:
    """It is told at the end, and does not end the run."""
    pushed: list[Path] = []
    uploader = Uploader(pushed.append, "ann/maths")
    uploader.submit(tmp_path / "gone")
    assert isinstance(uploader.finish(), OSError)
    assert list(tmp_path.iterdir()) == []
    uploader.submit(make(tmp_path / "v", "newer"))
    assert uploader.finish() is None and len(pushed) == 1


@pytest.mark.parametrize(
    ("error", "attempts"), [(ConnectionError("away"), 4), (ConfigError("wrong"), 1)], ids=["passing", "lasting"]
)
def test_what_is_tried_again(tmp_path: Path, error: Exception, attempts: int) -> None:
    tried: list[Path] = []

    def push(folder: Path) -> None:
        tried.append(folder)
        raise error

    uploader = Uploader(push, "ann/maths")
    uploader.submit(make(tmp_path / "v", "1"))
    assert uploader.finish() is error
    assert len(tried) == attempts
