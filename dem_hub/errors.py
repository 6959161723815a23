"""The exceptions of dem_hub: one tree, rooted at `DemHubError`.

Every child also inherits the standard type a caller would guess (`ValueError`, `FileNotFoundError`, `ImportError`), so that
code that never heard of dem_hub still catches it. A message says what was refused, both values, where, and what to do next;
several faults found together are listed in one error by [`refuse`]. Refusals of the Hub (401, 403, 404) pass through as the client has them.
"""

from collections.abc import Sequence
from typing import NoReturn


class DemHubError(Exception):
    """Root of everything dem_hub refuses."""


class ConfigError(DemHubError, ValueError):
    """A vector config or recipe that cannot be read, or that this version must not read."""


class CheckpointError(DemHubError, ValueError):
    """Files of weights that cannot be used: pickled, truncated, altered, quantised, not finite, or badly named."""


class BaseMismatchError(DemHubError, ValueError):
    """A vector that does not belong to the base it is put on."""


class AdapterError(DemHubError, ValueError):
    """A PEFT adapter that is not a plain sum of deltas, or that does not fit the base."""


class CodecError(DemHubError, ValueError):
    """A codec or codec option that does not exist or does not fit."""


class CoefficientError(DemHubError, ValueError):
    """Coefficients that name no vector, are not finite, or cannot be applied to a model in place."""


class NotFoundError(DemHubError, FileNotFoundError):
    """A model, a recipe, a store, a search result, a folder or a file that is not where it was looked for."""


class VectorNotFoundError(NotFoundError):
    """A vector that is not where it was looked for, or not there yet."""


class PushConflictError(DemHubError, RuntimeError):
    """Somebody else changed the same files on the Hub in between."""


class HubError(DemHubError, OSError):
    """The line to the Hub failed, or the Hub itself did; another try may succeed."""


class DiskSpaceError(DemHubError, OSError):
    """There is less room on the disk than a result takes; found out before anything is written."""


class BusyError(DemHubError, OSError):
    """Another process is writing the same folder."""


class MissingDependencyError(DemHubError, ImportError):
    """An optional package is needed; the message says how to install it."""


def refuse(error: type[DemHubError], summary: str, faults: Sequence[str], remedy: str = "") -> NoReturn:
    """Raise one `error` that lists every fault.

    Args:
        error (`type[DemHubError]`): the class to raise.
        summary (`str`): what was refused, and where.
        faults (`Sequence[str]`): one line for each fault, each naming its tensor or file and both values.
        remedy (`str`, *optional*): what the user can do.

    Raises:
        `DemHubError`: always, of the class given.

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
