"""Rows of a dataset, whatever holds them: lists, columns, data frames, files, folders, datasets on the Hub.

Text files and JSONL are read here, line by line, so that an error names the line, and a row has the columns that its
line has. Everything else is read by the library `datasets` (see `tables`), and means what it means there. A user's
mistake in a path is found before a model is loaded for it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, refuse
from dem_hub.evaluation import tables
from dem_hub.evaluation.columns import Selected
from dem_hub.evaluation.windows import Window

# Characters of a path in a message: a whole text can stand where a path belongs.
_SHOWN_CHARACTERS = 200

_JSON_LINES = ".jsonl"


def check_files(datasets: Mapping[str, Any]) -> None:
    """Check that every dataset that is given as a path can be read, before anything is loaded for it.

    Args:
        datasets (`Mapping[str, Any]`): Data by distribution. Only strings and paths are checked.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a file is missing, or is a folder with no split named. Lists every one
            with the name of its distribution.
        [`~dem_hub.errors.MissingDependencyError`]: If one needs the library `datasets`, and it is not installed.
    """
    faults = []
    for name, data in datasets.items():
        source = data.data if isinstance(data, Selected) else data
        if not isinstance(source, str | os.PathLike):
            continue
        # os.path.isfile and isdir answer no to a text that is too long for a path; the methods of `Path` raise an
        # error.
        if os.path.isfile(source):  # noqa: PTH113
            if tables.is_table(source):
                tables.require(f"The file '{source}'")
            continue
        if tables.Reference.parse(source) is not None:
            tables.require(f"'{source}'")
            continue
        problem = "a folder" if os.path.isdir(source) else "not there"  # noqa: PTH112
        faults.append(f"'{name}': '{str(source)[:_SHOWN_CHARACTERS]}' is {problem}")
    if faults:
        remedy = (
            "Give the path of a text file or of a file of rows (.jsonl, .json, .csv, .parquet), or a data set's Hub id "
            "or folder with a split: openai/gsm8k:main:test. In Python, put a text itself into a list."
        )
        refuse(ConfigError, f"{len(faults)} of {len(datasets)} distributions have no file.", faults, remedy)


def rows_of(data: Any) -> list[Any]:
    """Return the rows of a dataset of any form.

    Args:
        data: What [`Reader.windows`] takes.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is of a form that is not known, or a file cannot be read.
        [`~dem_hub.errors.MissingDependencyError`]: If it needs the library `datasets`, and that is not installed.
    """
    if isinstance(data, Selected):
        return data.select(rows_of(data.data))
    if isinstance(data, str | os.PathLike):
        return read_rows(data)
    if isinstance(data, Mapping):
        return _rows_of_columns(data)
    if tables.is_frame(data):
        return tables.rows_of_frame(data)
    if isinstance(data, bytes | Window) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise ConfigError(f"it is a {type(data).__name__}, and no list of rows. Put it into a list.")
    return list(tables.as_python(data))


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of a file, or of a dataset by name.

    Args:
        path (`str` or `os.PathLike`): A `.jsonl` file with a JSON object on each line; a `.json`, `.csv`, `.tsv`,
            `.parquet` or `.arrow` file, compressed or not, as `datasets.load_dataset` reads it; any other file, which
            is one text; or `ID:SPLIT`, the Hub id or folder of a dataset and its split. Upper and lower case are the
            same. Empty lines, and rows whose `text` is empty, are left out.

    Returns:
        `list[dict[str, Any]]`: The rows, or `[{"text": ...}]`.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a line is not a JSON object (the error names it), or the file is not
            UTF-8, or has no text.
        [`~dem_hub.errors.MissingDependencyError`]: If it needs the library `datasets`, and that is not installed.
    """
    # As in `check_files`, for a text that is too long for a path.
    reference = None if os.path.isfile(path) else tables.Reference.parse(path)  # noqa: PTH113
    if reference is not None:
        rows = reference.rows()
    elif tables.is_table(path):
        rows = tables.rows_of_file(Path(path))
    else:
        rows = _read_text(Path(path))
    rows = [row for row in rows if not _is_empty(row)]
    if not rows:
        raise ConfigError(f"{path} has no text in it.")
    return rows


def _read_text(file: Path) -> list[dict[str, Any]]:
    try:
        content = file.read_text("utf-8-sig")  # some editors put a mark of the encoding first, which is no text
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 ({error}). Convert it.") from error
    if file.suffix.lower() == _JSON_LINES:
        return _read_lines(content, file)
    return [{"text": content}]


def _read_lines(content: str, file: Path) -> list[dict[str, Any]]:
    rows = []
    # Not `splitlines`, which ends a line at characters that JSON has inside of texts, such as U+2028.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            rows.append(_parse_object(line, f"{file}, line {number}"))
    return rows


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not a JSON object ({error}).") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: not a JSON object, but {type(row).__name__}.")
    return row


def _rows_of_columns(columns: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """Return the rows of a mapping of columns, as a slice of a `datasets.Dataset` is one.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is a mapping of splits, a single row, or its columns differ in length.
    """
    names = ", ".join(f"'{name}'" for name in columns)
    values = columns.values()
    if columns and all(hasattr(column, "column_names") or isinstance(column, Mapping) for column in values):
        raise ConfigError(
            f"it has the parts {names}, each a dataset of its own. Give one of them: data['{next(iter(columns))}']."
        )
    if any(isinstance(column, str | bytes | Mapping) or not hasattr(column, "__len__") for column in values):
        raise ConfigError(f"it is one row, with {names}, or no rows at all. Put rows into a list: [row].")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise ConfigError(f"it is a mapping of columns that differ in length: {told}. Put a single row into a list.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _is_empty(row: Mapping[str, Any]) -> bool:
    text = row.get("text")
    return isinstance(text, str) and not text.strip()
