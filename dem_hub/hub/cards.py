"""Model cards: what we know of a repository, written into its README and kept up to date, around what a person wrote there.

Our part stands between two marks and is written anew with each push; everything else stays. Of the metadata, ours are the keys that say
what the repository is; lists are joined, and what a person set of the rest stays.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEGIN = "<!-- dem-hub: from here to the next mark the text is written anew with each push -->"
END = "<!-- dem-hub: end -->"
_OURS = ("library_name", "base_model", "base_model_relation", "model-index")
TAGS = ("dem", "distribution-edited-model")
_PAPER = "[Distribution Edited Model](https://aclanthology.org/2024.emnlp-main.1074/) (Ram et al., EMNLP 2024)"


@dataclass(frozen=True)
class Card:
    """What we have to say: a title for a README that has none, metadata, and a text."""

    title: str
    metadata: Mapping[str, Any]
    text: str


def render(card: Card, existing: str | None = None) -> str:
    """The README of a repository.

    Args:
        card ([`Card`]): ours.
        existing (`str`, *optional*): what the repository has now.

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

    before = ModelCard(existing, ignore_metadata_errors=True) if existing else None
    text = before.text.strip("\n") if before is not None else ""
    ours = f"{BEGIN}\n\n{card.text.strip()}\n\n{END}"
    start, end = text.find(BEGIN), text.find(END)
    if 0 <= start < end:
        text = text[:start] + ours + text[end + len(END) :]
    else:
        text = "\n\n".join(part for part in (text or f"# {card.title}", ours) if part)
    after = ModelCard("---\n{}\n---\n" + text + "\n")
    for key, value in _merge(before.data.to_dict() if before is not None else {}, card.metadata).items():
        after.data[key] = value
    return str(after)


def _merge(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(theirs)
    for key, value in ours.items():
        old = merged.get(key)
        if key in _OURS or old in (None, "", []):
            merged[key] = value
        elif isinstance(value, list):
            merged[key] = list(dict.fromkeys([*(old if isinstance(old, list) else [old]), *value]))
    return merged


def relation(relation: str, sources: Sequence[str | None]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for name in sources if name))
    return {"base_model": names, "base_model_relation": relation} if names else {}


def shared_license(licenses: Mapping[str, str]) -> dict[str, str]:
    """The licence that all of them have; where they disagree, that is for a person to settle."""
    different = sorted(set(licenses.values()))
    if len(different) > 1:
        warnings.warn(
            f"The licences disagree: {_by_repository(licenses)}. Check what may be shared, and state a license.",
            stacklevel=2,
        )
    return {"license": different[0]} if len(different) == 1 else {}


def provenance(licenses: Mapping[str, str]) -> str:
    note = ""
    if len(set(licenses.values())) > 1:
        note = (
            f"The licences of its parts disagree: {_by_repository(licenses)}. Check what applies before you use it.\n\n"
        )
    return f"{note}Made with [dem_hub](https://pypi.org/project/dem-hub/), after {_PAPER}."


def _by_repository(licenses: Mapping[str, str]) -> str:
    return ", ".join(f"{name} has {license}" for name, license in licenses.items())


def loading_code(arguments: str, *, transformers: bool = False) -> str:
    lines = ["from dem_hub import DEMModel", "", f"model = DEMModel.from_pretrained({arguments})"]
    if transformers:
        lines += ["", f"# or, once dem_hub is imported: AutoModelForCausalLM.from_pretrained({arguments})"]
    return "\n".join(["```python", *lines, "```"])


def plain_loading_code(repo_id: str) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}")',
    ]
    return "\n".join(["```python", *lines, "```"])


def link(name: str | None) -> str:
    if not name:
        return ""
    repo_id = name.partition("//")[0].partition("@")[0]
    return (
        f"[{name}](https://huggingface.co/{repo_id})"
        if repo_id.count("/") == 1 and not repo_id.startswith((".", "/"))
        else f"`{name}`"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
