"""A store of vectors: what goes in comes out, the index is never ahead of what is there, and another base's vector stays out."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dem_hub import DEMModel, DistributionVector, VectorStore
from dem_hub.errors import BaseMismatchError, ConfigError, NotFoundError
from dem_hub.vectors.store_index import Member
from tests.support.killing import KILLED, fork, run_and_die, status_of
from tests.support.tiny_models import Models, Zoo, edit_json, load_tensors


@pytest.fixture
def store(zoo: Zoo, llama: Models, tmp_path: Path) -> VectorStore:
    store = VectorStore.create(tmp_path / "store", llama.base)
    store.add("whole", DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "dense")))
    store.add("low", DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "lowrank")))
    return store


def test_members(store: VectorStore, zoo: Zoo) -> None:
    assert list(store) == ["low", "whole"]
    assert len(store) == 2
    original = DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "dense"))
    assert store["whole"].sha256 == original.sha256
    assert store.members["whole"].nbytes == original.nbytes
    assert {name: member.codec for name, member in store.members.items()} == {"low": "lowrank", "whole": "dense"}
    assert "vectors=[low, whole]" in repr(store)


def test_it_opens_again(store: VectorStore, llama: Models) -> None:
    again = VectorStore.from_pretrained(store.folder)
    assert again.members == store.members
    assert again.base.repo_id == str(llama.base)
    assert (store.folder / "tokenizer.json").read_bytes() == (llama.base / "tokenizer.json").read_bytes()
    assert not list(store.folder.glob("*/tokenizer.json")), "what the members share is there once"


def test_members_are_sources(store: VectorStore, zoo: Zoo, llama: Models) -> None:
    """A member is loaded like any vector in a subfolder."""
    merged = DEMModel.from_pretrained(llama.base, vectors={store.member_source("low"): 0.5})
    expected = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied", "bfloat16", "lowrank")): 0.5})
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(merged.parameters(), expected.parameters(), strict=True)
    )
    assert list(merged.dem.coefficients) == [f"{store.folder}//low"]


def test_an_adapter_is_a_member(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-tied", "float32").base
    store = VectorStore.create(tmp_path / "store", base)
    store.add("lora", DistributionVector.from_pretrained(zoo.adapter("llama-tied")))
    assert store.members["lora"].codec == "lora"
    assert load_tensors(tmp_path / "store" / "lora").keys() == load_tensors(zoo.adapter("llama-tied")).keys()


def test_replacing_and_removing(store: VectorStore, zoo: Zoo) -> None:
    store.add("whole", DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "short")))
    assert DistributionVector.from_pretrained(store.folder / "whole").config.codec_options == {"dtype": "bfloat16"}  # type: ignore[union-attr]
    store.remove("whole")
    assert list(VectorStore.from_pretrained(store.folder)) == list(store) == ["low"]
    assert not (store.folder / "whole").exists()
    for action in (store.remove, store.__getitem__):
        with pytest.raises(KeyError, match="whole"):
            action("whole")


def test_comparison(store: VectorStore, llama: Models) -> None:
    result = store.compare()
    base, full, low = (load_tensors(folder) for folder in (llama.base, llama.full, llama.low))
    deltas = [
        torch.cat([(side[name].double() - base[name].double()).flatten() for name in sorted(base)])
        for side in (low, full)
    ]
    assert result.names == ("low", "whole")
    assert result.norms == pytest.approx(
        [float(delta.norm()) for delta in deltas], rel=0.02
    )  # `low` is stored at its rank
    cosine = float(deltas[0] @ deltas[1] / deltas[0].norm() / deltas[1].norm())
    assert result.cosines[0][1] == pytest.approx(cosine, abs=0.01)
    changed = sum(tensor.numel() for name, tensor in base.items() if not torch.equal(tensor, low[name]))
    assert result.overlaps[0][1] == pytest.approx(changed / sum(tensor.numel() for tensor in base.values()))


def test_opening_reads_no_member(store: VectorStore) -> None:
    """The index alone: a member that is broken is met when it is asked for, and no sooner."""
    (store.folder / "low" / "adapter_model.safetensors").write_bytes(b"")
    again = VectorStore.from_pretrained(store.folder)
    assert again["whole"].config is not None
    with pytest.raises(ValueError, match=r"Files of '.*low' are missing or were altered"):
        again["low"]


def test_another_base(store: VectorStore, zoo: Zoo) -> None:
    vector = DistributionVector.from_pretrained(zoo.vector("gpt2", "bfloat16", "dense"))
    with pytest.raises(
        BaseMismatchError,
        match=r"(?s)was made from '.*gpt2.*and the store .* is for '.*llama-tied.*Make a store for its base",
    ):
        store.add("other", vector)
    assert "other" not in store
    assert not (store.folder / "other").exists()


def test_a_member_that_was_exchanged(store: VectorStore, zoo: Zoo) -> None:
    DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "short")).save_pretrained(
        store.folder / "whole"
    )
    with pytest.raises(ConfigError, match="'whole' in .* has sha256 .*its index says .*Add it again"):
        VectorStore.from_pretrained(store.folder)["whole"]


@pytest.mark.parametrize(
    "name", ["../out", "/abs", "a\\b", "", ".", "./low", "low/below", "low/", ".hidden", "tokenizer.json"]
)
def test_names_stay_inside(store: VectorStore, zoo: Zoo, name: str) -> None:
    with pytest.raises(ConfigError):
        store.add(name, store["low"])
    assert list(store) == ["low", "whole"]


def test_asking_for_a_name_opens_nothing(store: VectorStore) -> None:
    (store.folder / "low" / "vector_config.json").unlink()
    assert "low" in store
    assert "high" not in store


def test_two_writers(store: VectorStore, zoo: Zoo) -> None:
    """The index is read again before it is written: what somebody else added stays."""
    other = VectorStore.from_pretrained(store.folder)
    other.add("theirs", DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "short")))
    store.add("ours", DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "short")))
    assert list(VectorStore.from_pretrained(store.folder)) == ["low", "ours", "theirs", "whole"]


def test_no_store(tmp_path: Path, llama: Models, store: VectorStore) -> None:
    with pytest.raises(NotFoundError, match=r"has no vector_store.json. VectorStore.create") as caught:
        VectorStore.from_pretrained(llama.base)
    assert caught.type is NotFoundError
    with pytest.raises(ConfigError, match="is a store of vectors already"):
        VectorStore.create(store.folder, llama.base)


def test_index_of_another_version(store: VectorStore) -> None:
    edit_json(store.folder / "vector_store.json", format_version=99)
    with pytest.raises(ConfigError, match="Upgrade"):
        VectorStore.from_pretrained(store.folder)
    edit_json(store.folder / "vector_store.json", format_version=1, extra=1)
    with pytest.raises(ConfigError, match="unknown keys 'extra'"):
        VectorStore.from_pretrained(store.folder)
    index = json.loads((store.folder / "vector_store.json").read_text())
    index["vectors"]["../x"] = index["vectors"].pop("low")
    edit_json(store.folder / "vector_store.json", vectors=index["vectors"])
    with pytest.raises(ConfigError):
        VectorStore.from_pretrained(store.folder)


@pytest.mark.parametrize("rounds", [17])
def test_several_processes_add_while_others_read(zoo: Zoo, llama: Models, tmp_path: Path, rounds: int) -> None:
    """No update is lost, and nobody reads half a vector: each adds 50 times, its own ones and one that all replace."""
    folder = tmp_path / "store"
    VectorStore.create(folder, llama.base)
    kinds = [zoo.vector("llama-tied", "bfloat16", kind) for kind in ("dense", "lowrank", "short", "dense")]
    done = tmp_path / "done"

    def write(number: int) -> None:
        store = VectorStore.from_pretrained(folder)
        vector = DistributionVector.from_pretrained(kinds[number])
        for step in range(rounds):
            store.add(f"own-{number}-{step}", vector)
            store.add("shared", vector)
            if step:
                store.remove(f"own-{number}-{step - 1}")
                store.add(f"own-{number}-{step - 1}", vector)

    def read() -> None:
        while not done.exists():
            store = VectorStore.from_pretrained(folder)
            for name in store:
                with suppress(KeyError):  # removed meanwhile
                    assert store[name].sha256

    reader = fork(read)
    writers = [fork(lambda number=number: write(number)) for number in range(4)]  # type: ignore[misc]
    statuses = [status_of(writer) for writer in writers]
    done.touch()
    assert [*statuses, status_of(reader)] == [0] * 5
    store = VectorStore.from_pretrained(folder)
    assert set(store) == {"shared", *(f"own-{number}-{step}" for number in range(4) for step in range(rounds))}
    assert all(store[name].sha256 == store.members[name].sha256 for name in store)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(store)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("change", ["add", "replace", "remove"])
def test_a_change_that_is_killed_is_finished_or_undone(store: VectorStore, zoo: Zoo, change: str) -> None:
    """Killed at each of its changes of files in turn, it leaves the store as it was, or as it is to be."""
    name = "third" if change == "add" else "whole"
    vector = DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "short"))
    old = DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "dense"))
    before = dict(store.members)
    after = {**before, name: Member(vector.sha256, vector.codec, vector.nbytes)}
    if change == "remove":
        del after[name]

    def run() -> None:
        opened = VectorStore.from_pretrained(store.folder)
        if change == "remove":
            opened.remove(name)
        else:
            opened.add(name, vector)

    for count in range(1, 100):
        status = run_and_die(run, count)
        check_store(store.folder, (before, after))
        if change != "remove" or name in VectorStore.from_pretrained(store.folder):
            run()
        found = check_store(store.folder, (after,))
        assert {path.name for path in store.folder.iterdir() if path.is_dir()} == set(after)
        if status == 0:
            break
        assert status == KILLED
        if change == "add":
            found.remove(name)
        else:
            found.add(name, old)
    assert 5 < count < 99


def check_store(folder: Path, allowed: tuple[dict[str, Member], ...]) -> VectorStore:
    """Return a store that is in one of the states allowed, with vectors that are those of its index."""
    store = VectorStore.from_pretrained(folder)
    assert store.members in allowed
    assert all(store[name].sha256 == store.members[name].sha256 for name in store)
    return store
