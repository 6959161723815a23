"""Opening a config: its base and a vector for each model.

An adapter is a vector as it is. Of a whole model the vector is extracted without loss into a temporary folder. The
recipe names the model that it came from, because that is what others can find. So it says what a merge was made of, and
only a recipe of adapters alone can be opened again. TIES and DARE are transformations of the vectors.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tensor_groups import layer_number
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import ConfigError
from dem_hub.files.names import MODEL_FILES
from dem_hub.files.shown import shown
from dem_hub.hub.download import resolve
from dem_hub.mergekit.document import Document, Input, ModelName, with_base
from dem_hub.mergekit.token_rows import check_rows
from dem_hub.mergekit.weights import Single, coefficients, divisor, merged_inputs, single_values, weights_by_tensor
from dem_hub.merging.cards import TRANSFORMATION
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors, record_of
from dem_hub.transformations.dare import Dare
from dem_hub.transformations.ties import Ties
from dem_hub.transformations.transformation import Transformation, transform
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.tokens import tokens_of
from dem_hub.vectors.vector import DistributionVector

logger = logging.getLogger(__name__)

# Without loss, so that the sum is that of the models; smaller than the models, as only the changes are stored.
_CODEC = "exact"

# Decides which elements DARE keeps. A mergekit config has none.
_SEED = 0

_CPU = torch.device("cpu")


def open_document(document: Document) -> OpenedRecipe:
    """Open the base and the models of a config, and return the recipe that gives its merge.

    Args:
        document ([`Document`]): The config.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If its weights or its tokenizer have no counterpart here.
        [`~dem_hub.errors.DemHubError`]: What opening a base, extracting a vector or opening an adapter raises.
    """
    document = with_base(document)
    assert document.base is not None
    opened = open_base_and_vectors(document.base.model, {})
    base = opened.base
    _check_layers(document, base)
    # Weights are looked at before vectors are extracted, which takes long.
    singles = None
    weights: dict[str, list[float]] = {}
    if document.method in ("linear", "task_arithmetic"):
        weights = weights_by_tensor(document, base)
    else:
        singles = single_values(document, base)
    found = [_find(given, document.base) for given in merged_inputs(document)]
    vectors = [one.vector for one in found]
    if singles is None:
        changed = [list(deltas) for deltas in all_deltas(vectors, base)]
        numbers = coefficients(document, base, weights, changed)
    else:
        _refuse_tokens(document, vectors, base)
        vectors, numbers = _transformed(document, singles, base, vectors)
    _check_tokens(document, base, vectors, numbers)
    records = []
    for one, vector, number in zip(found, vectors, numbers, strict=True):
        record = record_of(vector, number, base)
        records.append(replace(record, repo_id=one.repo_id, commit=one.commit, subfolder=""))
    recipe = replace(
        opened.recipe, vectors=tuple(records), dtype=document.dtype, search=_transformation(document, singles)
    )
    return OpenedRecipe(recipe, base, tuple(vectors))


@dataclass(frozen=True)
class _Found:
    """A vector, and where the model or the adapter is that it came from."""

    vector: DistributionVector
    repo_id: str
    commit: str | None


def _find(given: Input, base: ModelName) -> _Found:
    name = given.name
    if name.lora is not None:
        vector = DistributionVector.from_pretrained(name.lora)
        return _Found(vector, str(name.lora.absolute.repo_id), vector.commit)
    resolved = resolve(name.model, MODEL_FILES)
    source = replace(name.model.absolute, revision=resolved.commit)
    vector = DistributionVector.extract(base.model, source, codec=_CODEC)
    return _Found(vector, source.repo_id, resolved.commit)


def _check_layers(document: Document, base: Base) -> None:
    """Refuse a slice that leaves out layers, or takes those of another place."""
    numbers = {layer_number(key) for key in base.checkpoint}
    count = 1 + max((number for number in numbers if number is not None), default=-1)
    for given in document.inputs:
        if given.layers is not None and given.layers != (0, count):
            first, stop = given.layers
            raise ConfigError(
                f"layer_range of '{given.name}' is [{first}, {stop}], and the base has the layers [0, {count}]. A "
                "model with other layers than its base is no sum of vectors: make this merge with mergekit."
            )


def _transformed(
    document: Document, singles: Single, base: Base, vectors: Sequence[DistributionVector]
) -> tuple[list[DistributionVector], list[Coefficient]]:
    """Return the vectors after TIES or DARE, and their coefficients."""
    method = document.method
    made = list(vectors)
    densities = singles.densities
    if method.startswith("dare"):
        made = [_drop(base, vector, density) for vector, density in zip(vectors, densities, strict=True)]
        densities = (1.0,) * len(made)
    scale = singles.scale
    if method == "dare_linear":
        if singles.normalize:
            scale /= divisor(singles.weights)
    else:
        made = _apply(base, made, Ties(densities, singles.weights, singles.normalize))
    return made, [weight * scale for weight in singles.weights]


def _transformation(document: Document, singles: Single | None) -> dict[str, Any] | None:
    """Return what a recipe says about vectors that are no differences of models any more."""
    if singles is None:
        return None
    return {TRANSFORMATION: document.method, "densities": list(singles.densities)}


def _drop(base: Base, vector: DistributionVector, density: float) -> DistributionVector:
    if density == 1:
        return vector
    logger.warning(
        "mergekit draws the elements that DARE keeps anew in each run. Here they are the same in each run, and divided "
        "by the density %g; mergekit scales them to the old sum of magnitudes, which is nearly the same.",
        density,
    )
    return _apply(base, [vector], Dare(density, _SEED))[0]


def _apply(
    base: Base, vectors: Sequence[DistributionVector], transformation: Transformation
) -> list[DistributionVector]:
    return transform(base, vectors, transformation, encoder_from_name(_CODEC, {}), _CPU)


def _refuse_tokens(document: Document, vectors: Sequence[DistributionVector], base: Base) -> None:
    for text, count in _tokens(vectors, base).items():
        raise ConfigError(
            f"{count} of the models bring the token {shown(text)}, and {document.method} in mergekit weighs its row "
            "against the others. Use task_arithmetic, or models without new tokens."
        )


def _tokens(vectors: Sequence[DistributionVector], base: Base) -> dict[str, int]:
    """Return the new tokens of the vectors, each with the number of vectors that have it."""
    counts: dict[str, int] = {}
    for vector in vectors:
        for text in tokens_of(vector, base) or ():
            counts[text] = counts.get(text, 0) + 1
    return counts


def _check_tokens(
    document: Document, base: Base, vectors: Sequence[DistributionVector], numbers: Sequence[Coefficient]
) -> None:
    """Refuse new tokens without `tokenizer_source: union`, and those for which mergekit has another mean."""
    tokens = [tokens_of(vector, base) or {} for vector in vectors]
    first = next((text for of_vector in tokens for text in of_vector), None)
    if first is not None and document.tokenizer != "union":
        raise ConfigError(
            f"tokenizer_source is {document.tokenizer or 'not there'}, and a model brings the token {shown(first)}, "
            "which the base lacks. Merged models keep the tokens of their vectors: write tokenizer_source: union."
        )
    check_rows(tokens, numbers)
