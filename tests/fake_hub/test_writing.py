"""Branches, uploads and commits, by the unmodified client."""

import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from tests.fake_hub.commits import CARD, add, commit
from tests.fake_hub.server import Hub


def test_folder(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    files = {
        "w.safetensors": os.urandom(12 * 2**20),
        "sub/a.json": b"{}",
        "empty.txt": b"",
        "README.md": CARD.format(base="o/b", relation="merge").encode(),
    }
    for name, data in files.items():
        (tmp_path / "pushed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pushed" / name).write_bytes(data)
    oid = api.upload_folder(repo_id="ann/x", folder_path=tmp_path / "pushed").oid
    assert hub.files("ann/x") == files
    there = Path(snapshot_download("ann/x"))
    assert {name: (there / name).read_bytes() for name in files} == files
    assert [one.status for one in hub.requests("PUT", origin="cdn")] == [200]
    assert all(one.token is None for one in hub.requests(origin="cdn"))
    hub.forget_requests()
    assert api.upload_folder(repo_id="ann/x", folder_path=tmp_path / "pushed").oid == oid, "nothing has changed"
    assert not hub.requests("POST", "/commit/") and not hub.requests("PUT")
    assert api.verify_repo_checksums("ann/x").mismatches == []


def test_what_is_there_is_not_uploaded_again(hub: Hub, api: HfApi) -> None:
    commit(api, add("a.safetensors", b"same"))
    api.create_repo("ann/y")
    api.upload_file(path_or_fileobj=b"same", path_in_repo="b.safetensors", repo_id="ann/y")
    assert len(hub.requests("PUT")) == 1 and hub.files("ann/y") == {"b.safetensors": b"same"}


def test_upload_in_parts(hub: Hub, api: HfApi) -> None:
    hub.store.part_size = 1000
    data = os.urandom(2500)
    commit(api, add("a.safetensors", data))
    assert hub.files("ann/x") == {"a.safetensors": data} and len(hub.requests("PUT", origin="cdn")) == 3


def test_delete_files(hub: Hub, api: HfApi) -> None:
    commit(api, add("a.txt", "1"), add("sub/b.txt", "2"), add("sub/c.txt", "3"), add("d.txt", "4"))
    commit(api, CommitOperationDelete("a.txt"), CommitOperationDelete("sub/"), add("e.txt", "5"))
    assert hub.files("ann/x") == {"d.txt": b"4", "e.txt": b"5"}
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        commit(api, add("f.txt", "6"), CommitOperationDelete("a.txt"))
    assert hub.files("ann/x") == {"d.txt": b"4", "e.txt": b"5"}, "a refused commit leaves nothing"


def test_parent_commit(hub: Hub, api: HfApi) -> None:
    parent = commit(api, add("a.txt", "1"))
    commit(api, add("b.txt", "2"), parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        commit(api, add("b.txt", "3"), parent_commit=parent)
    assert caught.value.response.status_code == 412
    assert hub.files("ann/x") == {"a.txt": b"1", "b.txt": b"2"}


def test_lfs_file_that_never_came(hub: Hub, api: HfApi) -> None:
    operation = add("a.safetensors", b"1")
    operation._upload_mode, operation._is_uploaded = "lfs", True
    with pytest.raises(HfHubHTTPError, match="file that does not exist"):
        commit(api, operation)
    assert hub.files("ann/x") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\nbase_model: /home/ann/base\n---\n", r'"base_model\[0\]" with value "/home/ann/base" is not valid'),
        ("---\nbase_model_relation: sum\n---\n", "must be one of"),
        ("---\nlicense: My Own\n---\n", '"license" must be one of'),
        ("---\ntags: one\n---\n", "array of strings"),
        ("---\na: [\n---\n", "cannot be parsed"),
        ("---\n- a\n---\n", "must be a mapping"),
        (
            "---\nmodel-index: [{name: x, results: [{task: {type: t}, metrics: [{type: p}]}]}]\n---\n",
            "dataset.name.* is required(.|\n)*value.* is required",
        ),
    ],
)
def test_cards_that_the_hub_refuses(hub: Hub, api: HfApi, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        commit(api, add("README.md", text))
    assert hub.files("ann/x") == {}


def test_card_without_metadata(hub: Hub, api: HfApi) -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, add("README.md", "# No metadata"))
    assert hub.files("ann/x") == {"README.md": b"# No metadata"}
