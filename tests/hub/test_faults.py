"""The table of faults: an operation succeeds or raises one clear error, leaves nothing half done, and works again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from dem_hub import DEMModel, DistributionVector, VectorStore
from dem_hub.errors import CheckpointError, HubError, PushConflictError
from dem_hub.hub.references import VectorSource
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, RECIPE, STORE, VECTOR, Published, keep_only

pytestmark = pytest.mark.usefixtures("sleeps")

ANY = ".*"
FILES = "/resolve/"
WEIGHTS = r"/resolve/.*safetensors"
Error = type[Exception] | None


def load_vector() -> object:
    return DistributionVector.from_pretrained(VECTOR)


def load_recipe() -> torch.nn.Module:
    return DEMModel.from_pretrained(RECIPE)


def load_auto() -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(RECIPE)  # type: ignore[no-any-return]


def open_member() -> object:
    return VectorStore.from_pretrained(STORE)["code"]


# Each with a repository that it reads and that the faults are about. The Auto class's own look at `ann/dem` is
# transformers'.
LOADS: dict[str, tuple[Callable[[], object], str]] = {
    "vector": (load_vector, VECTOR),
    "recipe": (load_recipe, BASE),
    "auto": (load_auto, BASE),
    "member": (open_member, STORE),
}

# A fault, the addresses that it is at, and what the load raises (`None`: it succeeds).
LOAD_FAULTS: dict[str, tuple[dict[str, Any], str, Error]] = {
    "401": ({"status": 401}, ANY, HfHubHTTPError),
    "403 gated": ({"status": 403, "code": "GatedRepo"}, FILES, GatedRepoError),
    "404 repository": ({"status": 404, "code": "RepoNotFound"}, ANY, RepositoryNotFoundError),
    "404 file": ({"status": 404}, FILES, EntryNotFoundError),
    "412": ({"status": 412}, ANY, HfHubHTTPError),
    "429 for a while": ({"status": 429, "retry_after": 7, "times": 2}, FILES, None),
    "429": ({"status": 429, "retry_after": 7}, ANY, HubError),
    "503 once": ({"status": 503, "times": 1}, FILES, None),
    "503": ({"status": 503}, ANY, HubError),
    "503 of files": ({"status": 503}, FILES, HubError),
    "503 of the storage": ({"status": 503, "origin": "cdn"}, WEIGHTS, HubError),
    "cut once": ({"cut": 20, "times": 1}, WEIGHTS, None),
    "cut": ({"cut": 20}, WEIGHTS, HubError),
    "cut everywhere": ({"cut": 20}, ANY, HubError),
    "truncated": ({"truncate": 100}, WEIGHTS, HubError),
    "truncated everywhere": ({"truncate": 5}, ANY, HubError),
    "corrupted": ({"corrupt": True}, WEIGHTS, CheckpointError),
    "corrupted config": ({"corrupt": True, "origin": "hub"}, r"/resolve/.*config\.json", CheckpointError),
    "slow": ({"delay": 0.05}, FILES, None),
}


@pytest.mark.parametrize("fault", LOAD_FAULTS)
@pytest.mark.parametrize("operation", LOADS)
def test_load(hub: Hub, published: Published, operation: str, fault: str) -> None:
    load, repo_id = LOADS[operation]
    what, addresses, error = LOAD_FAULTS[fault]
    with hub.fault("*", f"/{repo_id}({addresses}|$)", **what) as struck:
        if error is None:
            load()
        else:
            with pytest.raises(error) as caught:
                load()
            assert_clear(caught.value, repo_id)
    assert struck.hits, "the fault met nothing"
    assert_cache_is_true(hub)
    load()
    assert_cache_is_true(hub)


def test_slower_than_the_client_waits(hub: Hub, published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(huggingface_hub.constants, name, 0.05)
    with (
        hub.fault("*", WEIGHTS, origin="cdn", delay=0.3),
        pytest.raises(HubError, match="The connection failed.*ReadTimeout") as caught,
    ):
        load_vector()
    assert_clear(caught.value, VECTOR)
    monkeypatch.undo()


@pytest.mark.parametrize("status", [503, 429])
def test_forced_download(hub: Hub, published: Published, status: int) -> None:
    """The client raises a bare `ValueError` for it. The cached files stay."""
    load_vector()
    with hub.fault("HEAD", FILES, status=status), pytest.raises(HubError, match=f"It answered {status}") as caught:
        DistributionVector.from_pretrained(VECTOR, force_download=True)
    assert_clear(caught.value, VECTOR)
    assert_cache_is_true(hub)
    load_vector()


def test_cache_steps_in(hub: Hub, published: Published) -> None:
    load_recipe()
    with hub.fault("*", ANY, status=503) as fault:
        load_recipe()
    assert fault.hits


def test_nobody_listens(hub: Hub, published: Published, open_addresses: set[tuple[str, int]]) -> None:
    open_addresses.clear()
    with pytest.raises(HubError, match="ConnectError") as caught:
        load_vector()
    assert_clear(caught.value, VECTOR)


def test_a_recipe_is_saved_whole_or_not_at_all(hub: Hub, published: Published, tmp_path: Path) -> None:
    with hub.fault("*", f"{BASE}{FILES}", status=503), pytest.raises(HubError):
        published.recipe.save_pretrained(tmp_path / "saved")
    assert [path for path in tmp_path.iterdir() if "saved" in path.name] == []
    published.recipe.save_pretrained(tmp_path / "saved")
    assert {"config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "saved").iterdir()}


def assert_clear(error: BaseException, repo_id: str) -> None:
    """Check that an error names what was asked, where, and what to do; an error of the client has our note."""
    text = " ".join([str(error), *getattr(error, "__notes__", ())])
    assert repo_id in text
    if isinstance(error, HubError):
        assert error.__cause__ is not None
        assert re.search(r"(Try|Push) again", text)
    elif isinstance(error, HfHubHTTPError):
        assert "on the Hub" in text


def assert_cache_is_true(hub: Hub) -> None:
    """No file in a snapshot is anything but what the Hub has, and nothing half-written lies anywhere."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    assert not [path for path in cache.rglob("*") if path.name.endswith((".incomplete", ".partial"))]
    for snapshot in cache.glob("models--*/snapshots/*"):
        there = hub.files("/".join(snapshot.parent.parent.name.split("--")[1:]), snapshot.name)
        for path in snapshot.rglob("*"):
            if not path.is_dir():
                assert path.read_bytes() == there[path.relative_to(snapshot).as_posix()], path


# Pushes. What each writes is in one commit, so that nothing before the commit can be taken for a vector.


def push_vector(published: Published) -> None:
    DistributionVector.from_pretrained(published.vector).push_to_hub("ann/new", base_model=BASE)


def push_store(published: Published) -> None:
    VectorStore.from_pretrained(published.store).push_to_hub("ann/new")


def push_recipe(published: Published) -> None:
    """Push with a new vector, so that there is a large file to upload."""
    record = published.recipe.vectors[0]
    local = type(record)(str(published.vector), 0.5, sha256=record.sha256)
    type(published.recipe)(published.recipe.base, (local,)).push_to_hub("ann/new", include_vectors=True)


PUSHES = {"vector": push_vector, "store": push_store, "recipe": push_recipe}

# The steps of a push, by the requests that they are.
STEPS = {
    "create": ("POST", "/api/repos/create"),
    "look": ("GET", "/api/models/ann/new"),
    "modes": ("POST", "/preupload/"),
    "places": ("POST", "/objects/batch"),
    "upload": ("PUT", "/upload/"),
    "verify": ("POST", "/api/lfs/verify"),
    "commit": ("POST", "/commit/"),
}
STATUSES: dict[int, type[Exception]] = {
    401: HfHubHTTPError, 403: HfHubHTTPError, 404: HfHubHTTPError, 412: HfHubHTTPError, 429: HubError, 503: HubError,
}  # fmt: skip
IN_COMMIT = STATUSES | {
    412: PushConflictError
}  # somebody was quicker, which the client's commit says at any of its steps
PUSH_FAULTS: list[tuple[str, str, dict[str, Any], Error]] = [
    *((operation, "commit", {"status": status}, error) for operation in PUSHES for status, error in IN_COMMIT.items()),
    *((operation, "commit", {"status": 412, "times": 1}, None) for operation in PUSHES),
    *((operation, "upload", {"status": status}, error) for operation in PUSHES for status, error in IN_COMMIT.items()),
    *((operation, "upload", {"status": 503, "times": 2}, None) for operation in PUSHES),
    *(("vector", step, {"status": status}, error) for step in ("create", "look") for status, error in STATUSES.items()),
    *(
        ("vector", step, {"status": status}, error)
        for step in ("modes", "places")
        for status, error in IN_COMMIT.items()
    ),
    *(("vector", "verify", {"status": status}, error) for status, error in STATUSES.items() if status != 412),
    *(
        (operation, "commit", what, None)
        for operation in PUSHES
        for what in ({"lost": True}, {"delay": 0.05}, {"cut": 5}, {"truncate": 5})
    ),
    *(("vector", step, {"lost": True}, HubError) for step in ("create", "look", "modes")),
    *(("vector", "upload", {"lost": True, "times": 1}, None),),
    *(
        ("vector", step, what, HubError)
        for step in ("create", "look", "modes", "places")
        for what in ({"cut": 5}, {"truncate": 5})
    ),
]


def _name(value: object) -> str | None:
    return "+".join(f"{key}={one}" for key, one in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize(("operation", "step", "what", "error"), PUSH_FAULTS, ids=_name)
def test_push(hub: Hub, published: Published, operation: str, step: str, what: dict[str, Any], error: Error) -> None:
    push = PUSHES[operation]
    keep_only(hub, BASE)
    with hub.fault(*STEPS[step], **what) as struck:
        if error is None:
            push(published)
        else:
            with pytest.raises(error) as caught:
                push(published)
            assert_clear(caught.value, "ann/new")
    assert struck.hits, "the fault met nothing"
    there = hub.files("ann/new") if ("models", "ann/new") in hub.store.repos else {}
    assert (there == {}) == (error is not None), "half a push"
    push(published)
    assert_whole(hub, operation, published)


def assert_whole(hub: Hub, operation: str, published: Published) -> None:
    if operation == "vector":
        assert DistributionVector.from_pretrained("ann/new").config is not None
    elif operation == "store":
        assert [vector.config is not None for vector in VectorStore.from_pretrained("ann/new").values()] == [True, True]
    else:
        assert DEMModel.from_pretrained("ann/new").dem.coefficients == {"ann/new//vectors/vector": 0.5}


def test_lost_answer_is_one_commit(hub: Hub, published: Published) -> None:
    """The commit that arrived is found again, and not made twice."""
    vector = DistributionVector.from_pretrained(published.vector)
    with hub.fault("POST", "/commit/", lost=True) as fault:
        info = vector.push_to_hub("ann/new", base_model=BASE)
    assert fault.hits == 1
    repo = hub.store.repos["models", "ann/new"]
    assert next(commit.id for commit in repo.history("main")) == info.oid
    assert len(repo.commits) == 2, "the first, which the Hub makes, and ours"
    assert DistributionVector.from_pretrained(VectorSource("ann/new", info.oid)).sha256 == vector.sha256


def test_lost_answer_of_a_pull_request(hub: Hub, published: Published) -> None:
    """A lost pull request cannot be told from an equal one, so none is opened again, and the error says where to look."""
    vector = DistributionVector.from_pretrained(published.vector)
    with hub.fault("POST", "/commit/", lost=True), pytest.raises(HubError) as caught:
        vector.push_to_hub("ann/new", base_model=BASE, create_pr=True)
    assert "look at the repository before you push again" in " ".join(caught.value.__notes__)
    assert len(hub.store.repos["models", "ann/new"].discussions) == 1


def test_lost_answer_and_a_line_that_stays_dead(hub: Hub, published: Published) -> None:
    vector = DistributionVector.from_pretrained(published.vector)
    with (
        hub.fault("POST", "/commit/", lost=True),
        hub.fault("GET", "/api/models/ann/new", status=503, after=1),
        pytest.raises(HubError) as caught,
    ):
        vector.push_to_hub("ann/new", base_model=BASE)
    assert "Pushing again does no harm" in " ".join(caught.value.__notes__)
    vector.push_to_hub("ann/new", base_model=BASE)
    assert len(hub.store.repos["models", "ann/new"].commits) == 2
