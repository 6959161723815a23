"""What a folder holds, detected from the names of its files, and whether it may be overwritten.

Everything that dem_hub writes includes a marker file. Weights without a marker belong to the user: nothing is
written over them or next to them, because a folder with two artifacts would load as only one of them.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType

from dem_hub.errors import ConfigError
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    MEASUREMENTS,
    PICKLES,
    PROVENANCE_CONFIG,
    RECIPE_CONFIG,
    SAFETENSORS,
    SIDECARS,
    STORE_CONFIG,
    VECTOR_CONFIG,
    VECTOR_FILES,
)
from dem_hub.files.side_files import is_module_file, is_side_file
from dem_hub.files.strict_json import read_json

# What a folder can hold, in the words of messages.
VECTOR = "a vector"
ADAPTER = "a LoRA adapter"
STORE = "a store of vectors"
MERGED = "a merged model"
RECIPE = "a recipe"
WEIGHTS = "a model's weights"  # that dem_hub did not write

# The marker file of each kind, in the order in which they are looked for. A vector may hold an adapter too, so it
# comes first.
_MARKERS = {VECTOR_CONFIG: VECTOR, STORE_CONFIG: STORE, PROVENANCE_CONFIG: MERGED, ADAPTER_CONFIG: ADAPTER}

# What a new repository has when it is cloned. `dem-hub ... -o` may write beside it.
_OF_A_CLONE = re.compile(r"\.git|\.gitattributes|\.gitignore|\.cache|\.DS_Store|README\.md|LICENSE(\.\w+)?")

# Names of files in a message that lists some of them.
_SHOWN = 3

_WEIGHTS_SUFFIXES = (SAFETENSORS, ".gguf", *PICKLES)


def is_recipe(folder: Path) -> bool:
    """Check whether a folder holds a recipe: a `config.json` with `model_type: "dem"`."""
    path = folder / RECIPE_CONFIG
    return path.is_file() and read_json(path, foreign=True).get("model_type") == "dem"


def kind_of(folder: Path) -> str:
    """Return what a folder holds, one of the kinds above; an empty text if it holds none of them or is no folder.

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
    for marker, kind in _MARKERS.items():
        if (folder / marker).is_file():
            return kind
    if is_recipe(folder):
        return RECIPE
    if any(path.name.endswith(_WEIGHTS_SUFFIXES) and path.name not in SIDECARS for path in folder.iterdir()):
        return WEIGHTS
    return ""


def has_model_weights(folder: Path) -> bool:
    """Check whether a folder holds weights that are not those of a vector or an adapter."""
    for path in folder.iterdir():
        is_vector = any(fnmatch(path.name, pattern) for pattern in (*VECTOR_FILES, *SIDECARS, ADAPTER_PICKLE))
        if path.name.endswith(_WEIGHTS_SUFFIXES) and not is_vector:
            return True
    return False


def lone_vector(folder: Path, *, is_model: bool | None = None) -> str:
    """Return `VECTOR` or `ADAPTER` if a folder holds that and no model; else an empty text.

    Args:
        folder (`Path`): The folder.
        is_model (`bool`, *optional*): Whether it holds a model too. Defaults to whether there is a `config.json`,
            as the weights of a repository on the Hub may not be here.
    """
    kind = kind_of(folder)
    # A model's config has the same name as a recipe's: with such a file, transformers loads the folder as a model.
    if is_model is None:
        is_model = (folder / RECIPE_CONFIG).is_file()
    if kind not in (VECTOR, ADAPTER) or is_model:
        return ""
    return kind


def check_target(target: Path, kind: str, inputs: Mapping[str, Path] = MappingProxyType({})) -> None:
    """Refuse a folder in which writing would destroy something, or mix two artifacts.

    Args:
        target (`Path`): The folder to write to. It may be missing, hold the same kind of artifact, or hold neither
            weights nor anything that dem_hub wrote.
        kind (`str`): What will be written: `VECTOR`, `MERGED`, ...
        inputs (`Mapping[str, Path]`, *optional*): Folders that are read while `target` is written, by what they are.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the folder holds something else, is one of the inputs, or is a file.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from dem_hub.files.folders import VECTOR, check_target
    >>> check_target(Path(vector_folder), VECTOR)  # may be replaced
    >>> check_target(Path(base_folder), VECTOR)
    Traceback (most recent call last):
    dem_hub.errors.ConfigError: '...' holds a model's weights, and a vector is to be written there. Choose ...

    ```
    """
    for description, folder in inputs.items():
        if target.resolve() == folder.resolve():
            raise ConfigError(f"'{target}' is {description} itself, which {kind} would replace. Choose another folder.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"'{target}' is a file, and {kind} is a folder. Choose another name.")
    present = kind_of(target)
    if present not in ("", kind):
        raise ConfigError(
            f"'{target}' holds {present}, and {kind} is to be written there. Choose another folder, or empty this one "
            "first."
        )


def check_replaced(target: Path, kind: str, *, exist_ok: bool) -> None:
    """Do what [`check_target`] does, and refuse a folder that holds `kind` already unless it may be replaced.

    Args:
        target (`Path`): The folder to write to.
        kind (`str`): What will be written: `VECTOR`, `MERGED`, ...
        exist_ok (`bool`): Whether a result of the same kind is replaced.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the folder holds something else, or `kind` and `exist_ok` is not set.
    """
    check_target(target, kind)
    if not exist_ok and kind_of(target) == kind:
        raise ConfigError(
            f"'{target}' holds {kind} already. Choose another folder, or replace it: --overwrite, in Python "
            "exist_ok=True."
        )


def check_output(target: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse the folder of a command's `-o` if it holds a finished result, or files that dem_hub did not write.

    Args:
        target (`Path`): The folder to write to.
        kind (`str`): What will be written: `VECTOR`, `MERGED`, ...
        overwrite (`bool`): The user said so: a result of the same kind is replaced, and other files stay.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the folder holds something else than `kind`; without `overwrite` also if
            it holds anything at all, but what comes with an empty repository (`.git`, a README, a license).
    """
    check_replaced(target, kind, exist_ok=overwrite)
    if overwrite or not target.is_dir():
        return
    # A run that was killed while its files got their names may have left some of the small ones.
    strange = [path for path in sorted(target.iterdir()) if not _is_known(path, target)]
    others = [path.name for path in strange if not _OF_A_CLONE.fullmatch(path.name)]
    if others:
        raise ConfigError(
            f"'{target}' holds files that dem_hub did not write ({_some(others)}), and {kind} is to be written there. "
            "Choose an empty folder; or give --overwrite, and they stay beside it and are not pushed."
        )


def check_new_output(target: Path, kind: str) -> None:
    """Refuse the folder of a command's `-o` that holds anything, where a command replaces nothing.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it holds anything but what comes with an empty repository.
    """
    check_target(target, kind)
    others = []
    if target.is_dir():
        others = [name for name in sorted(path.name for path in target.iterdir()) if not _OF_A_CLONE.fullmatch(name)]
    if others:
        raise ConfigError(
            f"'{target}' holds {kind_of(target) or 'other files'} already ({_some(others)}), and {kind} is to be "
            "written there. Choose an empty folder."
        )


def check_output_file(target: Path, *, overwrite: bool) -> None:
    """Refuse the file of a command's option if there is one already.

    Args:
        target (`Path`): The file to write.
        overwrite (`bool`): The user said so: a file that is there is replaced.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there is one and `overwrite` is not set, or a folder has its name.
    """
    if target.is_dir():
        raise ConfigError(f"'{target}' is a folder, and a file is to be written there. Choose another name.")
    if target.exists() and not overwrite:
        raise ConfigError(f"'{target}' is there already. Choose another name, or replace it: --overwrite.")


def _some(names: list[str]) -> str:
    """Return the first names of a list, for a message."""
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _is_known(path: Path, target: Path) -> bool:
    """Check whether a path in a folder has a name that dem_hub writes beside weights, or is a folder of such."""
    if path.is_symlink():
        return False
    if (path / MEASUREMENTS).is_file():
        return True  # a search writes its measurements as it goes on, and its recipe at the end
    if path.is_dir():
        inner = list(path.iterdir())
        return bool(inner) and all(_is_known(each, target) for each in inner)
    name = path.relative_to(target).as_posix()
    return name in SIDECARS or is_side_file(name) or is_module_file(name)
