"""What is shown of a recipe, in a shell and in a notebook."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dem_hub.hub.hashes import short_hash
from dem_hub.hub.report import Report, Table

if TYPE_CHECKING:
    from dem_hub.merging.config import DEMConfig


def recipe_report(recipe: "DEMConfig", title: str = "Recipe") -> Report:
    """Return a recipe: its base, its vectors with their coefficients, and how it is merged.

    Args:
        recipe ([`DEMConfig`]): The recipe.
        title (`str`): What it is called.
    """
    rows = []
    for name, coefficient in recipe.coefficients.items():
        if isinstance(coefficient, Mapping):
            rows += [(f"{name} [{group}]", f"{value:+.4f}") for group, value in coefficient.items()]
        else:
            rows.append((name, f"{coefficient:+.4f}"))
    dtype = recipe.dtype or "as the base"
    lines = [f"dtype   {dtype}, {recipe.rounding} rounding, seed {recipe.rounding_seed}"]
    if recipe.base_quantized is not None:
        lines.append(f"base in {recipe.base_quantized}")
    if recipe.search:
        lines += [f"search  {name}: {_value(value)}" for name, value in recipe.search.items()]
    return Report(title, ((f"base    {recipe.base}",), Table(("vector", "coefficient"), rows), lines))


def _value(value: Any) -> str:
    """Return a value of what a search says of itself in a line: numbers with five digits, mappings as pairs."""
    if isinstance(value, Mapping):
        pairs = []
        for name, inner in value.items():
            text = _value(inner)
            pairs.append(f"{name} ({text})" if isinstance(inner, Mapping) else f"{name} {text}")
        return ", ".join(pairs)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def difference_report(recipes: Mapping[str, "DEMConfig"]) -> Report:
    """Return what differs between two recipes that were named, of what decides about the merged weights."""
    ours, theirs = map(_lines, recipes.values())
    rows = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        mine, other = ours.get(name, "-"), theirs.get(name, "-")
        if mine != other:
            rows.append((name, mine, other))
    if not rows:
        return Report("Comparison of the two recipes", (("Nothing that decides about the merged weights differs.",),))
    return Report("Comparison of the two recipes", (Table(("", *recipes), rows),))


def _lines(recipe: "DEMConfig") -> dict[str, str]:
    """Return everything that decides about the merged weights, by name."""
    lines = {"base": str(recipe.base), "dtype": recipe.dtype or "as the base"}
    if recipe.base.fingerprint is not None:
        lines["base, fingerprint"] = short_hash(recipe.base.fingerprint)
    if recipe.base_quantized is not None:
        quantization = recipe.base_quantized
        skipped = ", ".join(quantization.llm_int8_skip_modules or ())
        lines["base, quantized"] = f"{quantization}, without {skipped or 'exceptions'}"
    lines["rounding"] = f"{recipe.rounding}, seed {recipe.rounding_seed}"
    for vector in recipe.vectors:
        coefficients = vector.coefficient
        if not isinstance(coefficients, Mapping):
            coefficients = {"": coefficients}
        for group, value in coefficients.items():
            lines[f"{vector.name} [{group}]" if group else vector.name] = f"{value:+.4f}"
        if vector.sha256 is not None:
            lines[f"{vector.name}, sha256"] = short_hash(vector.sha256)
    return lines
