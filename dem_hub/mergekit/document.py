"""mergekit's YAML as a frozen record. What has no counterpart here is refused by its key, before anything is opened.

mergekit ignores keys that it does not know. Here they are refused: an ignored key is a wish that was not fulfilled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, NotFoundError, refuse
from dem_hub.files.shown import shown
from dem_hub.hub.references import VectorSource
from dem_hub.mergekit.settings import Parameters, check_form

# The methods that are a weighted sum of vectors, or of transformed vectors; for each whether it divides by the sum of
# the weights unless told otherwise.
NORMALIZES = {"linear": True, "task_arithmetic": False, "ties": True, "dare_linear": False, "dare_ties": False}

# Endings of the files that are taken for a mergekit config.
_ENDINGS = (".yml", ".yaml")

_PARAMETERS = ("weight", "density", "normalize", "lambda", "rescale", "int8_mask")
_DTYPES = ("float32", "float16", "bfloat16")
_USE_MERGEKIT = "Make this merge with mergekit, or take these keys out."


@dataclass(frozen=True)
class ModelName:
    """A model of a config: a checkpoint, or an adapter (`lora`) on one."""

    model: VectorSource
    lora: VectorSource | None = None

    def __str__(self) -> str:
        if self.lora is None:
            return str(self.model)
        return f"{self.model}+{self.lora}"


@dataclass(frozen=True)
class Input:
    """One of the models that are merged, with its own parameters and, in a slice, its first and last + 1 layer."""

    name: ModelName
    parameters: Parameters
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Document:
    """A config: its method, its base and models, and the parameters that all models share, the nearest scope first.

    `dtype` is that of the result; `None` if the config has none. `names_base` is false if the base was chosen here: then
    it has no weight of its own.
    """

    method: str
    base: ModelName | None
    inputs: tuple[Input, ...]
    scopes: tuple[Parameters, ...]
    dtype: str | None = None
    tokenizer: str | None = None
    names_base: bool = True

    @classmethod
    def read(cls, path: Path) -> "Document":
        """Read a file.

        Raises:
            [`~dem_hub.errors.NotFoundError`]: If there is none.
            [`~dem_hub.errors.ConfigError`]: If it is no mergekit config, or asks for something that is not here.
        """
        from dem_hub.files.strict_yaml import read_yaml

        if not path.is_file():
            raise NotFoundError(f"There is no file '{path}'.")
        data = read_yaml(path)
        if not isinstance(data, dict) or "merge_method" not in data:
            raise ConfigError(f"'{path}' has no merge_method: it is no mergekit config.")
        return _read(data, str(path))


def is_document(name: str) -> bool:
    """Check whether the name of a model is that of a YAML file."""
    return name.endswith(_ENDINGS) and not Path(name).is_dir()


def _read(data: Mapping[str, Any], where: str) -> Document:
    _check_keys(data, where)
    base = None
    if data.get("base_model") is not None:
        base = _model_name(data["base_model"], f"{where}: base_model")
    scopes = [_parameters(data, where)]
    known: tuple[str, ...] = ("model", "parameters")
    if data.get("slices"):
        piece = _only_slice(data["slices"], where)
        entries = piece.get("sources")
        scopes.insert(0, _parameters(piece, f"{where}: slices[0]"))
        name = f"{where}: slices[0].sources"
        known = (*known, "layer_range")
    else:
        entries = data.get("models")
        name = f"{where}: models"
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{name} is {shown(entries)}; it must be a list of models.")
    inputs = tuple(_input(entry, f"{name}[{number}]", known) for number, entry in enumerate(entries))
    names = [str(given.name) for given in inputs]
    twice = sorted({given for given in names if names.count(given) > 1})
    if twice:
        raise ConfigError(f"{name} has {', '.join(map(shown, twice))} twice. Add the weights instead.")
    document = Document(data["merge_method"], base, inputs, tuple(scopes), _dtype(data, where), _tokenizer(data, where))
    _check_base(document, where)
    return document


def _check_keys(data: Mapping[str, Any], where: str) -> None:
    """Refuse all keys at once that mean something that is not here."""
    faults = []
    method = data["merge_method"]
    if not isinstance(method, str) or method not in NORMALIZES:
        faults.append(f"merge_method is {shown(method)}; there are {', '.join(NORMALIZES)}")
    known = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
             "tokenizer", "name")  # fmt: skip
    faults += [f"{key} is {shown(data[key])}, which has no counterpart" for key in data if key not in known]
    if bool(data.get("models")) == bool(data.get("slices")):
        faults.append("models and slices: exactly one of them must be there")
    if data.get("tokenizer_source") is not None and data.get("tokenizer") is not None:
        faults.append("tokenizer_source and tokenizer are both there; mergekit takes one of them")
    if faults:
        refuse(ConfigError, f"'{where}' is not a merge that dem_hub can make.", faults, _USE_MERGEKIT)


def _only_slice(slices: object, where: str) -> Mapping[str, Any]:
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], dict):
        count = len(slices) if isinstance(slices, list) else 0
        raise ConfigError(
            f"{where}: slices has {count} entries; dem_hub takes one that has all layers. A model with other layers "
            f"than its base is no sum of vectors. {_USE_MERGEKIT}"
        )
    others = sorted(set(slices[0]) - {"sources", "parameters"})
    if others:
        raise ConfigError(f"{where}: slices[0].{others[0]} has no counterpart. {_USE_MERGEKIT}")
    return slices[0]


def _input(entry: object, where: str, known: Sequence[str]) -> Input:
    if not isinstance(entry, dict) or "model" not in entry:
        raise ConfigError(f"{where} is {shown(entry)}; it must have a model.")
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}.{key} is {shown(entry[key])}, which has no counterpart. {_USE_MERGEKIT}")
    layers = None
    if "layer_range" in known:
        layers = _layers(entry.get("layer_range"), f"{where}.layer_range")
    return Input(_model_name(entry["model"], f"{where}.model"), _parameters(entry, where), layers)


def _layers(value: object, where: str) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value):
        first, stop = value
        return first, stop
    raise ConfigError(f"{where} is {shown(value)}; it must be two whole numbers.")


def _parameters(entry: Mapping[str, Any], where: str) -> Parameters:
    found = entry.get("parameters") or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: parameters is {shown(found)}; it must have a value for each name.")
    for name, setting in found.items():
        if name not in _PARAMETERS:
            raise ConfigError(
                f"{where}: parameters.{name} is {shown(setting)}; there are {', '.join(_PARAMETERS)}. {_USE_MERGEKIT}"
            )
        check_form(setting, f"{where}: parameters.{name}")
    return found


def _model_name(value: object, where: str) -> ModelName:
    """Read `MODEL[@REVISION][+ADAPTER[@REVISION]]`, or the same as a mapping."""
    if isinstance(value, str):
        parts = value.split("+")
        if len(parts) <= 2 and all(parts):
            model, *loras = [_source(part, where) for part in parts]
            return ModelName(model, *loras)
    elif isinstance(value, dict) and set(value) <= {"model", "lora"} and value.get("model"):
        lora = None
        if value.get("lora"):
            lora = _source(value["lora"], where)
        return ModelName(_source(value["model"], where), lora)
    raise ConfigError(f"{where} is {shown(value)}; it must be MODEL, or MODEL+ADAPTER.")


def _source(value: object, where: str) -> VectorSource:
    if isinstance(value, str):
        path, _, revision = value.partition("@")
        if path and "@" not in revision:
            return VectorSource(path, revision or None)
    elif isinstance(value, dict) and set(value) <= {"path", "revision"} and isinstance(value.get("path"), str):
        return VectorSource(value["path"], value.get("revision"))
    raise ConfigError(f"{where} is {shown(value)}; it must be a Hub id or a folder, with @REVISION if it has one.")


def _dtype(data: Mapping[str, Any], where: str) -> str | None:
    """Return the dtype of the result. Sums are accurate to float64 here, whatever `dtype` says."""
    for key in ("out_dtype", "dtype"):
        value = data.get(key)
        if value is None:
            continue
        name = str(value).removeprefix("torch.")
        if name not in _DTYPES:
            raise ConfigError(f"{where}: {key} is {shown(value)}; there are {', '.join(_DTYPES)}.")
        return name
    return None


def _tokenizer(data: Mapping[str, Any], where: str) -> str | None:
    value = data.get("tokenizer_source")
    if data.get("tokenizer") is not None:
        details = data["tokenizer"]
        if not isinstance(details, dict) or not set(details) <= {"source"}:
            raise ConfigError(
                f"{where}: tokenizer is {shown(details)}; only 'source' has a counterpart. dem_hub gives each new "
                "token the row that its fine-tune has for it."
            )
        value = details.get("source", "union")
    if value is None or value in ("union", "base"):
        return value
    if value == data.get("base_model"):
        return "base"
    raise ConfigError(
        f"{where}: tokenizer_source is {shown(value)}; there are base and union. Copy another tokenizer into the "
        "merged folder by hand if it has the same tokens."
    )


def _check_base(document: Document, where: str) -> None:
    """Refuse adapters on another model than the base, and methods without one."""
    if document.base is not None and document.base.lora is not None:
        raise ConfigError(f"{where}: base_model is '{document.base}', an adapter on a model. Merge it first.")
    if document.base is None and document.method != "linear":
        raise ConfigError(f"{where}: base_model is not there, and {document.method} needs one.")


def with_base(document: Document) -> Document:
    """Return a config with a base: of a linear merge that names none, the model under its adapters, or its first model.

    A mean of models is the same whichever of them the others are told as differences to.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If an adapter is on another model than the base.
    """
    base = document.base
    if base is None:
        under = [given.name.model for given in document.inputs if given.name.lora is not None]
        base = ModelName((under or [document.inputs[0].name.model])[0])
    for given in document.inputs:
        if given.name.lora is not None and given.name.model != base.model:
            raise ConfigError(
                f"'{given.name}' is an adapter on '{given.name.model}', and the base is '{base.model}'. Merge it "
                f"first: dem-hub merge {given.name.model} --vector {given.name.lora}=1 -o FOLDER, and name FOLDER."
            )
    return replace(document, base=base, names_base=document.base is not None)
