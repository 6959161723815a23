"""`dem-hub push`: whatever a folder holds, to the Hub as what it is: a store, a vector, a merged model, or a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.cli.arguments import HUB, private_option
from dem_hub.cli.command import PATH, argument, command, option
from dem_hub.cli.uploads import CONTENTS, base_model_option, include_code_option, shown_push
from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


@command(
    "push",
    examples=[
        "dem-hub push maths me/maths-vector",
        "dem-hub push my-dem me/my-dem --include-vectors --private",
        "dem-hub push maths org/maths-vector --create-pr",
        "dem-hub push me/my-dem --space me/my-mixer",
    ],
)
@argument("folder", type=PATH, help="Folder of a vector, a store, a recipe or a merged model.")
@argument("repo_id", required=False, help="Target repository (namespace/name). Created if it does not exist.")
@option(
    "--space",
    group=CONTENTS,
    metavar="REPO_ID",
    help="In place of a repository: a Space with the mixer of a recipe, a search or a recipe's Hub id. Created on a free "
    "machine.",
)
@base_model_option
@option(
    "--subfolder",
    group=CONTENTS,
    metavar="FOLDER",
    help="Subfolder of the repository to push a vector into.",
)
@option(
    "--include-vectors", is_flag=True, group=CONTENTS, help="For a recipe: push its local vectors in the same commit."
)
@option(
    "--include-statistics",
    is_flag=True,
    group=CONTENTS,
    help="For a vector or a store: also push input statistics. They tell something about the vectors' data.",
)
@include_code_option
@option("--dry-run", is_flag=True, group=CONTENTS, help="Print the files that would be pushed, and exit.")
@private_option
@option("--revision", group=HUB, metavar="BRANCH", help="Branch to push to. Default: main.")
@option("--create-pr", is_flag=True, group=HUB, help="Open a pull request instead of pushing to the branch.")
@option("--commit-message", group=HUB, metavar="TEXT", help="Title of the commit.")
def push(*, folder: str, repo_id: str | None, space: str | None, dry_run: bool, **options: Any) -> None:
    """Push a vector, a store, a recipe or a merged model to the Hub.

    The files are printed on stderr before any is sent. What dem_hub did not write is never pushed.
    """
    if (repo_id is None) == (space is None):
        raise ConfigError("Name either the repository to push to, or a Space: --space me/my-mixer.")
    given = {name: value for name, value in options.items() if value}
    with shown_push(dry_run=dry_run):
        if space is not None:
            commit = _push_space(folder, space, given)
        else:
            commit = push_folder(Path(folder), str(repo_id), **given)
        print(printable(commit.pr_url or commit.commit_url))


def _push_space(recipe: str, repo_id: str, options: dict[str, Any]) -> "CommitInfo":
    from dem_hub.mixer.space import push_space

    _check_options(Path(recipe), "recipe", options, {"base_model", "include_vectors"})
    return push_space(recipe, repo_id, **options)


def push_folder(folder: Path, repo_id: str, **options: Any) -> "CommitInfo":
    """Push a folder as what it holds.

    Args:
        folder (`Path`): the folder of a store, a vector or adapter, a merged model, or a recipe.
        repo_id (`str`): the repository; it is created if it does not exist.
        options: passed on to the `push_to_hub` of what is there.

    Returns:
        `CommitInfo`: the commit, or the pull request.

    Raises:
        `NotFoundError`: the folder holds none of these.
        `ConfigError`: an option that does not apply to what is there.
    """
    from dem_hub.files.folders import is_recipe
    from dem_hub.files.names import ADAPTER_CONFIG, PROVENANCE_CONFIG, STORE_CONFIG, VECTOR_CONFIG
    from dem_hub.hub.client import HubOptions
    from dem_hub.hub.download import Resolved
    from dem_hub.merging.config import DEMConfig
    from dem_hub.models.upload import push_export
    from dem_hub.vectors.store import VectorStore
    from dem_hub.vectors.vector import DistributionVector

    resolved = Resolved.local(folder)
    if (folder / STORE_CONFIG).is_file():
        _check_options(folder, "store", options, {"base_model", "include_statistics"})
        return VectorStore(resolved, HubOptions()).push_to_hub(repo_id, **options)
    if (folder / VECTOR_CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file():
        vector = DistributionVector(resolved, verify=True)
        _check_options(folder, "vector", options, {"base_model", "subfolder", "include_statistics"})
        return vector.push_to_hub(repo_id, **options)
    if (folder / PROVENANCE_CONFIG).is_file():
        _check_options(folder, "merged model", options, {"base_model", "include_code"})
        return push_export(folder, repo_id, **options)
    if is_recipe(folder):
        recipe = DEMConfig.from_pretrained(folder)
        _check_options(folder, "recipe", options, {"base_model", "include_vectors"})
        return recipe.push_to_hub(repo_id, **options)
    raise NotFoundError(f"'{folder}' is no vector, store, recipe or merged model. Check the path.")


def _check_options(folder: Path, kind: str, options: dict[str, Any], allowed: set[str]) -> None:
    """Refuse options that are for another kind of content."""
    conditional = {"base_model", "subfolder", "include_vectors", "include_statistics", "include_code"}
    wrong = sorted(conditional & options.keys() - allowed)
    if wrong:
        raise ConfigError(f"'{folder}' is a {kind}, for which {', '.join(wrong)} means nothing. Leave it out.")
