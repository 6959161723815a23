"""Accounts, repositories and searches, by the unmodified client."""

import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.fake_hub.commits import CARD, add, commit
from tests.fake_hub.server import Hub


def test_whoami(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "ann"
    assert api.whoami(token=hub.add_user("bob", role="read").token)["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_nobody")


def test_create_again(api: HfApi) -> None:
    assert api.create_repo("ann/x", exist_ok=True).repo_id == "ann/x"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("ann/x")


def test_create_without_a_namespace(api: HfApi) -> None:
    assert api.create_repo("mine").repo_id == "ann/mine"


def test_create_in_an_organization(hub: Hub, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="don't have the rights"):
        api.create_repo("lab/x")
    hub.add_user("ann", orgs=("lab",))
    assert api.create_repo("lab/x").repo_id == "lab/x"


def test_delete(api: HfApi) -> None:
    api.delete_repo("ann/x")
    assert not api.repo_exists("ann/x")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("ann/x")
    api.delete_repo("ann/x", missing_ok=True)


def test_move_leaves_a_redirect(api: HfApi, tmp_path: Path) -> None:
    commit(api, add("a.json", "{}"))
    api.move_repo("ann/x", "ann/y")
    assert api.model_info("ann/x").id == "ann/y"
    assert Path(hf_hub_download("ann/x", "a.json", cache_dir=tmp_path)).read_text() == "{}"
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("ann/x")


def test_kinds_have_their_own_names(api: HfApi) -> None:
    api.create_repo("ann/x", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="ann/x", repo_type="dataset")
    assert api.file_exists("ann/x", "a.txt", repo_type="dataset")
    assert not api.file_exists("ann/x", "a.txt")


def test_model_info(hub: Hub, api: HfApi) -> None:
    before = api.model_info("ann/x").sha
    oid = commit(api, add("README.md", CARD.format(base="org/base", relation="merge")), add("w.safetensors", b"12345"))
    info = api.model_info("ann/x", files_metadata=True)
    assert info.sha == oid and re.fullmatch("[0-9a-f]{40}", oid) and info.author == "ann"
    assert info.library_name == info.card_data.library_name == "dem-hub"
    found = {one.rfilename: (one.size, one.lfs and one.lfs.sha256) for one in info.siblings}
    assert found["w.safetensors"] == (
        5,
        "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5",
    )  # sha256sum of 12345
    assert found["README.md"][1] is None
    assert api.model_info("ann/x", revision=before).sha == before
    assert api.model_info("ann/x", expand=["sha"]).sha == oid
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ann/x", revision="absent")


@pytest.mark.parametrize(
    ("base", "relation", "tags"),
    [
        ("org/base", "adapter", ["base_model:org/base", "base_model:adapter:org/base"]),
        (
            "[org/a, org/b]",
            "merge",
            ["base_model:org/a", "base_model:org/b", "base_model:merge:org/a", "base_model:merge:org/b"],
        ),
    ],
)
def test_tags_come_from_the_card(api: HfApi, base: str, relation: str, tags: list[str]) -> None:
    commit(api, add("README.md", CARD.format(base=base, relation=relation)))
    found = api.model_info("ann/x").tags
    assert set(found) == {
        "dem-hub",
        "distribution-vector",
        "dataset:org/data",
        "license:apache-2.0",
        "region:us",
        *tags,
    }


def test_relation_is_inferred(api: HfApi) -> None:
    commit(api, add("README.md", "---\nbase_model: org/base\n---\n"))
    assert "base_model:finetune:org/base" in api.model_info("ann/x").tags
    commit(api, add("adapter_config.json", "{}"))
    assert "base_model:adapter:org/base" in api.model_info("ann/x").tags


def test_search(hub: Hub, api: HfApi) -> None:
    hub.store.page_size = 2
    for number in range(5):
        card = CARD.format(base="org/base" if number else "org/other", relation="adapter")
        api.create_repo(f"ann/v{number}", private=number == 4)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=f"ann/v{number}")

    def ids(**asked: object) -> list[str]:
        return [model.id for model in api.list_models(**asked)]  # type: ignore[arg-type]

    assert ids() == ["ann/x", "ann/v0", "ann/v1", "ann/v2", "ann/v3", "ann/v4"]
    assert ids(filter=["dem-hub", "base_model:org/base"]) == ["ann/v1", "ann/v2", "ann/v3", "ann/v4"]
    assert ids(filter=["dem-hub", "base_model:org/base"], token=False) == ["ann/v1", "ann/v2", "ann/v3"]
    assert ids(filter="base_model:org/base", limit=3) == ["ann/v1", "ann/v2", "ann/v3"]
    assert ids(search="V2") == ["ann/v2"]
    assert ids(author="bob") == []
    with pytest.raises(HfHubHTTPError, match="cannot search by inference"):
        ids(inference="warm")
    assert next(iter(api.list_models(search="v0"))).card_data is None
    assert next(iter(api.list_models(search="v0", cardData=True))).card_data.base_model == "org/other"
