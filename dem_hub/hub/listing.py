"""What the Hub has: the vectors of a base, and the licences of repositories."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dem_hub.hub.client import hub_api
from dem_hub.hub.failures import hub_errors

VECTOR_TAG, STORE_TAG, RECIPE_TAG = "dem-vector", "dem-store", "dem-recipe"


@dataclass(frozen=True)
class FoundVector:
    """A repository with vectors of a base: its id, what it is (`vector`, `store` or `lora`), how often and how lately it was used."""

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
        author, search (`str`, *optional*): as in `HfApi.list_models`.
        limit (`int`, *optional*): how many at the most; all of them by default.
        token (`str` or `bool`, *optional*): to see private ones.

    Returns:
        `list[FoundVector]`: in the Hub's order. Whether one fits is known when it is opened.
    """
    with hub_errors(action=f"The vectors of '{base}' were looked up on the Hub.", remedy="Try again."):
        models = list(
            hub_api().list_models(filter=f"base_model:adapter:{base}", author=author, search=search, token=token)
        )
    found: list[FoundVector] = []
    for model in models:
        kind = _kind(model.tags or [])
        if kind is not None and (limit is None or len(found) < limit):
            found.append(FoundVector(model.id, kind, model.downloads, model.last_modified or model.created_at))
    return found


def licenses(repo_ids: Iterable[str], *, token: str | bool | None = None) -> dict[str, str]:
    """The licence that each repository's card states; those that state none are left out."""
    found = {}
    for repo_id in repo_ids:
        with hub_errors(
            action=f"The license of '{repo_id}' was looked up on the Hub.", remedy="Nothing was pushed. Try again."
        ):
            card = hub_api().model_info(repo_id, token=token).card_data
        if card is not None and card.get("license"):
            found[repo_id] = str(card["license"])
    return found


def _kind(tags: Iterable[str]) -> str | None:
    known = {STORE_TAG: "store", "peft": "lora", VECTOR_TAG: "vector"}
    return next((kind for tag, kind in known.items() if tag in set(tags)), None)
