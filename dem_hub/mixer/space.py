"""A Space of the Hub with the mixer of a recipe: what it is made of, the push of it, and its start there.

A Space is public, and a machine of the Hub runs it. So it holds what a pushed recipe holds, and of a search the numbers
that the page shows. It has no token, and its page can neither add a vector nor save or push.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from dem_hub._version import __version__
from dem_hub.errors import ConfigError, refuse
from dem_hub.files.names import CARD, SEARCH_RESULT
from dem_hub.hub.cards import TAGS, Card, markdown_link, markdown_table, provenance, render, shared_license
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.listing import is_private
from dem_hub.hub.preview import announce
from dem_hub.hub.references import VectorSource
from dem_hub.merging.cards import repositories
from dem_hub.merging.coefficients import coefficient_text
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.publishing import PublicRecipe, public_recipe
from dem_hub.merging.short_names import short_names
from dem_hub.search.cross_loss import BASE, CrossLoss
from dem_hub.search.prediction import Prediction
from dem_hub.search.result import SearchResult
from dem_hub.search.result_file import to_file

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

# The versions that a Space is built with: those that the tests ran with (`constraints.txt`).
GRADIO = "6.31.0"
PYTHON = "3.11"

APP = "app.py"
REQUIREMENTS = "requirements.txt"
RECIPE = "recipe"  # a folder of the Space, and all of it is written by us

# Nobody can start a Space with other options, and its recipe is all that the mixer needs.
_NO_DATA = (
    f"A Space has no data to measure on. Download the folder `{RECIPE}` of its files, and run "
    f"`dem-hub mix {RECIPE} --data NAME=FILE` on your own machine."
)

_NOTE = "`dem-hub push --space` writes this file anew."
_START = "from dem_hub.mixer.space import serve"
_APP_TEXT = f'"""The mixer of a recipe. {_NOTE}"""\n\n{_START}\n\nserve("{RECIPE}")\n'
_REQUIREMENTS_TEXT = f"# {_NOTE}\ndem-hub[mixer]=={__version__}\n"


def push_space(
    recipe: str | os.PathLike[str],
    repo_id: str,
    *,
    include_vectors: bool = False,
    base_model: str | None = None,
    **options: Unpack[PushOptions],
) -> "CommitInfo":
    """Push a Space with the mixer of a recipe: `dem-hub push RECIPE --space REPO_ID`.

    Args:
        recipe (`str` or `os.PathLike`): Folder of a recipe or of a search, or Hub id of a recipe.
        repo_id (`str`): The Space, `namespace/name`. It is created on a free machine if it does not exist.
        include_vectors (`bool`, *optional*, defaults to `False`): Push vectors that are folders of this machine, too.
        base_model (`str`, *optional*): Hub id of the base, if the base is a folder of this machine.
        options ([`PushOptions`]): `private`, `token`, `revision`, `create_pr` and others, as in
            [`DEMConfig.push_to_hub`].

    Returns:
        `CommitInfo`: The commit.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the recipe refers to folders of this machine or to private repositories, or
            the Space has an app that dem_hub did not write.
        [`~dem_hub.errors.PushConflictError`]: If another commit changed the same files in the meantime.
    """
    token = options.get("token")
    source = VectorSource.parse(recipe)
    read = DEMConfig.from_pretrained(source, token=token)
    public = public_recipe(read, include_vectors=include_vectors, base_model=base_model, token=token)
    private = [name for name in repositories(public.recipe) if is_private(name, token=token)]
    _check_closed(private, is_closed=bool(options.get("private")))
    search = _public_search(source, public.recipe)
    with read.base_files(HubOptions(token)) as beside:
        files: dict[str, Path | str] = {APP: _APP_TEXT, REQUIREMENTS: _REQUIREMENTS_TEXT}
        for name, content in {**public.files(beside), **search}.items():
            files[f"{RECIPE}/{name}"] = content
        announce(repo_id, files, is_space=True)

        def compose(head: Head) -> Change:
            _check_own(head)
            if private:  # the Space may have been there, open to everybody
                _check_closed(private, is_closed=is_private(head.repo_id, repo_type=head.repo_type, token=token))
            card = space_card(head.repo_id, public, has_search=bool(search))
            old = {path for path in head.files if path.startswith(f"{RECIPE}/")}
            return Change({**files, CARD: render(card, head.read(CARD))}, frozenset(old - files.keys()))

        return push(repo_id, compose, options, "Push the mixer", repo_type="space")


def space_card(repo_id: str, public: PublicRecipe, *, has_search: bool) -> Card:
    """Return the README of a Space, whose metadata say how the Hub builds and starts it."""
    recipe = public.recipe
    title = repo_id.rpartition("/")[2]
    metadata: dict[str, Any] = {
        "title": title,
        "emoji": "🎚️",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": APP,
        "suggested_hardware": "cpu-basic",
        "models": [str(name) for name in repositories(recipe)],
        "tags": list(TAGS),
        **shared_license(public.licenses),
    }
    rows: list[tuple[str, str]] = [(markdown_link(str(recipe.base.repo_id)), "base")]
    names = short_names(list(recipe.coefficients))
    for name, vector in zip(names, recipe.vectors, strict=True):
        # A vector that came along is no repository.
        shown: str = markdown_link(vector.name) if vector.source.is_repository else name
        rows.append((shown, coefficient_text(vector.coefficient)))
    shows = "what the mixture answers, beside the base"
    if has_search:
        shows = f"the loss to expect of every mixture, and {shows}"
    text = [
        f"A page with a slider for each vector of a recipe. It shows {shows}.",
        markdown_table(("model or vector", "coefficient at the start"), rows),
        provenance(public.licenses),
    ]
    return Card(title, metadata, "\n\n".join(text))


def serve(folder: str) -> None:
    """Open the mixer of a Space, until the process ends. `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT` say where.

    Args:
        folder (`str`): Folder of the recipe.
    """
    from dem_hub.mixer.opening import open_mixer
    from dem_hub.mixer.page import launch

    mixer = open_mixer(folder, output=Path("mixtures"))
    mixer.opening = replace(mixer.opening, no_data=_NO_DATA)
    # Whoever reaches this page is a stranger, whatever address it listens on: the Hub's own server stands before it.
    launch(mixer, host=None).block_thread()


def _check_closed(private: Sequence[str], *, is_closed: bool) -> None:
    """Refuse private repositories in an open Space: it would tell their names, and cannot read them."""
    if private and not is_closed:
        refuse(
            ConfigError,
            "Everybody could open this Space, and it would name repositories that are private.",
            [f"'{name}'" for name in private],
            "Make them public first. Or push to a new Space that is private (--private, in Python private=True), and "
            "give it a secret HF_TOKEN in its settings that can read them.",
        )


def _check_own(head: Head) -> None:
    """Refuse a Space with an app that we did not write: a push would take its place."""
    app = head.read(APP)
    if app is not None and _START not in app:
        raise ConfigError(
            f"The Space '{head.repo_id}' has an {APP} that dem_hub did not write. Nothing was pushed. Choose another "
            "name, or remove that file."
        )


def _public_search(source: VectorSource, recipe: DEMConfig) -> Mapping[str, str]:
    """Return the file of a search with what the page shows of it; nothing if the page can expect no losses from it."""
    if not (source.is_local and Path(source.repo_id, source.subfolder, SEARCH_RESULT).is_file()):
        return {}
    result = SearchResult.from_pretrained(Path(source.repo_id, source.subfolder))
    if Prediction.of_recipe(result) is None or result.model is None:
        return {}
    base = {}
    if result.table is not None and BASE in result.table.cells:
        base[BASE] = result.table.cells[BASE]
    told = replace(
        result,
        model=replace(result.model, names=tuple(recipe.coefficients)),
        table=CrossLoss(base),
        acceptance=None,
        refinement=None,
        regmean=None,
        notes=(),
    )
    return {SEARCH_RESULT: json.dumps(to_file(told, Path(RECIPE)), indent=1) + "\n"}
