"""Rows of data files: the JSON objects of a JSONL file, or any other file as one text.

A file is read whole and checked line by line, so that an error names the line. A user's mistake in a path is found
before a model is loaded for it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, refuse

# Characters of a path in a message: a whole text can stand where a path belongs.
_SHOWN_CHARACTERS = 200


def check_files(datasets: Mapping[str, Any]) -> None:
    """Check that every dataset that is given as a path is a file, before anything is loaded for it.

    Args:
        datasets (`Mapping[str, Any]`): Data by distribution. Only strings and paths are checked.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a file is missing or is a folder. Lists every one with the name of its
            distribution.
    """
    faults = []
    for name, data in datasets.items():
        # os.path.isfile and isdir answer no to a text that is too long for a path; the methods of `Path` raise an
        # error.
        if not isinstance(data, str | os.PathLike) or os.path.isfile(data):  # noqa: PTH113
            continue
        problem = "a folder" if os.path.isdir(data) else "not there"  # noqa: PTH112
        faults.append(f"'{name}': '{str(data)[:_SHOWN_CHARACTERS]}' is {problem}")
    if faults:
        remedy = "Give the path of a text file or of a JSONL file of rows. In Python, put a text itself into a list."
        refuse(ConfigError, f"{len(faults)} of {len(datasets)} distributions have no file.", faults, remedy)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a file.

    Args:
        path (`str` or `Path`): A `.jsonl` file with a JSON object on each line, or any other file, which is one text.
            Empty lines, and rows whose `text` is empty, are left out.

    Returns:
        `list[dict[str, Any]]`: The JSON objects, or `[{"text": ...}]`.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a line is not a JSON object (the error names it), or the file is not
            UTF-8, or has no text.
    """
    file = Path(path)
    try:
        content = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 ({error}). Convert it.") from error
    rows = _read_lines(content, file) if file.suffix == ".jsonl" else [{"text": content}]
    rows = [row for row in rows if not _is_empty(row)]
    if not rows:
        raise ConfigError(f"{file} has no text in it.")
    return rows


def _read_lines(content: str, file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            rows.append(_parse_object(line, f"{file}, line {number}"))
    return rows


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not a JSON object ({error}).") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: not a JSON object, but {type(row).__name__}.")
    return row


def _is_empty(row: Mapping[str, Any]) -> bool:
    text = row.get("text")
    return isinstance(text, str) and not text.strip()
