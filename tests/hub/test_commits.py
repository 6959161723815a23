"""A push ends on top of what others pushed in between, or says which files are in conflict."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from dem_hub import DistributionVector, VectorStore
from dem_hub.errors import PushConflictError
from dem_hub.hub.commits import Change, push
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models

BASE = "org/base"


def test_two_push_to_one_store_at_once(
    hub: Hub, base: str, llama: Models, vector: DistributionVector, tmp_path: Path
) -> None:
    """The second commit is refused, made again on top of the first, and both vectors are there."""
    stores = []
    for name in ("maths", "code"):
        store = VectorStore.create(tmp_path / name, BASE)
        store.add(name, vector)
        stores.append(store)
    stores[0].push_to_hub("ann/vectors")
    other = DistributionVector.extract(llama.base, llama.low, codec="dense")
    stores[0].add("law", other)
    raced = []

    def compose_late(head: object) -> Change:  # between the second's look at the branch and its commit
        if not raced:
            raced.append(head)
            stores[0].push_to_hub("ann/vectors")
        return original(head)

    import dem_hub.vectors.store_publishing as module

    real = module.push

    def racing(repo_id: str, compose: object, *rest: object) -> object:
        nonlocal original
        if raced:
            return real(repo_id, compose, *rest)  # type: ignore[arg-type]
        original = compose
        return real(repo_id, compose_late, *rest)  # type: ignore[arg-type]

    original = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "push", racing)
        stores[1].push_to_hub("ann/vectors")
    assert list(VectorStore.from_pretrained("ann/vectors")) == ["code", "law", "maths"]
    assert len(hub.requests("POST", "/api/models/ann/vectors/commit")) == 4  # one of them refused


def test_a_conflict_names_the_files(hub: Hub, api: HfApi) -> None:
    calls = []

    def compose(head: object) -> Change:
        calls.append(head)
        api.upload_file(repo_id="ann/r", path_in_repo="a.txt", path_or_fileobj=b"theirs %d" % len(calls))
        return Change({"a.txt": "ours"})

    with pytest.raises(
        PushConflictError, match=r"moved from \w+ to \w+ while this was pushed, and the same files changed"
    ) as caught:
        push("ann/r", compose, {}, "x")  # type: ignore[arg-type]
    assert "'a.txt'" in str(caught.value)
    assert hub.files("ann/r")["a.txt"] == b"theirs 1"


def test_another_file_is_no_conflict(hub: Hub, api: HfApi) -> None:
    calls = []

    def compose(head: object) -> Change:
        calls.append(head)
        if len(calls) == 1:
            api.upload_file(repo_id="ann/r", path_in_repo="b.txt", path_or_fileobj=b"theirs")
        return Change({"a.txt": "ours"})

    push("ann/r", compose, {}, "x")  # type: ignore[arg-type]
    assert (len(calls), hub.files("ann/r")) == (2, {"a.txt": b"ours", "b.txt": b"theirs"})


def test_parent_commit(hub: Hub, base: str, vector: DistributionVector) -> None:
    first = vector.push_to_hub("ann/maths", base_model=base)
    second = vector.push_to_hub("ann/maths", base_model=base, commit_message="again", parent_commit=first.oid)
    if second.oid != first.oid:
        with pytest.raises(PushConflictError, match=f"is at {second.oid}, and parent_commit is {first.oid}"):
            vector.push_to_hub("ann/maths", base_model=base, parent_commit=first.oid)
    with pytest.raises(PushConflictError, match="parent_commit is " + "0" * 40):
        vector.push_to_hub("ann/maths", base_model=base, parent_commit="0" * 40)
