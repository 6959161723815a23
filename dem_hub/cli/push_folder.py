"""Whatever a folder holds, pushed as what it is: a store, a vector, a merged model, or a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.files.folders import is_recipe
from dem_hub.files.names import ADAPTER_CONFIG, PROVENANCE_CONFIG, STORE_CONFIG, VECTOR_CONFIG
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved
from dem_hub.merging.config import DEMConfig
from dem_hub.models.upload import push_export
from dem_hub.vectors.store import VectorStore
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push_folder(folder: Path, repo_id: str, **options: Any) -> "CommitInfo":
    """Push a folder.

    Args:
        folder (`Path`): of a store, a vector or adapter, a merged model, or a recipe.
        repo_id (`str`): the repository; made where there is none.
        options: of the `push_to_hub` that it needs.

    Raises:
        `NotFoundError`: none of these. `ConfigError`: an option that what lies there does not have.
    """
    here = Resolved.local(folder)
    if (folder / STORE_CONFIG).is_file():
        return VectorStore(here, HubOptions()).push_to_hub(repo_id, **_only(folder, "store", options, "base_model"))
    if (folder / VECTOR_CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file():
        vector = DistributionVector(here, verify=True)
        return vector.push_to_hub(repo_id, **_only(folder, "vector", options, "base_model", "subfolder"))
    if (folder / PROVENANCE_CONFIG).is_file():
        return push_export(folder, repo_id, **_only(folder, "merged model", options))
    if is_recipe(folder):
        recipe = DEMConfig.from_pretrained(folder)
        return recipe.push_to_hub(repo_id, **_only(folder, "recipe", options, "base_model", "include_vectors"))
    raise NotFoundError(f"'{folder}' is no vector, store, recipe or merged model. Check the path.")


def _only(folder: Path, kind: str, options: dict[str, Any], *known: str) -> dict[str, Any]:
    """The options, once none of them is for something else."""
    wrong = sorted({"base_model", "subfolder", "include_vectors"} & set(options) - set(known))
    if wrong:
        raise ConfigError(f"'{folder}' is a {kind}, for which {', '.join(wrong)} means nothing. Leave it out.")
    return options
