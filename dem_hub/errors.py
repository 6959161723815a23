"""The exceptions of dem_hub: one tree, with [`DemHubError`] at its root.

Every class also inherits the standard type that a caller would guess (`ValueError`, `FileNotFoundError`,
`ImportError`), so that code which does not know dem_hub catches it too. A message says what was refused, both
values, where, and what to do next. Several faults that are found together are listed in one error, by [`refuse`].
When the Hub itself refuses (401, 403, 404), its client's error is raised and not one of these.
"""

from collections.abc import Sequence
from typing import NoReturn


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
    """Raise one `error` that lists every fault.

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

    ```
    """
    lines = [summary, *(f"  - {fault}" for fault in faults)]
    if remedy:
        lines.append(remedy)
    raise error("\n".join(lines))
