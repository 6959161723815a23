"""The files of a model beside its config and weights: tokenizer, chat templates, processors, parts that pool and scale.

A merged model that lacks one of them loads and computes something else: another chat format, another pooling. So all
of them come along. From a repository of the Hub, which is public or its owner's choice, that is every file that is no
weight and no code. A folder of the user's may hold keys and notes, so from there only files come along whose names
transformers, tokenizers and sentence-transformers read.
"""

import json
import logging
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from dem_hub.files.foreign_names import check_inside
from dem_hub.files.links import check_paths
from dem_hub.files.names import MODEL_WEIGHTS, MODULE_FILES, MODULES, NO_SIDE_FILES, SAFETENSORS, SIDE_FILES

logger = logging.getLogger(__name__)

# How sentence-transformers calls the folder of a module: its number, and its class.
_MODULE = re.compile(r"\d+_\w+")

# Modules of sentence-transformers that hold a whole model. Its weights are the base's, and not the merged ones.
_WHOLE_MODELS = ("Transformer", "MLMTransformer", "CLIPModel", "Router", "Asym")

# Modules of sentence-transformers that compute something without weights.
_WITHOUT_WEIGHTS = ("Pooling", "Normalize", "Dropout")


def is_side_file(path: str) -> bool:
    """Check whether a path in a folder has a name that transformers, tokenizers or sentence-transformers read there.

    Files of sentence-transformers' modules are known only together with `modules.json`, see [`side_files_of`].

    Example:

    ```python
    >>> from dem_hub.files.side_files import is_side_file
    >>> names = ("tekken.json", "additional_chat_templates/rag.jinja", "notes/vocab.txt")
    >>> [is_side_file(name) for name in names]
    [True, True, False]

    ```
    """
    return any(_matches(path, pattern) for pattern in SIDE_FILES)


def is_module_file(path: str) -> bool:
    """Check whether a path is one that sentence-transformers gives to a file of a module, such as a projection.

    Example:

    ```python
    >>> from dem_hub.files.side_files import is_module_file
    >>> names = ("2_Dense/model.safetensors", "1_Pooling/config.json", "a/config.json")
    >>> [is_module_file(name) for name in names]
    [True, True, False]

    ```
    """
    folder, _, name = path.partition("/")
    if not _MODULE.fullmatch(folder) or name.startswith(".") or "/" in name:
        return False
    return name == MODEL_WEIGHTS or _matches_any(name, MODULE_FILES)


def side_files_of(folder: Path, *, is_published: bool = False) -> dict[str, Path]:
    """Return the side files of a model's folder, by their paths in it.

    Args:
        folder (`Path`): The folder.
        is_published (`bool`, *optional*, defaults to `False`): Whether the folder is a download from the Hub. Then
            every file counts that is no weight and no code; otherwise only those with known names do.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `modules.json` names a module outside of the folder, or a file is a link
            that leads out of it.
    """
    paths = []
    if is_published:
        paths = [path for path in _paths_below(folder) if not _matches_any(path, NO_SIDE_FILES)]
    else:
        for pattern in SIDE_FILES:
            paths += [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]
    for module in module_folders(folder):
        names = _paths_below(folder / module)
        paths += [f"{module}/{name}" for name in names if _matches_any(PurePosixPath(name).name, MODULE_FILES)]
    for module in modules_with_weights(folder):
        names = _paths_below(folder / module)
        paths += [f"{module}/{name}" for name in names if name.endswith(SAFETENSORS)]
    # A link may lead to anything: it is refused also where it leads to no file.
    check_paths([folder / path for path in set(paths)], folder)
    return {path: folder / path for path in sorted(set(paths)) if (folder / path).is_file()}


def module_folders(folder: Path) -> list[str]:
    """Return the folders of sentence-transformers' modules, as `modules.json` names them; none without that file."""
    return [path for path, _ in _modules(folder)]


def modules_with_weights(folder: Path) -> list[str]:
    """Return those of [`module_folders`] whose weights come along: a projection has some that no base has."""
    without = (*_WHOLE_MODELS, *_WITHOUT_WEIGHTS)
    return [path for path, kind in _modules(folder) if kind.rpartition(".")[2] not in without]


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the folder and the class of each module that has a folder of its own."""
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_bytes())
        modules = [(str(entry["path"]), str(entry["type"])) for entry in entries if entry["path"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is not a list of modules as sentence-transformers writes it (%r).", path, error)
        return []
    for name, _ in modules:
        check_inside(name, f"module in {path}")
    # A module cannot be the folder itself: then everything in it would come along.
    return [(name, kind) for name, kind in modules if PurePosixPath(name).parts]


def _paths_below(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _matches_any(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _matches(path: str, pattern: str) -> bool:
    """Match a path part by part: a `*` matches no slash."""
    parts = path.split("/")
    patterns = pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))
