"""What the Hub lists: the vectors and adapters of a base, and the licenses of repositories."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from dem_hub.hub.client import hub_api
from dem_hub.hub.commits import RepoType
from dem_hub.hub.failures import hub_errors
from dem_hub.hub.remote import in_time

# Tags that our cards give a repository.
VECTOR_TAG = "dem-vector"
STORE_TAG = "dem-store"
RECIPE_TAG = "dem-recipe"

# The kind of a repository by its tags. The first that it has counts: a vector may be a PEFT adapter as well.
_KINDS = {STORE_TAG: "store", "peft": "lora", VECTOR_TAG: "vector"}


@dataclass(frozen=True)
class FoundVector:
    """A repository with vectors of a base: its id, kind (`vector`, `store` or `lora`), downloads and last change."""

    repo_id: str
    kind: str
    downloads: int | None
    last_modified: datetime | None


def list_vectors(
    base: str,
    *,
    author: str | None = None,
    search: str | None = None,
    limit: int | None = None,
    token: str | bool | None = None,
) -> list[FoundVector]:
    """Find the vectors and the PEFT LoRA adapters of a base, by the Hub's tags.

    Args:
        base (`str`): Hub id of the base.
        author (`str`, *optional*): Only repositories of this user or organization.
        search (`str`, *optional*): Only repositories whose name contains this text.
        limit (`int`, *optional*): The largest number of repositories to return. Defaults to all.
        token (`str` or `bool`, *optional*): A token of the Hub, to find private repositories too.

    Returns:
        `list[FoundVector]`: The repositories in the Hub's order. Whether a vector fits the base is checked when it
        is opened.

    Raises:
        [`~dem_hub.errors.HubError`]: If the connection or the Hub failed.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refused.
    """
    with hub_errors(action=f"The vectors of '{base}' were looked up on the Hub.", remedy="Try again."):
        find = partial(hub_api().list_models, filter=f"base_model:adapter:{base}", author=author, search=search)
        models = in_time(lambda: list(find(token=token)))
    vectors: list[FoundVector] = []
    for model in models:
        kind = _kind(model.tags or ())
        if kind is not None:
            vectors.append(FoundVector(model.id, kind, model.downloads, model.last_modified or model.created_at))
    return vectors[:limit]


def licenses(repo_ids: Iterable[str], *, token: str | bool | None = None) -> dict[str, str]:
    """Return the license that each repository's card states; repositories that state none are left out."""
    stated = {}
    for repo_id in repo_ids:
        with hub_errors(
            action=f"The license of '{repo_id}' was looked up on the Hub.", remedy="Nothing was pushed. Try again."
        ):
            card = in_time(partial(hub_api().model_info, repo_id, token=token)).card_data
        if card is not None and card.get("license"):
            stated[repo_id] = str(card["license"])
    return stated


def is_private(repo_id: str, *, repo_type: RepoType = "model", token: str | bool | None = None) -> bool:
    """Check whether a repository is private."""
    with hub_errors(action=f"The repository '{repo_id}' was looked up on the Hub.", remedy="Try again."):
        return bool(in_time(partial(hub_api().repo_info, repo_id, repo_type=repo_type, token=token)).private)


def _kind(tags: Iterable[str]) -> str | None:
    """Return the kind of a repository; `None` if it is neither ours nor a PEFT adapter."""
    present = set(tags)
    for tag, kind in _KINDS.items():
        if tag in present:
            return kind
    return None
