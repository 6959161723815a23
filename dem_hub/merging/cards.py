"""Model cards of recipes and of the models merged from them."""

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
    """The card of a recipe, or of the model that was merged from one."""
    before, after = (
        {k: float(v) for k, v in dict((search or {}).get(name) or {}).items()} for name in ("base_losses", "losses")
    )
    values = [
        f"({coefficient_text(value)})" if isinstance(value, Mapping) else f"{value:g}"
        for value in coefficients.values()
    ]
    formula = "base + " + " + ".join(f"{value} * vector" for value in values)
    text = [f"A distribution-edited model: {formula}.", markdown_table(("", "coefficient"), _terms(base, coefficients))]
    if after:
        rows = [
            (name, f"{math.exp(before[name]):.2f}" if name in before else "", f"{math.exp(loss):.2f}", f"{loss:.4f}")
            for name, loss in after.items()
        ]
        text.append("Validation perplexity, by which the coefficients were chosen:")
        text.append(markdown_table(("data", "base", "this model", "loss, nats a token"), rows))
        text.append(f"![Perplexity before and after]({PERPLEXITY_PLOT})" if before else "")
    text += [
        loading_code(f'"{repo_id}"', transformers=True) if not merged else plain_loading_code(repo_id),
        provenance(licenses),
    ]
    metadata = {
        "library_name": "transformers" if merged else "dem-hub",
        **base_models("merge", [base, *(name.partition("//")[0] for name in coefficients)]),
        "pipeline_tag": "text-generation",
        "tags": [*TAGS, *(() if merged else (RECIPE_TAG,))],
        **shared_license(licenses),
    }
    if after:
        metadata["model-index"] = [
            {"name": repo_id.rpartition("/")[2], "results": [_result(*item) for item in after.items()]}
        ]
    return Card(repo_id.rpartition("/")[2], metadata, "\n\n".join(part for part in text if part))


def _terms(base: str, coefficients: Mapping[str, Coefficient]) -> list[tuple[str, str]]:
    return [
        (markdown_link(base), "base"),
        *((markdown_link(name), coefficient_text(value)) for name, value in coefficients.items()),
    ]


def _result(name: str, loss: float) -> dict[str, Any]:
    metric = {"type": "perplexity", "value": round(math.exp(loss), 4), "name": "validation perplexity"}
    return {"task": {"type": "text-generation"}, "dataset": {"type": name, "name": name}, "metrics": [metric]}
