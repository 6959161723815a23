"""The exceptions of dem_hub: one tree, with [`DemHubError`] at its root.

Every class also inherits the standard type that a caller would guess (`ValueError`, `FileNotFoundError`,
`ImportError`), so that code which does not know dem_hub catches it too. A message says what was refused, both
values, where, and what to do next. Several faults that are found together are listed in one error, by [`refuse`],
those of the same tensor in many layers on one line, so that a message of hundreds of faults fits on a screen.
When the Hub itself refuses (401, 403, 404), its client's error is raised and not one of these.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NoReturn

# Lines of faults that one message has, so that its first line is still on the screen.
_MOST_LINES = 25

# Numbers of a line that are looked at: two for each of two tensors. Names may come from files of anybody.
_MOST_NUMBERS = 4

# A number in a tensor's name that counts layers or experts: `model.layers.0.mlp.experts.3.up_proj.weight`.
_NUMBER = re.compile(r"(?<=[.'])(0|[1-9]\d{0,8})(?=[.'])")


class DemHubError(Exception):
    """Root of all errors of dem_hub. Raised only as one of its subclasses."""


# Configs and arguments


class ConfigError(DemHubError, ValueError):
    """Raised for a vector config, a recipe or an argument that cannot be read or is not allowed.

    A file of a newer format version is one that cannot be read.
    """


class CodecError(DemHubError, ValueError):
    """Raised for a codec or an option of a codec that does not exist or does not fit."""


class CoefficientError(DemHubError, ValueError):
    """Raised for coefficients that name no vector, are not finite, or cannot be applied to a loaded model."""


# Weights


class CheckpointError(DemHubError, ValueError):
    """Raised for files of weights that cannot be used: pickled, truncated, altered, quantized, or not finite."""


class BaseMismatchError(DemHubError, ValueError):
    """Raised when a vector does not belong to the base that it is added to."""


class AdapterError(DemHubError, ValueError):
    """Raised for a PEFT adapter that is not a plain sum of deltas, or that does not fit the base."""


# Files and folders


class NotFoundError(DemHubError, FileNotFoundError):
    """Raised when a model, a recipe, a store, a search result, a folder or a file is not at the given place."""


class VectorNotFoundError(NotFoundError):
    """Raised when a vector is not at the given place, or has not been made yet."""


class DiskSpaceError(DemHubError, OSError):
    """Raised before anything is written, when a disk has less free space than the result or its downloads need."""


class BusyError(DemHubError, OSError):
    """Raised when another process is writing the same folder."""


# The Hub


class HubError(DemHubError, OSError):
    """Raised when the connection to the Hub or the Hub itself fails. Another try may succeed."""


class PushConflictError(DemHubError, RuntimeError):
    """Raised when another push changed the same files in between, or the branch is not at `parent_commit`."""


# Packages


class MissingDependencyError(DemHubError, ImportError):
    """Raised when an optional package is needed. The message says how to install it."""


def refuse(error: type[DemHubError], summary: str, faults: Sequence[str], remedy: str = "") -> NoReturn:
    """Raise one `error` that lists the faults.

    Faults that differ only in the layer or the expert of a tensor are one line, and of very many lines the first are
    listed.

    Args:
        error (`type[DemHubError]`): The class to raise.
        summary (`str`): What was refused, and where.
        faults (`Sequence[str]`): One line for each fault, which names its tensor or file and both values.
        remedy (`str`, *optional*): What the user can do.

    Raises:
        `DemHubError`: Always, of the class given.

    Example:

    ```python
    >>> from dem_hub.errors import BaseMismatchError, refuse
    >>> try:
    ...     refuse(BaseMismatchError, "2 tensors differ.", ["'a' is [2]", "'b' is [3]"], "Use the right base.")
    ... except ValueError as error:
    ...     print(error)
    2 tensors differ.
      - 'a' is [2]
      - 'b' is [3]
    Use the right base.
    >>> try:
    ...     refuse(BaseMismatchError, "30 tensors differ.", [f"'layers.{i}.mlp.weight' is [2]" for i in range(30)])
    ... except ValueError as error:
    ...     print(error)
    30 tensors differ.
      - 'layers.0-29.mlp.weight' is [2]

    ```
    """
    folded = _fold(faults)
    lines = [summary, *(f"  - {line}" for line in islice(folded, _MOST_LINES))]
    others = sum(islice(folded.values(), _MOST_LINES, None))
    if others:
        lines.append(f"  - and {others} more")
    if remedy:
        lines.append(remedy)
    raise error("\n".join(lines))


def _fold(faults: Sequence[str]) -> dict[str, int]:
    """Return lines that say the same as some faults, in their order, and how many faults each of them stands for."""
    # Each fault as texts with numbers between them.
    folded = [(_NUMBER.split(fault, maxsplit=_MOST_NUMBERS), 1) for fault in faults]
    # Experts stand behind their layer, and are put together first: then all layers have the same experts.
    for place in reversed(range(1, 2 * _MOST_NUMBERS, 2)):
        alike: dict[tuple[str, ...], list[tuple[list[str], int]]] = {}
        for parts, count in folded:
            others = (*parts[:place], *parts[place + 1 :])
            alike.setdefault(others, []).append((parts, count))
        folded = [_join(group, place) for group in alike.values()]
    return {"".join(parts): count for parts, count in folded}


def _join(group: Sequence[tuple[list[str], int]], place: int) -> tuple[list[str], int]:
    """Return lines that differ in the number at one place as one line, and how many faults it stands for."""
    parts = list(group[0][0])
    if place < len(parts):
        parts[place] = _runs({int(line[place]) for line, _ in group})
    return parts, sum(count for _, count in group)


def _runs(numbers: Iterable[int]) -> str:
    """Return whole numbers as a text, such as `0-3,7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
