"""Model cards of recipes, and of the models merged from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.checkpoints.tasks import task_of
from dem_hub.files.distinct_names import distinct_names
from dem_hub.files.names import PERPLEXITY_PLOT
from dem_hub.hub.cards import (
    TAGS,
    Card,
    base_models,
    loading_code,
    markdown_link,
    markdown_table,
    plain_loading_code,
    provenance,
    shared_license,
)
from dem_hub.hub.foreign_text import code_span, code_string, printable
from dem_hub.hub.listing import RECIPE_TAG
from dem_hub.hub.references import HubId, VectorSource
from dem_hub.merging.coefficients import Coefficient, coefficient_text
from dem_hub.merging.records import HERE

if TYPE_CHECKING:
    from dem_hub.merging.base_quantization import BaseQuantization
    from dem_hub.merging.config import DEMConfig


# Modules that a card names as not quantized. transformers leaves out one or two.
_SHOWN_MODULES = 10

# The key under which a recipe's `search` has the method that changed the vectors before they were summed.
TRANSFORMATION = "transformation"

# A name on a card, with its coefficient.
_Terms = Sequence[tuple[str, Coefficient]]


def recipe_card(
    repo_id: str,
    recipe: "DEMConfig",
    licenses: Mapping[str, str],
    *,
    merged: bool = False,
    below: Sequence["DEMConfig"] = (),
) -> Card:
    """Return the card of a recipe, or of the model that was merged from one.

    Only what is a repository is named as one. A folder of this machine is shown by its name, without its path.

    Args:
        repo_id (`str`): Repository of the card.
        recipe ([`DEMConfig`]): The recipe. The losses of its search become a table of perplexities.
        licenses (`Mapping[str, str]`): The license of each repository that states one.
        merged (`bool`, *optional*, defaults to `False`): The card is of a merged model.
        below (`Sequence[DEMConfig]`, *optional*): The recipe that is the base, the base of that, and so on.
    """
    name = repo_id.rpartition("/")[2]
    base, *vectors = _names(recipe, repo_id)
    terms = list(zip(vectors, recipe.coefficients.values(), strict=True))
    task = task_of(recipe.architectures[0]) if recipe.architectures else None
    losses = _losses(recipe.search, "losses")
    base_losses = _losses(recipe.search, "base_losses")
    form = "It is a recipe of a few kB: dem_hub merges the model while it loads."
    if merged:
        form = "The vectors are already merged into the weights: it loads like any other model."
    text = [
        f"This is a distribution-edited model: {_formula(terms)}. A vector is the difference between a fine-tune "
        f"and the base. {form}",
        markdown_table(("model or vector", "coefficient"), _rows(base, terms)),
    ]
    text += _changes(recipe)
    bases = [base]
    for inner in below:
        name_below, *vectors_below = _names(inner, bases[-1])
        text.append(f"The base {markdown_link(bases[-1])} is a recipe itself, from an earlier round:")
        terms_below = list(zip(vectors_below, inner.coefficients.values(), strict=True))
        text.append(markdown_table(("model or vector", "coefficient"), _rows(name_below, terms_below)))
        bases.append(name_below)
    if losses:
        text.append("The coefficients were chosen by this validation perplexity (lower is better):")
        text.append(_perplexities(losses, base_losses))
        if base_losses:
            text.append(f"![Perplexity of the base and of this model]({PERPLEXITY_PLOT})")
    loader = task.loader if task else None
    if not merged:
        text.append(loading_code(code_string(repo_id), loader))
    elif loader is not None:
        text.append(plain_loading_code(repo_id, loader))
    text.append(provenance(licenses))
    metadata: dict[str, Any] = {
        "library_name": "transformers" if merged else "dem-hub",
        **base_models("merge", repositories(recipe)),
        "tags": list(TAGS) if merged else [*TAGS, RECIPE_TAG],
        **shared_license(licenses),
    }
    if task and task.name:
        metadata["pipeline_tag"] = task.name
        if losses:
            results = [_result(task.name, data, loss) for data, loss in losses.items()]
            metadata["model-index"] = [{"name": name, "results": results}]
    return Card(name, metadata, "\n\n".join(text))


def _changes(recipe: "DEMConfig") -> list[str]:
    """Return what a card says about vectors and a base that were changed before they were summed."""
    texts = []
    method = (recipe.search or {}).get(TRANSFORMATION)
    if method is not None:
        texts.append(f"The vectors were changed by {code_span(str(method))} before they were summed.")
    if recipe.base_quantized is not None:
        texts.append(_quantization_text(recipe.base_quantized))
    return texts


def _quantization_text(quantization: "BaseQuantization") -> str:
    """Return what a card says about a base that is quantized before the vectors are added."""
    modules = quantization.llm_int8_skip_modules or ()
    names: list[str] = [code_span(name) for name in modules[:_SHOWN_MODULES]]
    if len(modules) > _SHOWN_MODULES:
        names.append(f"{len(modules) - _SHOWN_MODULES} others")
    skipped = ", ".join(names)
    return (
        f"The base's linear layers{f', without {skipped},' if skipped else ''} are first quantized to 4 bits and "
        f"dequantized, as they were when adapters were trained on them (QLoRA: {quantization}). The model itself is "
        "not quantized."
    )


def repositories(recipe: "DEMConfig") -> list[str]:
    """Return the ids of the repositories that a recipe is made from: the base's and the vectors', each once."""
    sources = [recipe.base.source, *(vector.source for vector in recipe.vectors)]
    return list(dict.fromkeys(source.repo_id for source in sources if source.is_repository))


def _names(recipe: "DEMConfig", repo_id: str) -> list[str]:
    """Return the names of the base and of the vectors as others know them.

    A vector that came along with a recipe is in the recipe's repository.
    """
    sources = [recipe.base.source]
    for vector in recipe.vectors:
        home = HubId(repo_id) if vector.repo_id == HERE else vector.repo_id
        sources.append(VectorSource(home, None, vector.subfolder))
    folders = [Path(source.repo_id, source.subfolder) for source in sources if not source.is_repository]
    of_folders = iter(distinct_names(folders))
    names = []
    for source in sources:
        if source.is_repository:
            names.append(str(replace(source, revision=None)))
        else:
            *parents, name = next(of_folders)
            names.append(f"{name} ({'/'.join(parents)})" if parents else name)
    return names


def _losses(search: Mapping[str, Any] | None, key: str) -> dict[str, float]:
    losses = (search or {}).get(key) or {}
    return {name: float(loss) for name, loss in losses.items()}


def _formula(terms: _Terms) -> str:
    summands = ["base"]
    for _, coefficient in terms:
        number = coefficient_text(coefficient)
        if isinstance(coefficient, Mapping):
            number = f"({number})"
        summands.append(f"{number} * vector")
    return " + ".join(summands)


def _rows(base: str, terms: _Terms) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [(markdown_link(base), "base")]
    for name, coefficient in terms:
        rows.append((markdown_link(name), coefficient_text(coefficient)))
    return rows


def _perplexities(losses: Mapping[str, float], base_losses: Mapping[str, float]) -> str:
    """Return a table of the perplexity of each distribution; the base's is left empty if it was not measured."""
    rows = []
    for name, loss in losses.items():
        before = ""
        if name in base_losses:
            before = f"{math.exp(base_losses[name]):.2f}"
        rows.append((name, before, f"{math.exp(loss):.2f}", f"{loss:.4f}"))
    return markdown_table(("data", "base", "this model", "loss of this model (nats per token)"), rows)


def _result(task: str, name: str, loss: float) -> dict[str, Any]:
    """Return one entry of the metadata's `model-index`, in the Hub's format."""
    metric = {"type": "perplexity", "value": round(math.exp(loss), 4), "name": "validation perplexity"}
    data = printable(name)
    return {"task": {"type": task}, "dataset": {"type": data, "name": data}, "metrics": [metric]}
