"""A base, a vector, a store and recipes on the tests' Hub: made once by real pushes, then put back for each test."""

import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorStore
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models

BASE, VECTOR, STORE, RECIPE = "org/base", "ann/maths", "ann/vectors", "ann/dem"

_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Published:
    """Sources of the repositories: `vector` is `ann/maths`, `store` is `ann/vectors` (`maths`, `code`), `recipe` is
    `ann/dem`.
    """

    vector: Path
    store: Path
    recipe: DEMConfig


def publish(hub: Hub, models: Models) -> Published:
    """Fill an empty Hub, and keep its record of requests empty."""
    hub.add_user("ann", orgs=("org",))
    if not _made:
        _made["sources"] = _push(models, Path(tempfile.mkdtemp(dir=models.base.parent)))
        _made["repos"], _made["contents"] = hub.store.repos, dict(hub.store.contents)
    hub.store.repos = copy.deepcopy(_made["repos"])
    hub.store.contents = dict(_made["contents"])
    hub.forget_requests()
    return _made["sources"]  # type: ignore[no-any-return]


def _push(models: Models, folder: Path) -> Published:
    api = HfApi()
    api.create_repo(BASE)
    api.upload_folder(repo_id=BASE, folder_path=models.base)
    vector = DistributionVector.extract(models.base, models.full, codec="dense")
    vector.save_pretrained(folder / "vector")
    vector.push_to_hub(VECTOR, base_model=BASE)
    store = VectorStore.create(folder / "store", BASE)
    store.add("maths", vector)
    store.add("code", DistributionVector.extract(models.base, models.low, codec="lowrank"))
    store.push_to_hub(STORE)
    recipe = DEMModel.from_pretrained(BASE, vectors={VECTOR: 0.5}).dem.config
    recipe.push_to_hub(RECIPE)
    return Published(folder / "vector", folder / "store", replace(recipe, architectures=()))


def keep_only(hub: Hub, repo_id: str) -> None:
    """Remove all other contents from the Hub, which does not ask again for large files that it has."""
    hub.store.repos = {key: repo for key, repo in hub.store.repos.items() if key == ("models", repo_id)}
    kept = {
        blob.sha256
        for repo in hub.store.repos.values()
        for commit in repo.commits.values()
        for blob in commit.files.values()
    }
    hub.store.contents = {sha256: data for sha256, data in hub.store.contents.items() if sha256 in kept}
