"""Model cards: what we know of a repository, written into its README and kept up to date, around what a person wrote there.

Our part stands between two marks and is written anew with each push; everything else stays. Of the metadata, ours are the keys that say
what the repository is; lists are joined, and what a person set of the rest stays.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dem_hub.files.records import REPO_ID, Coefficient, coefficient_text
from dem_hub.hub.listing import RECIPE_TAG, STORE_TAG, VECTOR_TAG
from dem_hub.vectors.config import VectorConfig

BEGIN = "<!-- dem-hub: from here to the next mark the text is written anew with each push -->"
END = "<!-- dem-hub: end -->"
PICTURE = "perplexity.png"
_OURS = ("library_name", "base_model", "base_model_relation", "model-index")
_TAGS = ("dem", "distribution-edited-model")
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


def vector_card(
    repo_id: str,
    subfolder: str,
    config: VectorConfig | None,
    base: str | None,
    licenses: Mapping[str, str],
    training: Mapping[str, Any] | None = None,
    picture: str = "",
) -> Card:
    """The card of a vector, or of a PEFT adapter (`config` is `None`), with what it was trained on and a picture beside it."""
    name = f"{repo_id}//{subfolder}" if subfolder else repo_id
    facts = {"base": _link(base)}
    training = (config.training if config is not None else training) or {}
    if config is not None:
        facts |= _vector_facts(config)
    facts |= {
        key.replace("_", " "): ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in training.items()
    }
    metadata = {
        "library_name": "dem-hub" if config is not None else "peft",
        **_relation("adapter", [base]),
        "tags": [*_TAGS, VECTOR_TAG],
        **_license(licenses),
    }
    datasets = [name for name in training.get("datasets") or () if REPO_ID.fullmatch(str(name))]
    if datasets:
        metadata["datasets"] = datasets
    what = "A distribution vector: what fine-tuning added to its base, theta_i - theta_0."
    text = [
        what,
        _table(("", ""), list(facts.items())),
        f"![The norm of the delta in each layer]({picture})" if picture else "",
        _loading(f'"{base}", vectors={{"{name}": 1.0}}') if base else "",
        _source(licenses),
    ]
    return Card(name.rpartition("/")[2], metadata, "\n\n".join(part for part in text if part))


def store_card(
    repo_id: str, base: str | None, members: Mapping[str, tuple[str, int]], licenses: Mapping[str, str]
) -> Card:
    """The card of a store; of each vector its codec and its bytes."""
    rows = [(f"`{name}`", codec, f"{nbytes / 1e6:.1f} MB") for name, (codec, nbytes) in sorted(members.items())]
    chosen = ", ".join(f'"{repo_id}//{name}": {1 / len(members):.2g}' for name in sorted(members))
    text = [
        f"Distribution vectors of {_link(base)}, to be added to it with coefficients.",
        _table(("vector", "codec", "size"), rows),
        _loading(f'"{base}", vectors={{{chosen}}}') if members else "",
        _source(licenses),
    ]
    metadata = {
        "library_name": "dem-hub",
        **_relation("adapter", [base]),
        "tags": [*_TAGS, VECTOR_TAG, STORE_TAG],
        **_license(licenses),
    }
    return Card(repo_id.rpartition("/")[2], metadata, "\n\n".join(part for part in text if part))


def recipe_card(
    repo_id: str,
    base: str,
    coefficients: Mapping[str, Coefficient],
    search: Mapping[str, Any] | None,
    licenses: Mapping[str, str],
    *,
    merged: bool = False,
) -> Card:
    """The card of a recipe, or of the model that was merged from one."""
    before, after = (
        {k: float(v) for k, v in dict((search or {}).get(name) or {}).items()} for name in ("base_losses", "losses")
    )
    values = [
        f"({coefficient_text(value)})" if isinstance(value, Mapping) else f"{value:g}"
        for value in coefficients.values()
    ]
    formula = "base + " + " + ".join(f"{value} * vector" for value in values)
    text = [f"A distribution-edited model: {formula}.", _table(("", "coefficient"), _terms(base, coefficients))]
    if after:
        rows = [
            (name, f"{math.exp(before[name]):.2f}" if name in before else "", f"{math.exp(loss):.2f}", f"{loss:.4f}")
            for name, loss in after.items()
        ]
        text.append("Validation perplexity, by which the coefficients were chosen:")
        text.append(_table(("data", "base", "this model", "loss, nats a token"), rows))
        text.append(f"![Perplexity before and after]({PICTURE})" if before else "")
    text += [_loading(f'"{repo_id}"', transformers=True) if not merged else _plain(repo_id), _source(licenses)]
    metadata = {
        "library_name": "transformers" if merged else "dem-hub",
        **_relation("merge", [base, *(name.partition("//")[0] for name in coefficients)]),
        "pipeline_tag": "text-generation",
        "tags": [*_TAGS, *(() if merged else (RECIPE_TAG,))],
        **_license(licenses),
    }
    if after:
        metadata["model-index"] = [
            {"name": repo_id.rpartition("/")[2], "results": [_result(*item) for item in after.items()]}
        ]
    return Card(repo_id.rpartition("/")[2], metadata, "\n\n".join(part for part in text if part))


def _vector_facts(config: VectorConfig) -> dict[str, str]:
    records = list(config.tensors.values())
    norm = math.sqrt(sum(record.norm**2 for record in records))
    error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records)) / norm if norm else 0.0
    codec = " ".join([config.codec, *(f"{name}={value}" for name, value in config.codec_options.items())])
    facts = {"fine-tune": _link(config.finetuned) if config.finetuned else "", "codec": codec, "chosen": config.choice}
    facts |= {"tensors changed": str(len(records)), "norm": f"{norm:.4g}", "relative error": f"{error:.3g}"}
    return {name: value for name, value in facts.items() if value}


def _terms(base: str, coefficients: Mapping[str, Coefficient]) -> list[tuple[str, str]]:
    return [(_link(base), "base"), *((_link(name), coefficient_text(value)) for name, value in coefficients.items())]


def _result(name: str, loss: float) -> dict[str, Any]:
    metric = {"type": "perplexity", "value": round(math.exp(loss), 4), "name": "validation perplexity"}
    return {"task": {"type": "text-generation"}, "dataset": {"type": name, "name": name}, "metrics": [metric]}


def _relation(relation: str, sources: Sequence[str | None]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for name in sources if name))
    return {"base_model": names, "base_model_relation": relation} if names else {}


def _license(licenses: Mapping[str, str]) -> dict[str, str]:
    """The licence that all of them have; where they disagree, that is for a person to settle."""
    different = sorted(set(licenses.values()))
    if len(different) > 1:
        warnings.warn(
            f"The licences disagree: {_by_repository(licenses)}. Check what may be shared, and state a license.",
            stacklevel=2,
        )
    return {"license": different[0]} if len(different) == 1 else {}


def _source(licenses: Mapping[str, str]) -> str:
    note = ""
    if len(set(licenses.values())) > 1:
        note = (
            f"The licences of its parts disagree: {_by_repository(licenses)}. Check what applies before you use it.\n\n"
        )
    return f"{note}Made with [dem_hub](https://pypi.org/project/dem-hub/), after {_PAPER}."


def _by_repository(licenses: Mapping[str, str]) -> str:
    return ", ".join(f"{name} has {license}" for name, license in licenses.items())


def _loading(arguments: str, *, transformers: bool = False) -> str:
    lines = ["from dem_hub import DEMModel", "", f"model = DEMModel.from_pretrained({arguments})"]
    if transformers:
        lines += ["", f"# or, once dem_hub is imported: AutoModelForCausalLM.from_pretrained({arguments})"]
    return "\n".join(["```python", *lines, "```"])


def _plain(repo_id: str) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}")',
    ]
    return "\n".join(["```python", *lines, "```"])


def _link(name: str | None) -> str:
    if not name:
        return ""
    repo_id = name.partition("//")[0].partition("@")[0]
    return (
        f"[{name}](https://huggingface.co/{repo_id})"
        if repo_id.count("/") == 1 and not repo_id.startswith((".", "/"))
        else f"`{name}`"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
