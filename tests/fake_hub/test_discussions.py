"""Pull requests, by the unmodified client."""

import pytest
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.fake_hub.commits import add, commit
from tests.fake_hub.server import Hub


def test_pull_request(hub: Hub, api: HfApi, bob: HfApi) -> None:
    commit(api, add("a.txt", "1"), add("gone.txt", "1"))
    made = bob.create_commit(
        "ann/x", [add("b.safetensors", b"2"), CommitOperationDelete("gone.txt")], commit_message="Add b", create_pr=True
    )
    assert made.pr_revision == "refs/pr/1" and made.pr_num == 1
    assert hub.files("ann/x") == {"a.txt": b"1", "gone.txt": b"1"}
    assert hub.files("ann/x", "refs/pr/1") == {"a.txt": b"1", "b.safetensors": b"2"}
    bob.upload_file(path_or_fileobj=b"3", path_in_repo="c.txt", repo_id="ann/x", revision="refs/pr/1")
    commit(api, add("a.txt", "4"))
    details = api.get_discussion_details("ann/x", 1)
    assert (details.title, details.author, details.status, details.conflicting_files) == ("Add b", "bob", "open", [])
    assert [one.ref for one in api.list_repo_refs("ann/x", include_pull_requests=True).pull_requests] == ["refs/pr/1"]
    with pytest.raises(HfHubHTTPError):
        bob.merge_pull_request("ann/x", 1)
    api.merge_pull_request("ann/x", 1)
    assert hub.files("ann/x") == {"a.txt": b"4", "b.safetensors": b"2", "c.txt": b"3"}
    assert api.list_repo_commits("ann/x")[0].title == "Add b (#1)"
    assert [(one.num, one.status) for one in api.get_repo_discussions("ann/x")] == [(1, "merged")]


def test_pull_request_that_conflicts(hub: Hub, api: HfApi, bob: HfApi) -> None:
    commit(api, add("a.txt", "1"))
    bob.create_commit("ann/x", [add("a.txt", "bob's")], commit_message="Mine", create_pr=True)
    commit(api, add("a.txt", "ann's"))
    assert api.get_discussion_details("ann/x", 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts with main in a\.txt"):
        api.merge_pull_request("ann/x", 1)
    api.change_discussion_status("ann/x", 1, "closed")
    with pytest.raises(HfHubHTTPError, match="closed"):
        bob.upload_file(path_or_fileobj=b"3", path_in_repo="c.txt", repo_id="ann/x", revision="refs/pr/1")
    assert hub.files("ann/x") == {"a.txt": b"ann's"}


def test_draft_pull_request(hub: Hub, api: HfApi, bob: HfApi) -> None:
    assert bob.create_pull_request("ann/x", title="Later").status == "draft"
    bob.upload_file(path_or_fileobj=b"3", path_in_repo="c.txt", repo_id="ann/x", revision="refs/pr/1")
    bob.change_discussion_status("ann/x", 1, "open")
    api.merge_pull_request("ann/x", 1)
    assert hub.files("ann/x") == {"c.txt": b"3"}
