"""What a folder holds, told by the names of its files, and so whether something new may take its place.

Whatever dem_hub writes has a file by which it is known again. Weights without one are somebody's work: nothing is written over them, and
nothing beside them either, since a folder with two things in it loads as one of them.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dem_hub.errors import ConfigError
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    PICKLES,
    PROVENANCE_CONFIG,
    RECIPE_CONFIG,
    SAFETENSORS,
    STORE_CONFIG,
    VECTOR_CONFIG,
)
from dem_hub.files.strict_json import parse_json

VECTOR, ADAPTER, STORE, MERGED, RECIPE = (
    "a vector",
    "a LoRA adapter",
    "a store of vectors",
    "a merged model",
    "a recipe",
)
WEIGHTS = "a model's weights"  # which dem_hub did not write
_MARKS = {VECTOR_CONFIG: VECTOR, STORE_CONFIG: STORE, PROVENANCE_CONFIG: MERGED, ADAPTER_CONFIG: ADAPTER}


def is_recipe(folder: Path) -> bool:
    """Whether the folder holds a recipe (a `config.json` with `model_type: "dem"`)."""
    path = folder / RECIPE_CONFIG
    return path.is_file() and parse_json(path.read_bytes(), str(path)).get("model_type") == "dem"


def kind_of(folder: Path) -> str:
    """What a folder holds, one of the kinds above; empty where it is none of them, or no folder.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from dem_hub.files.folders import kind_of
    >>> kind_of(Path(vector_folder)), kind_of(Path(base_folder)), kind_of(Path(base_folder, "absent"))
    ('a vector', "a model's weights", '')

    ```
    """
    if not folder.is_dir():
        return ""
    marked = next((kind for name, kind in _MARKS.items() if (folder / name).is_file()), "")
    if marked or is_recipe(folder):
        return marked or RECIPE
    weights = (SAFETENSORS, ".gguf", *PICKLES)
    return WEIGHTS if any(path.name.endswith(weights) for path in folder.iterdir()) else ""


def lone_vector(folder: Path) -> str:
    """`VECTOR` or `ADAPTER` where a folder holds that and no model; else empty."""
    kind = kind_of(folder)
    return kind if kind in (VECTOR, ADAPTER) and not (folder / RECIPE_CONFIG).is_file() else ""


def check_target(target: Path, kind: str, inputs: Mapping[str, Path] = MappingProxyType({})) -> None:
    """Refuse a folder in which something would be lost, or mixed with something else, if a thing of some kind were written there.

    Args:
        target (`Path`): the folder. Without weights or a thing of dem_hub's in it, or with one of the same kind, it will do.
        kind (`str`): what is to be written: `VECTOR`, `MERGED`, ...
        inputs (`Mapping[str, Path]`): folders that are read meanwhile, by what they are.

    Raises:
        `ConfigError`: it holds something else, or is an input, or a file.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from dem_hub.files.folders import VECTOR, check_target
    >>> check_target(Path(vector_folder), VECTOR)  # may be replaced
    >>> check_target(Path(base_folder), VECTOR)
    Traceback (most recent call last):
    dem_hub.errors.ConfigError: '...' holds a model's weights, and a vector is to be written there. Choose another folder, ...

    ```
    """
    for what, folder in inputs.items():
        if target.resolve() == folder.resolve():
            raise ConfigError(f"'{target}' is {what} itself, which {kind} would replace. Choose another folder.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"'{target}' is a file, and {kind} is a folder. Choose another name.")
    found = kind_of(target)
    if found not in ("", kind):
        raise ConfigError(
            f"'{target}' holds {found}, and {kind} is to be written there. Choose another folder, or empty this one first."
        )
