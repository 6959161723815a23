"""Model cards: what dem_hub knows about a repository, in its README, around the text that a person wrote there.

Our text stands between two marks and is replaced with each push; everything else in the README stays. Of the
metadata, the keys that say what the repository is are ours. Lists (such as tags) are joined, and every other value
that a person set stays.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dem_hub.hub.foreign_text import Markdown, code_span, code_string, markdown, printable

# The marks are in the READMEs of published repositories, and are how our text is found there. They must not change.
BEGIN = "<!-- dem-hub: from here to the next mark the text is written anew with each push -->"
END = "<!-- dem-hub: end -->"

# Our part of a README, from the last mark that begins one before a mark that ends one: a lone mark is a person's text.
_PART = re.compile(f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)

TAGS = ("dem", "distribution-edited-model")

_PART_OF_ID = r"\w[\w.-]*"
# What becomes a link: a repository in a namespace, maybe at a revision, and a subfolder of it.
_LINKED = re.compile(rf"(?P<repo_id>{_PART_OF_ID}/{_PART_OF_ID})(@[\w][\w./-]*)?(//[\w][\w./-]*)?")

# Metadata that says what the repository is; ours replaces what is there.
_OUR_KEYS = ("library_name", "base_model", "base_model_relation", "model-index")
# What says how a Space is built and started; ours replaces it, too.
_OUR_SPACE_KEYS = ("sdk", "sdk_version", "python_version", "app_file")
_PAPER = "[Distribution Edited Model](https://aclanthology.org/2024.emnlp-main.1074/) (Ram et al., EMNLP 2024)"


@dataclass(frozen=True)
class Card:
    """Our part of a README: a title (used if there is no text yet), metadata, and a text in Markdown."""

    title: str
    metadata: Mapping[str, Any]
    text: str


def render(card: Card, existing: str | None = None) -> str:
    """Return the README of a repository.

    Args:
        card ([`Card`]): Our part.
        existing (`str`, *optional*): The README that the repository has now.

    Example:

    ```python
    >>> from dem_hub.hub.cards import Card, render
    >>> first = render(Card("maths", {"tags": ["dem"]}, "made once"))
    >>> second = render(Card("maths", {"tags": ["dem"]}, "made again"), first + "My own notes.")
    >>> "made once" in second, "made again" in second, "My own notes." in second
    (False, True, True)

    ```
    """
    from huggingface_hub import ModelCard

    their_text = ""
    their_metadata: Mapping[str, Any] = {}
    if existing:
        their_card = ModelCard(existing, ignore_metadata_errors=True)
        their_text = their_card.text.strip("\n")
        their_metadata = their_card.data.to_dict()
    text = _insert(card, their_text)
    rendered = ModelCard("---\n{}\n---\n" + text + "\n")
    for key, value in _merge(their_metadata, card.metadata).items():
        rendered.data[key] = value
    return str(rendered)


def _insert(card: Card, text: str) -> str:
    """Return a README's text with our part in it: in the place of an earlier one, or at the end."""
    ours = f"{BEGIN}\n\n{card.text.strip()}\n\n{END}"
    # A second part of ours would stay as it is for ever, so it goes.
    first, *others = _PART.split(text)
    if others:
        return first + ours + _without_parts("".join(others))
    theirs = text or f"# {markdown(card.title)}"
    return f"{theirs}\n\n{ours}"


def _without_parts(text: str) -> str:
    """Remove all parts of ours, also those that lone marks become when what was between them is gone."""
    shorter = _PART.sub("", text)
    while shorter != text:
        text, shorter = shorter, _PART.sub("", shorter)
    return text


def _merge(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a card: `theirs` with ours added."""
    merged = dict(theirs)
    for key, value in ours.items():
        old = merged.get(key)
        if key in (*_OUR_KEYS, *_OUR_SPACE_KEYS) or old in (None, "", []):
            merged[key] = value
        elif isinstance(value, list):
            old_values = old if isinstance(old, list) else [old]
            merged[key] = list(dict.fromkeys([*old_values, *value]))
    return merged


def base_models(relation: str, names: Sequence[str | None]) -> dict[str, Any]:
    """Return the metadata that links a repository to the models it is made from.

    Args:
        relation (`str`): The Hub's word for it: `adapter` or `merge`.
        names (`Sequence[str]`): Hub ids; names that are empty or `None` are left out.
    """
    named = list(dict.fromkeys(str(name) for name in names if name))
    if not named:
        return {}
    return {"base_model": named, "base_model_relation": relation}


def shared_license(licenses: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of the license that all parts have. If they disagree, warn: a person has to decide.

    Args:
        licenses (`Mapping[str, str]`): The license of each repository that states one.
    """
    different = sorted(set(licenses.values()))
    if len(different) > 1:
        warnings.warn(
            f"The licenses disagree: {_by_repository(licenses)}. Check what may be shared, and state a license.",
            stacklevel=2,
        )
    if len(different) != 1:
        return {}
    return {"license": printable(different[0])}


def provenance(licenses: Mapping[str, str]) -> str:
    """Return the sentences that name dem_hub and the paper, and say whether the licenses of the parts disagree."""
    note = ""
    if len(set(licenses.values())) > 1:
        note = (
            f"The licenses of its parts disagree: {_by_repository(licenses)}. Check which apply before you use it.\n\n"
        )
    return f"{note}Made with [dem_hub](https://pypi.org/project/dem-hub/). The method is {_PAPER}."


def _by_repository(licenses: Mapping[str, str]) -> str:
    return ", ".join(f"{markdown(name)} has {markdown(license)}" for name, license in licenses.items())


def loading_code(arguments: str, loader: str | None = None) -> str:
    """Return a block of code that loads a model with dem_hub.

    Args:
        arguments (`str`): The arguments of `DEMModel.from_pretrained`, as code.
        loader (`str`, *optional*): The class of transformers that can load it too, which only holds for a recipe.
    """
    lines = ["from dem_hub import DEMModel", "", f"model = DEMModel.from_pretrained({arguments})"]
    if loader is not None:
        lines += [
            "",
            f"# transformers loads it too, once dem_hub is imported: {loader}.from_pretrained({arguments})",
        ]
    return _code_block(lines)


def plain_loading_code(repo_id: str, loader: str) -> str:
    """Return a block of code that loads a merged model without dem_hub, with a class of transformers."""
    return _code_block(
        [f"from transformers import {loader}", "", f"model = {loader}.from_pretrained({code_string(repo_id)})"]
    )


def _code_block(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def markdown_link(name: str | None) -> Markdown:
    """Return a link to a repository of the Hub, named as in [`VectorSource`].

    What cannot be the name of such a repository (a local path, or a text of somebody) is shown as code, and `None` is
    an empty text.
    """
    if not name:
        return Markdown()
    match = _LINKED.fullmatch(name)
    if match is None:
        return code_span(name)
    return Markdown(f"[{name}](https://huggingface.co/{match['repo_id']})")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. A cell that is not [`Markdown`] is shown as the text that it is.

    A `|` in a cell would end the cell, so it becomes a `/`.
    """
    lines = []
    for cells in (head, ["---"] * len(head), *rows):
        escaped = [markdown(cell).replace("|", "/") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)
