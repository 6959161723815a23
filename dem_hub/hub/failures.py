"""Failures of the connection and of the Hub, as one error that says what was asked, what failed, and what to do.

The Hub's client raises a dozen types for a bad connection: those of its HTTP library, `ValueError`, `RuntimeError`,
`OSError`. Here each becomes a `HubError`, with the client's error as its cause. A refusal of the Hub (401, 403,
404) stays the client's `HfHubHTTPError` and gets a note that says what was asked.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from dem_hub.errors import HubError
from dem_hub.hub.references import VectorSource

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# 408 Request Timeout, 425 Too Early and 429 Too Many Requests say that the same request may succeed later.
_TRANSIENT = frozenset([408, 425, 429])


def is_transient(status: int) -> bool:
    """Check whether an HTTP status says that the same request may succeed later.

    That is so for 408, 425 and 429, and for all server errors (500 and above). It is not so for 412, with which the
    Hub refuses a commit because the branch has moved: the commit must be made on top of the new head first, as
    [`dem_hub.hub.commits.push`] does.

    Example:

    ```python
    >>> from dem_hub.hub.failures import is_transient
    >>> [status for status in (401, 404, 408, 412, 429, 503) if is_transient(status)]
    [408, 429, 503]

    ```
    """
    return status >= 500 or status in _TRANSIENT


@contextmanager
def hub_errors(action: str, remedy: str) -> Iterator[None]:
    """Turn failures of the connection and of the Hub into a `HubError`, within a block that calls the Hub's client.

    Args:
        action (`str`): A sentence that says what was asked of the Hub. Errors that pass through get it as a note.
        remedy (`str`): One or more sentences: what was left undone, and what the user can do.

    Raises:
        `HubError`: The connection or the Hub failed.
        `huggingface_hub.errors.HfHubHTTPError`: The Hub refused.

    Example:

    ```python
    >>> import json
    >>> from dem_hub.hub.failures import hub_errors
    >>> try:
    ...     with hub_errors(action="'org/base' was looked up on the Hub.", remedy="Try again."):
    ...         json.loads('{"siblings": [')
    ... except OSError as error:
    ...     print(error)
    'org/base' was looked up on the Hub. Its answer broke off (Expecting value: line 1 column 15 (char 14)). Try again.

    ```
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        for cause in _chain(error):
            failure = _failure(cause)
            if failure is not None:
                raise HubError(f"{action} {failure}. {remedy}") from error
            if isinstance(cause, HfHubHTTPError):
                # The refusal of the Hub tells more than the error that the client made of it, so it is raised in
                # its place.
                cause.add_note(action)
                raise cause from cause.__cause__
        error.add_note(action)
        raise


def download_errors(source: VectorSource) -> AbstractContextManager[None]:
    """Turn failures of a block that downloads files of a source into a `HubError` that names it; see [`hub_errors`]."""
    return hub_errors(
        action=f"'{source.repo_id}' is not a local folder, so it was looked up on the Hub.",
        remedy="Nothing was loaded. Try again: complete files are not downloaded twice.",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _failure(error: BaseException) -> str | None:
    """Return what failed, in words; `None` for an error that another try would meet again."""
    from huggingface_hub.errors import HfHubHTTPError, SafetensorsParsingError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        if is_transient(error.response.status_code):
            return _answer(error)
        return None
    if isinstance(error, httpx.RequestError):
        details = f": {error}" if str(error) else ""
        return f"The connection failed ({type(error).__name__}{details})"
    if isinstance(error, (json.JSONDecodeError, SafetensorsParsingError)):
        return f"Its answer broke off ({error})"
    # The client raises a bare `OSError` for a file of the wrong size, and only its text tells it from a full disk.
    if type(error) is OSError and "Consistency check failed" in str(error):
        first_line = str(error).splitlines()[0].rstrip(".")
        return f"A file is incomplete ({first_line})"
    return None


def _answer(error: "HfHubHTTPError") -> str:
    """Return the status, message and address of the Hub's answer, and how long it asks to wait."""
    response = error.response
    # The query of a URL may be a signature that lets anybody download the file, so it stays out of messages and logs.
    address = str(response.url).partition("?")[0]
    message = (error.server_message or response.reason_phrase or "no reason").rstrip(".")
    wait = response.headers.get("Retry-After")
    advice = f"; wait {wait} s" if wait else ""
    return f"It answered {response.status_code} ({message}) at {address}{advice}"
