"""The token goes to the Hub's own origin, and to no other host, file, log or message; requests name dem_hub."""

import copy
import io
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMModel, DistributionVector, VectorStore, __version__
from dem_hub.cli.app import main
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Head
from dem_hub.hub.listing import list_vectors
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, RECIPE, STORE, VECTOR, Published, keep_only

OTHER = "hf_anotherSecretThatIsPassedByHand"


@pytest.fixture
def token(hub: Hub, published: Published, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token that is passed as an argument only: no user is logged in."""
    monkeypatch.delenv("HF_TOKEN")
    return hub.add_user("ann", token=OTHER, orgs=("org",)).token


def everything(published: Published, token: str, folder: Path) -> torch.nn.Module:
    """Push and load whatever there is."""
    vector = DistributionVector.from_pretrained(published.vector)
    vector.push_to_hub("ann/new", base_model=BASE, token=token, private=True)
    VectorStore.from_pretrained(published.store).push_to_hub("ann/new-store", token=token)
    model = DEMModel.from_pretrained(BASE, vectors={"ann/new": 0.5}, token=token)
    model.dem.push_to_hub("ann/new-dem", token=token, private=True)
    again = DEMModel.from_pretrained("ann/new-dem", token=token)
    again.dem.save_pretrained(folder / "recipe")
    DistributionVector.from_pretrained("ann/new", token=token).save_pretrained(folder / "vector")
    VectorStore.from_pretrained("ann/new-store", token=token)["code"]
    list_vectors(BASE, token=token)
    return again


def test_where_the_token_goes(
    hub: Hub,
    published: Published,
    token: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    keep_only(hub, BASE)
    everything(published, token, tmp_path)
    storage = hub.requests(origin="cdn")
    assert {seen.method for seen in storage} >= {"GET", "PUT"}, "large files went both ways"
    assert not [seen for seen in storage if "authorization" in seen.headers or token in repr(seen)]
    asked = hub.requests(origin="hub")
    assert not [seen for seen in asked if seen.path != "/api/validate-yaml" and seen.token not in (token, None)]
    assert any(seen.token == token for seen in asked)
    assert not [seen.path for seen in asked if token in seen.path or token in repr(seen.query)]
    for place in (tmp_path, Path(huggingface_hub.constants.HF_HUB_CACHE), Path(os.environ["HF_HOME"])):
        assert not [path for path in place.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    for _, repo_id in hub.store.repos:
        assert not [name for name, data in hub.files(repo_id).items() if token.encode() in data]
    assert caplog.records
    assert token not in caplog.text
    assert token not in "".join(capfd.readouterr())


def test_what_is_kept_of_it(published: Published, token: str) -> None:
    """A model that is written to a file takes no token along; a copy in this process keeps it."""
    model = DEMModel.from_pretrained(RECIPE, token=token)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert token.encode() not in buffer.getvalue()
    options = HubOptions(token, cache_dir="here")
    assert pickle.loads(pickle.dumps(options)) == HubOptions(None, cache_dir="here")
    assert copy.deepcopy(options) == options
    assert token not in repr(options) + repr(Head("ann/new", None, {}, token)) + repr(model.dem)


@pytest.mark.parametrize("status", [401, 403, 404, 412, 429, 503])
@pytest.mark.parametrize("operation", ["load", "push"])
@pytest.mark.usefixtures("sleeps")
def test_messages(
    hub: Hub, published: Published, token: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], status: int, operation: str,
) -> None:  # fmt: skip
    """No token is in the output of the command or in the most detailed log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", token)
    arguments = (
        ["info", VECTOR] if operation == "load" else ["push", str(published.vector), "ann/new", "--base-model", BASE]
    )
    with hub.fault("*", "/resolve/" if operation == "load" else "/commit/", status=status):
        assert main(arguments) == 2
    output = "".join(capfd.readouterr())
    if operation == "push":  # what goes is shown before it goes
        listed, _, error = output.partition("dem-hub push: ")
        assert listed.startswith("2 files (") and error
    else:
        assert output.startswith("dem-hub info: ")
    assert "Traceback" not in output
    assert token not in output + caplog.text


def test_a_token_that_nobody_has(hub: Hub, published: Published) -> None:
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="Invalid credentials") as caught:
        DistributionVector.from_pretrained(VECTOR, token="hf_wrongSecret")
    assert "hf_wrongSecret" not in str(caught.value) + "".join(caught.value.__notes__)


def test_no_token_where_none_is_wanted(hub: Hub, published: Published) -> None:
    DistributionVector.from_pretrained(VECTOR, token=False)
    assert [seen for seen in hub.requests() if "authorization" in seen.headers] == []


def search(published: Published) -> None:
    list_vectors(BASE)


def pushes(published: Published) -> None:
    DistributionVector.from_pretrained(published.vector).push_to_hub("ann/new", base_model=BASE, revision="draft")
    DistributionVector.from_pretrained(published.vector).push_to_hub(VECTOR, base_model=BASE, create_pr=True)
    VectorStore.from_pretrained(published.store).push_to_hub("ann/new-store")
    published.recipe.push_to_hub("ann/new-dem")


def loads(published: Published) -> None:
    DEMModel.from_pretrained(RECIPE)
    VectorStore.from_pretrained(STORE)["code"]


def header(published: Published) -> None:
    assert main(["info", VECTOR]) == 0


@pytest.mark.parametrize("operation", [search, pushes, loads, header])
def test_who_asks(hub: Hub, published: Published, operation: Callable[[Published], None]) -> None:
    """Every request that dem_hub makes names it. The storage is told nothing by the client's own uploads."""
    operation(published)
    asked = hub.requests(origin="hub")
    assert asked
    assert {seen.path for seen in asked if f"dem-hub/{__version__}" not in seen.headers.get("user-agent", "")} == set()
    assert hub.requests(pattern="telemetry|agent-harnesses") == []


def test_nobody_is_told_otherwise(hub: Hub, published: Published, tmp_path: Path) -> None:
    """In a fresh process with the client's telemetry as it comes, dem_hub sends none of its own."""
    environment = hub.environment(tmp_path / "home")
    del environment["HF_HUB_DISABLE_TELEMETRY"]
    code = f"from dem_hub import DistributionVector; DistributionVector.from_pretrained('{VECTOR}')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known = re.compile(
        r"/api/models/|/resolve/|/api/agent-harnesses"
    )  # the last is the client's, to name an agent that runs it
    assert {seen.path for seen in hub.requests() if not known.search(seen.path)} == set()


def test_private_files_come_with_the_token_passed_by_hand(
    hub: Hub, published: Published, token: str, tmp_path: Path
) -> None:
    """Everything a push or a save fetches on the way is asked for with the same token."""
    api = HfApi(token=token)
    api.update_repo_settings(BASE, visibility="private")
    model = DEMModel.from_pretrained(RECIPE, token=token)
    model.dem.push_to_hub("ann/new-dem", token=token)
    model.dem.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
