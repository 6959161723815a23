"""A recipe as a config of mergekit, which gives the same model in float32.

mergekit merges models, so a vector that is no adapter becomes a model first: the comments at the top have the
commands. The coefficients of groups become filters, which are parts of tensors' names. They are tried on all names
before they are written.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tensor_groups import REST, layer_name, layer_number
from dem_hub.codecs.component import StoredDelta
from dem_hub.errors import ConfigError, refuse
from dem_hub.files.distinct_names import distinct_names
from dem_hub.hub.foreign_text import printable
from dem_hub.hub.references import VectorSource
from dem_hub.mergekit.settings import Place, find_number
from dem_hub.mergekit.token_rows import check_rows
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.groups import take_apart
from dem_hub.merging.merge import Merge
from dem_hub.merging.merged_base import MergedBase
from dem_hub.merging.opening import open_recipe
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.tokens import tokens_of
from dem_hub.vectors.vector import DistributionVector

# How mergekit is started, so that adapters are merged without rounding.
_START = "mergekit-yaml CONFIG FOLDER --lora-merge-cache CACHE --lora-merge-dtype float32"


def config_text(source: VectorSource) -> str:
    """Return the YAML of a recipe, with comments that say how to use it. Headers alone are read.

    Args:
        source ([`VectorSource`]): Folder or repository of the recipe.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If mergekit would make another model: of buffers, which are replaced here, or of new
            tokens.
        [`~dem_hub.errors.DemHubError`]: What opening the base or a vector raises.
    """
    import yaml

    opened = open_recipe(source, headers_only=True)
    recipe = opened.recipe
    if isinstance(opened.base, MergedBase):
        raise ConfigError(
            f"The base of '{source}' is the recipe '{recipe.base}', which mergekit does not know. Merge that one "
            f"first: dem-hub merge {recipe.base.source} --dtype float32 -o FOLDER, and use a recipe on FOLDER."
        )
    if recipe.base_quantized is not None:
        raise ConfigError(
            f"The base of '{source}' is quantized first (base_quantized: {recipe.base_quantized}), which mergekit does "
            "not know. Merge the recipe with dem-hub merge."
        )
    merge = opened.merge(recipe)
    _refuse_buffers(merge)
    base = opened.base
    base_name = _model_name(recipe.base.source, "The base")
    names = _names_of_models(recipe)
    tokens = [tokens_of(vector, base) for vector in opened.vectors]
    _refuse_unknown_rows(merge, tokens)
    check_rows([of_vector or {} for of_vector in tokens], list(recipe.coefficients.values()))
    models: list[dict[str, Any]] = [{"model": base_name}]
    commands = []
    for number, (vector, deltas) in enumerate(zip(opened.vectors, all_deltas(opened.vectors, base), strict=True)):
        record = recipe.vectors[number]
        if not _is_used(record.coefficient):
            continue
        source = record.source.absolute
        if _is_adapter_of_mergekit(vector, source) and not tokens[number]:
            model = _with_adapter(base_name, _model_name(source, "An adapter"))
        else:
            model = names[number]
            commands.append(_command(recipe.base.source.absolute, source, model))
        weight = _weight(record.coefficient, deltas, base, vector.name)
        models.append({"model": model, "parameters": {"weight": weight}})
    data: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": base_name,
        "models": models,
        "parameters": {"normalize": False},
        "dtype": "float32",
    }
    if recipe.dtype is not None:
        data["out_dtype"] = recipe.dtype
    if merge.tokens.merged:
        data["tokenizer_source"] = "union"
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return _comments(commands) + text


def _is_used(coefficient: Coefficient) -> bool:
    if isinstance(coefficient, Mapping):
        return any(coefficient.values())
    return coefficient != 0


def _comments(commands: Sequence[str]) -> str:
    lines = []
    if commands:
        lines += ["mergekit merges models. Make these first:", *(f"  {command}" for command in commands)]
    lines.append(_START)
    return "".join(f"# {printable(line)}\n" for line in lines)


def _command(base: VectorSource, vector: VectorSource, folder: str) -> str:
    words = ["dem-hub", "merge", str(base), "--vector", f"{vector}=1", "--dtype", "float32", "-o", folder]
    return shlex.join(words)


def _names_of_models(recipe: DEMConfig) -> list[str]:
    """Return a name of a folder for the model of each vector."""
    folders = [Path(record.repo_id, record.subfolder) for record in recipe.vectors]
    return ["-".join([*parts, "model"]) for parts in distinct_names(folders)]


def _is_adapter_of_mergekit(vector: DistributionVector, source: VectorSource) -> bool:
    """Check whether mergekit can put a vector on its base by itself. It knows no subfolders of repositories."""
    return vector.config is None and (source.is_local or not source.subfolder)


def _model_name(source: VectorSource, what: str) -> str | dict[str, Any]:
    """Return a model as mergekit names it: as a text, or as a mapping if the text would be read as something else."""
    source = source.absolute
    if source.is_local:
        source = VectorSource(str(Path(source.repo_id, source.subfolder)))
    if source.subfolder:
        raise ConfigError(
            f"{what} is '{source}', in the subfolder '{source.subfolder}', and mergekit knows none. Download it, and "
            "use a recipe that names the folder."
        )
    if not set("@+") & set(source.repo_id):
        return str(source)
    model = {"path": source.repo_id}
    if source.revision is not None:
        model["revision"] = source.revision
    return {"model": model}


def _with_adapter(base: str | dict[str, Any], adapter: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(base, str) and isinstance(adapter, str):
        return f"{base}+{adapter}"
    model, lora = (part["model"] if isinstance(part, dict) else part for part in (base, adapter))
    return {"model": model, "lora": lora}


def _refuse_buffers(merge: Merge) -> None:
    replaced = [name for name in merge.base if any(stored.replacement is not None for _, stored in merge.active(name))]
    faults = [f"'{name}' is replaced here, and scaled or refused by mergekit" for name in replaced]
    if faults:
        refuse(ConfigError, "mergekit would make another model.", faults, "Use dem-hub merge.")


def _refuse_unknown_rows(merge: Merge, tokens: Sequence[object]) -> None:
    if merge.vocabulary is not None and None in tokens:
        raise ConfigError(
            "A vector has rows for new tokens, and does not say which tokens these are, so mergekit cannot put them "
            "together. Put the fine-tune's tokenizer.json beside it."
        )


def _weight(coefficient: Coefficient, deltas: Mapping[str, StoredDelta], base: Base, name: str) -> Any:
    """Return the weight that is a coefficient: a number, or one for each filter."""
    if not isinstance(coefficient, Mapping):
        return coefficient
    wanted: dict[str, float] = {}
    for group, keys in take_apart(deltas, tuple(coefficient), base, name).items():
        wanted.update(dict.fromkeys(keys, coefficient[group]))
    rest = coefficient.get(REST, 0.0)
    for filter_of in (_layer_filter, _kind_filter, str):
        weight = _filtered(wanted, [filter_of(key) for key in wanted], rest)
        if _says(weight, wanted):
            return weight
    raise AssertionError("whole names tell all tensors apart")


def _filtered(wanted: Mapping[str, float], filters: Sequence[str], rest: float) -> list[dict[str, Any]]:
    """Return an entry for each filter, longer ones first: a short one may be part of a long one, and the first counts."""
    values = dict(zip(filters, wanted.values(), strict=True))
    entries = [{"filter": part, "value": values[part]} for part in sorted(values, key=lambda part: (-len(part), part))]
    return [*(entry for entry in entries if entry["filter"]), {"value": rest}]


def _says(weight: object, wanted: Mapping[str, float]) -> bool:
    return all(find_number("weight", [{"weight": weight}], Place(key)) == number for key, number in wanted.items())


def _layer_filter(key: str) -> str:
    """Return the part of a name that is the same for all tensors of a layer, such as `layers.3.`; empty outside layers.

    Prefixes are left out: mergekit and files may have different ones.
    """
    number = layer_number(key)
    if number is None:
        return ""
    stack = layer_name(key).split(".")[-2:]
    return ".".join(stack) + "."


def _kind_filter(key: str) -> str:
    """Return the part of a name that is the same in all layers, such as `.self_attn.q_proj.weight`."""
    if layer_number(key) is not None:
        return key.removeprefix(layer_name(key))
    return ".".join(key.split(".")[-2:])
