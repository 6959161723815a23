"""Model cards of recipes, and of the models merged from them."""

import math
from collections.abc import Mapping
from typing import Any

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
from dem_hub.hub.foreign_text import code_string, printable
from dem_hub.hub.listing import RECIPE_TAG
from dem_hub.merging.coefficients import Coefficient, coefficient_text


def recipe_card(
    repo_id: str,
    base: str,
    coefficients: Mapping[str, Coefficient],
    search: Mapping[str, Any] | None,
    licenses: Mapping[str, str],
    *,
    merged: bool = False,
) -> Card:
    """Return the card of a recipe, or of the model that was merged from one.

    Args:
        repo_id (`str`): Repository of the card.
        base (`str`): Id of the base.
        coefficients (`Mapping[str, Coefficient]`): The coefficient of each vector, by `id` or `id//subfolder`.
        search (`Mapping[str, Any]`, *optional*): How the coefficients were found; its losses become a table of
            perplexities.
        licenses (`Mapping[str, str]`): The license of each repository that states one.
        merged (`bool`, *optional*, defaults to `False`): The card is of a merged model.
    """
    name = repo_id.rpartition("/")[2]
    losses = _losses(search, "losses")
    base_losses = _losses(search, "base_losses")
    form = "It is a recipe of a few kB: dem_hub merges the model while it loads."
    if merged:
        form = "The vectors are already merged into the weights: it loads like any other model."
    text = [
        f"This is a distribution-edited model: {_formula(coefficients)}. A vector is the difference between a fine-tune "
        f"and the base. {form}",
        markdown_table(("model or vector", "coefficient"), _terms(base, coefficients)),
    ]
    if losses:
        text.append("The coefficients were chosen by this validation perplexity (lower is better):")
        text.append(_perplexities(losses, base_losses))
        if base_losses:
            text.append(f"![Perplexity of the base and of this model]({PERPLEXITY_PLOT})")
    if merged:
        text.append(plain_loading_code(repo_id))
    else:
        text.append(loading_code(code_string(repo_id), transformers=True))
    text.append(provenance(licenses))
    metadata = {
        "library_name": "transformers" if merged else "dem-hub",
        **base_models("merge", [base, *(vector.partition("//")[0] for vector in coefficients)]),
        "pipeline_tag": "text-generation",
        "tags": list(TAGS) if merged else [*TAGS, RECIPE_TAG],
        **shared_license(licenses),
    }
    if losses:
        results = [_result(data, loss) for data, loss in losses.items()]
        metadata["model-index"] = [{"name": name, "results": results}]
    return Card(name, metadata, "\n\n".join(text))


def _losses(search: Mapping[str, Any] | None, key: str) -> dict[str, float]:
    losses = (search or {}).get(key) or {}
    return {name: float(loss) for name, loss in losses.items()}


def _formula(coefficients: Mapping[str, Coefficient]) -> str:
    terms = ["base"]
    for coefficient in coefficients.values():
        number = coefficient_text(coefficient)
        if isinstance(coefficient, Mapping):
            number = f"({number})"
        terms.append(f"{number} * vector")
    return " + ".join(terms)


def _terms(base: str, coefficients: Mapping[str, Coefficient]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [(markdown_link(base), "base")]
    for name, coefficient in coefficients.items():
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


def _result(name: str, loss: float) -> dict[str, Any]:
    """Return one entry of the metadata's `model-index`, in the Hub's format."""
    metric = {"type": "perplexity", "value": round(math.exp(loss), 4), "name": "validation perplexity"}
    data = printable(name)
    return {"task": {"type": "text-generation"}, "dataset": {"type": data, "name": data}, "metrics": [metric]}
