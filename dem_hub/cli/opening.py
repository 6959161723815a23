"""The model and the vectors that `merge` and `export` name in the same way: a base with `--vector` options, or a
recipe alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dem_hub.cli.arguments import MODEL, number, split_pairs
from dem_hub.cli.command import PATH, argument, option

if TYPE_CHECKING:
    from dem_hub.merging.opened_recipe import OpenedRecipe

model_argument = argument("model", type=PATH, help="Hub id or folder of a recipe, or of a base if --vector is given.")
vector_option = option(
    "--vector",
    "vectors",
    type=PATH,
    multiple=True,
    group=MODEL,
    metavar="ID[@REVISION][//SUBFOLDER]=COEFFICIENT",
    help="Vector or LoRA adapter, and its coefficient. Can be repeated.",
)


def open_named(
    model: str, vectors: Sequence[str], *, check_base: bool = True, headers_only: bool = False
) -> "OpenedRecipe":
    """Open what a command names.

    Args:
        model (`str`): a base, or a recipe.
        vectors (`Sequence[str]`): `ID=COEFFICIENT` for each vector; empty for a recipe.
        check_base (`bool`): refuse vectors that were made from another base.
        headers_only (`bool`): download no weights.

    Raises:
        `ConfigError`: a vector without a coefficient, or one that is named twice. All that [`open_recipe`] raises.
    """
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.opening import open_base_and_vectors, open_recipe

    source = VectorSource.parse(model)
    if not vectors:
        return open_recipe(source, check_base=check_base, headers_only=headers_only)
    coefficients = {}
    for name, text in split_pairs(vectors, "--vector", "maths-vector=0.5").items():
        coefficients[VectorSource.parse(name)] = number(text, f"coefficient of '{name}'")
    return open_base_and_vectors(source, coefficients, check_base=check_base, headers_only=headers_only)
