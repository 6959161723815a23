"""What the weights of a config are as coefficients: one number for a vector, or one for each group of its tensors.

mergekit has a weight for each tensor. All of them are worked out first, by its own rules. Then a coefficient is
looked for that says the same of every tensor that the vector changes. What no coefficient says is refused, with two
tensors that would need different ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tensor_groups import REST, layer_number
from dem_hub.errors import ConfigError
from dem_hub.mergekit.document import NORMALIZES, Document, Input
from dem_hub.mergekit.settings import Parameters, Place, find_number, find_switch, places_of
from dem_hub.merging.coefficients import Coefficient

# A sum of weights below which mergekit's task arithmetic divides by 1.
_NO_SUM = 1e-8

# How far from 1 the weights of a linear merge may sum to if they are not divided by their sum: rounding of the
# decimals.
_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Single:
    """The parameters of a transformation, each of which is one number for all tensors: a weight and a density for each
    vector, and what is shared.
    """

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    scale: float  # mergekit's `lambda`
    normalize: bool


def merged_inputs(document: Document) -> list[Input]:
    """Return the models that become vectors: all but the base."""
    return [given for given in document.inputs if given.name != document.base]


def weights_by_tensor(document: Document, base: Base) -> dict[str, list[float]]:
    """Return the factor of each vector of a weighted sum, in the order of [`merged_inputs`], for each tensor of the base.

    Args:
        document ([`Document`]): A config with a base, whose method is `linear` or `task_arithmetic`.
        base ([`Base`]): The base.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a weight is missing, or scales the base itself.
    """
    weights_at = _linear_at if document.method == "linear" else _arithmetic_at
    return {place.key: weights_at(document, place) for place in _float_places(base)}


def coefficients(
    document: Document, base: Base, weights: Mapping[str, Sequence[float]], changed: Sequence[Iterable[str]]
) -> list[Coefficient]:
    """Return the coefficient of each vector of a weighted sum.

    Args:
        document ([`Document`]): The config.
        base ([`Base`]): The base.
        weights (`Mapping`): What [`weights_by_tensor`] returned.
        changed (`Sequence`): The tensors that each vector changes, in the order of [`merged_inputs`].

    Raises:
        [`~dem_hub.errors.ConfigError`]: If no coefficient says what the weights say.
    """
    found = []
    for number, (given, keys) in enumerate(zip(merged_inputs(document), changed, strict=True)):
        wanted = {key: weights[key][number] for key in keys if key in weights}
        found.append(_coefficient(wanted, base, str(given.name)))
    return found


def single_values(document: Document, base: Base) -> Single:
    """Return the parameters of a method that transforms the vectors first.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a parameter differs between tensors, or asks for another rescaling.
    """
    places = _float_places(base)
    shared = document.scopes
    rescales = document.method.startswith("dare")
    rescale = _same(lambda place: find_switch("rescale", shared, place, default=rescales), places, "rescale")
    if rescale != rescales:
        way = "it keeps elements as they are" if not rescales else "it divides what it keeps by the density"
        raise ConfigError(f"rescale is {str(rescale).lower()}; {document.method} has {rescales} here: {way}.")
    weights = []
    densities = []
    for given in merged_inputs(document):
        scopes = (given.parameters, *shared)
        weights.append(_same(_number("weight", scopes), places, f"weight of '{given.name}'"))
        densities.append(_same(_number("density", scopes, 1.0), places, f"density of '{given.name}'"))
    divides = NORMALIZES[document.method]
    normalize = _same(lambda place: find_switch("normalize", shared, place, default=divides), places, "normalize")
    scale = _same(_number("lambda", shared, 1.0), places, "lambda")
    return Single(tuple(weights), tuple(densities), scale, bool(normalize))


def _number(name: str, scopes: Sequence[Parameters], default: float | None = None) -> Callable[[Place], float]:
    return lambda place: find_number(name, scopes, place, default)


def _same(read: Callable[[Place], float], places: Sequence[Place], name: str) -> float:
    """Return the one value that a parameter has for all tensors."""
    first, *others = places
    value = read(first)
    for place in others:
        if read(place) != value:
            raise ConfigError(
                f"The {name} is {value:g} for '{first.key}' and {read(place):g} for '{place.key}'. TIES and DARE have "
                "one number for all tensors here. Give one, or make this merge with mergekit."
            )
    return value


def _linear_at(document: Document, place: Place) -> list[float]:
    """Return the coefficient of each vector for one tensor: the share of the model in the sum of all models."""
    weights = [find_number("weight", (given.parameters, *document.scopes), place) for given in document.inputs]
    if document.names_base and all(given.name != document.base for given in document.inputs):
        # mergekit merges a base that is named, too.
        weights.append(find_number("weight", document.scopes, place))
    total = sum(weights)
    if not find_switch("normalize", document.scopes, place, default=True):
        if abs(total - 1) > _SUM_TOLERANCE:
            raise ConfigError(
                f"normalize is false, and the weights for '{place.key}' sum to {total:g}: this scales the base itself, "
                "which is no sum of vectors. Let them sum to 1, or use task_arithmetic, whose weights are free."
            )
        total = 1.0
    if total == 0:
        raise ConfigError(f"The weights for '{place.key}' sum to 0, and a linear merge divides by their sum.")
    pairs = zip(document.inputs, weights, strict=False)
    return [weight / total for given, weight in pairs if given.name != document.base]


def _arithmetic_at(document: Document, place: Place) -> list[float]:
    """Return the coefficient of each vector for one tensor: its weight times lambda."""
    inputs = merged_inputs(document)
    weights = [find_number("weight", (given.parameters, *document.scopes), place) for given in inputs]
    scale = find_number("lambda", document.scopes, place, 1.0)
    if find_switch("normalize", document.scopes, place, default=False):
        scale /= divisor(weights)
    return [weight * scale for weight in weights]


def divisor(weights: Sequence[float]) -> float:
    """Return what mergekit divides a sum of vectors by."""
    total = sum(weights)
    return 1.0 if abs(total) < _NO_SUM else total


def _coefficient(wanted: Mapping[str, float], base: Base, name: str) -> Coefficient:
    """Return the coefficient that is the wanted number for each tensor."""
    if len(set(wanted.values())) <= 1:
        return next(iter(wanted.values()), 0.0)
    by_layer = _by_group(wanted, {key: _layer_group(key) for key in wanted})
    if by_layer is not None:
        return _with_runs(by_layer)
    if base.architecture is not None:
        kinds = base.architecture.groups
        by_kind = _by_group(wanted, {key: kinds.get(key, REST) for key in wanted})
        if by_kind is not None:
            return by_kind
    first, second = _told_apart(wanted)
    raise ConfigError(
        f"The weight of '{name}' is {wanted[first]:g} for '{first}' and {wanted[second]:g} for '{second}'. A "
        "coefficient has one number for each layer, or one for each of embedding, attention, mlp and other. Give these "
        "tensors the same weight, or make this merge with mergekit."
    )


def _by_group(wanted: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float] | None:
    """Return the number of each group; `None` if the tensors of a group have different ones."""
    found: dict[str, float] = {}
    for key, number in wanted.items():
        if found.setdefault(groups[key], number) != number:
            return None
    return found


def _told_apart(wanted: Mapping[str, float]) -> tuple[str, str]:
    """Return two tensors of one layer, or of none, that have different numbers."""
    firsts: dict[str, str] = {}
    for key, number in wanted.items():
        first = firsts.setdefault(_layer_group(key), key)
        if wanted[first] != number:
            return first, key
    raise AssertionError("each layer has one number")


def _layer_group(key: str) -> str:
    number = layer_number(key)
    return REST if number is None else f"{number}"


def _with_runs(by_layer: Mapping[str, float]) -> dict[str, float]:
    """Return groups of layers, with one for each run of layers that have the same number."""
    numbers = sorted((int(layer), value) for layer, value in by_layer.items() if layer != REST)
    runs: dict[str, float] = {}
    for _, entries in groupby(enumerate(numbers), key=lambda entry: (entry[1][1], entry[1][0] - entry[0])):
        layers = [layer for _, (layer, _) in entries]
        runs[f"layers {layers[0]}-{layers[-1]}"] = by_layer[str(layers[0])]
    if REST in by_layer:
        runs[REST] = by_layer[REST]
    return runs


def _float_places(base: Base) -> list[Place]:
    """Return the tensors that are scaled: buffers of integers are not."""
    return [place for place in places_of(base.checkpoint) if base.checkpoint[place.key].torch_dtype.is_floating_point]
