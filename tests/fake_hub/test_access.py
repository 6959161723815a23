"""Who may do what, as the unmodified client sees it."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.fake_hub.commits import add, commit
from tests.fake_hub.server import Hub


def test_private(api: HfApi, bob: HfApi, tmp_path: Path) -> None:
    commit(api, add("a.json", "{}"))
    api.update_repo_settings("ann/x", private=True)
    assert Path(hf_hub_download("ann/x", "a.json")).read_text() == "{}"
    for token, status in [(False, 401), (bob.token, 404)]:
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.model_info("ann/x", token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("ann/x", "a.json", token=token, cache_dir=tmp_path / "none")
    assert [model.id for model in bob.list_models()] == []
    assert [model.id for model in api.list_models()] == ["ann/x"]


def test_gated(hub: Hub, api: HfApi, bob: HfApi) -> None:
    commit(api, add("a.json", "{}"))
    api.update_repo_settings("ann/x", gated="manual")
    assert bob.model_info("ann/x").gated == "manual"
    for token, status in [(False, 401), (bob.token, 403)]:
        with pytest.raises(GatedRepoError) as caught:
            hf_hub_download("ann/x", "a.json", token=token)
        assert caught.value.response.status_code == status
    with pytest.raises(GatedRepoError):
        bob.auth_check("ann/x")
    hub.grant("ann/x", "bob")
    bob.auth_check("ann/x")
    assert Path(bob.hf_hub_download("ann/x", "a.json")).read_text() == "{}"


def test_bad_token(api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as caught:
        api.model_info("ann/x", token="hf_nobody")
    assert caught.value.response.status_code == 401 and not isinstance(caught.value, RepositoryNotFoundError)


def test_read_token(hub: Hub, api: HfApi) -> None:
    reader = hub.add_user("ann", token="hf_reads", role="read").token
    with pytest.raises(HfHubHTTPError, match="must use a write token"):
        commit(HfApi(token=reader), add("a.txt", "1"))
    with pytest.raises(HfHubHTTPError, match="must use a write token"):
        api.create_repo("ann/y", token=reader)
    assert hub.files("ann/x") == {}


def test_the_repository_of_somebody_else(hub: Hub, api: HfApi, bob: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        commit(bob, add("a.txt", "1"))
    for refused in (
        lambda: bob.delete_repo("ann/x"),
        lambda: bob.create_tag("ann/x", tag="t"),
        lambda: bob.auth_check("ann/x", write=True),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            refused()
        assert caught.value.response.status_code == 403
    api.auth_check("ann/x", write=True)
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        commit(HfApi(token=False), add("a.txt", "1"))
    assert hub.files("ann/x") == {}


def test_nothing_is_there(api: HfApi) -> None:
    for token in (None, False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("ann/absent", token=token)
    assert not api.repo_exists("ann/absent")
