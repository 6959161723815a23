"""Trees, refs, history and downloads, by the unmodified client."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from transformers import AutoModelForCausalLM

from tests.fake_hub.commits import add, commit
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models


def test_tree_and_paths(api: HfApi) -> None:
    commit(api, add("a/b/c.json", "{}"), add("a/w.safetensors", b"123"), add("d.txt", "d"))
    top = {entry.path: type(entry).__name__ for entry in api.list_repo_tree("ann/x")}
    assert top == {".gitattributes": "RepoFile", "a": "RepoFolder", "d.txt": "RepoFile"}
    assert [entry.path for entry in api.list_repo_tree("ann/x", "a", recursive=True)] == [
        "a/b",
        "a/b/c.json",
        "a/w.safetensors",
    ]
    assert set(api.list_repo_files("ann/x")) == {".gitattributes", "a/b/c.json", "a/w.safetensors", "d.txt"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("ann/x", "absent"))
    file, folder = sorted(
        api.get_paths_info("ann/x", ["a/w.safetensors", "a", "absent"]), key=lambda one: one.path, reverse=True
    )
    assert (file.size, file.lfs.size, folder.path) == (3, 3, "a")
    assert api.get_paths_info("ann/x", ["d.txt"], expand=True)[0].last_commit.title == "Change"


def test_refs_and_history(hub: Hub, api: HfApi) -> None:
    hub.store.page_size = 2
    first = commit(api, add("a.txt", "1"))
    api.create_tag("ann/x", tag="v1")
    api.create_branch("ann/x", branch="dev/one")
    second = commit(api, add("a.txt", "2"), revision="dev/one")
    third = commit(api, add("a.txt", "3"), revision="dev/one")
    refs = api.list_repo_refs("ann/x")
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": first, "dev/one": third}
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    history = [one.commit_id for one in api.list_repo_commits("ann/x", revision="dev/one")]
    assert history[:3] == [third, second, first] and len(history) == 4  # the last is the Hub's own
    assert hub.files("ann/x") == hub.files("ann/x", "v1") == {"a.txt": b"1"}
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch("ann/x", branch="dev/one")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_tag("ann/x", tag="v1")
    api.create_tag("ann/x", tag="v1", exist_ok=True)
    api.delete_branch("ann/x", branch="dev/one")
    api.delete_tag("ann/x", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("ann/x", tag="v1")
    assert api.revision_exists("ann/x", first) and not api.revision_exists("ann/x", "v1")


def test_download(hub: Hub, api: HfApi) -> None:
    oid = commit(api, add("a/w.safetensors", b"0123456789"), add("a.json", "{}"))
    hub.forget_requests()
    folder = Path(
        snapshot_download("ann/x", revision=oid, allow_patterns=["a/*"], library_name="dem-hub", library_version="1")
    )
    assert (
        folder.name == oid
        and (folder / "a/w.safetensors").read_bytes() == b"0123456789"
        and not (folder / "a.json").exists()
    )
    assert [(one.method, one.status, one.token) for one in hub.requests(origin="cdn")] == [("GET", 200, None)]
    assert {one.headers["authorization"] for one in hub.requests(origin="hub")} == {f"Bearer {hub.user.token}"}
    assert all("dem-hub/1" in one.headers["user-agent"] for one in hub.requests())
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ann/x", "absent.json")
    assert (Path(folder).parents[1] / ".no_exist" / oid / "absent.json").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "a.json"])
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("bytes=2-4", b"234"), ("bytes=7-", b"789"), ("bytes=-2", b"89"), ("bytes=0-99", b"0123456789")],
)
def test_ranges(api: HfApi, name: str, wanted: str, expected: bytes) -> None:
    from huggingface_hub import get_session, hf_hub_url

    commit(api, add(name, b"0123456789"))
    response = get_session().get(hf_hub_url("ann/x", name), headers={"Range": wanted}, follow_redirects=True)
    assert (response.status_code, response.content) == (206, expected)
    assert (
        get_session().get(hf_hub_url("ann/x", name), headers={"Range": "bytes=10-"}, follow_redirects=True).status_code
        == 416
    )


def test_safetensors_metadata_is_read_by_range(hub: Hub, api: HfApi) -> None:
    import torch
    from safetensors.torch import save

    commit(api, add("model.safetensors", save({"a": torch.zeros(300_000)})))
    hub.forget_requests()
    assert api.get_safetensors_metadata("ann/x").files_metadata["model.safetensors"].tensors["a"].shape == [300_000]
    assert [one.headers["range"] for one in hub.requests("GET", origin="cdn")] == ["bytes=0-100000"]


def test_transformers_loads_from_it(hub: Hub, api: HfApi, llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    api.upload_folder(repo_id="ann/x", folder_path=llama.base)
    hub.forget_requests()
    model = AutoModelForCausalLM.from_pretrained("ann/x")
    expected = AutoModelForCausalLM.from_pretrained(llama.base).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert hub.requests("GET", "safetensors", origin="cdn")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.forget_requests()
    AutoModelForCausalLM.from_pretrained("ann/x")
    assert hub.requests() == []
