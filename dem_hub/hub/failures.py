"""What goes wrong between this machine and the Hub, as one error that says what, where, and what to do.

The Hub's client raises a dozen types for a bad line: its HTTP library's, `ValueError`, `RuntimeError`, `OSError`. Here each becomes a
`HubError` with the client's own as its cause. What the Hub refuses (401, 403, 404) is the client's `HfHubHTTPError`, with a note.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dem_hub.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# 408 Request Timeout, 425 Too Early and 429 Too Many Requests say that the same request may succeed later.
_TRANSIENT = frozenset([408, 425, 429])


def is_transient(status: int) -> bool:
    """Check whether an HTTP status says that the same request may succeed later.

    That is so for 408, 425 and 429, and for all server errors (500 and above). It is not so for 412, with which the Hub refuses a commit
    because the branch has moved: the commit must be made on top of the new head first, as [`dem_hub.hub.commits.push`] does.

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
            if isinstance(cause, HfHubHTTPError):  # the Hub's own refusal, whatever the client made of it
                cause.add_note(action)
                raise cause from cause.__cause__
        error.add_note(action)
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _failure(error: BaseException) -> str | None:
    """What failed, in words, if it is of a kind that may pass."""
    from huggingface_hub.errors import HfHubHTTPError, SafetensorsParsingError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return _answer(error) if is_transient(status) else None
    if isinstance(error, httpx.RequestError):
        return f"The connection failed ({type(error).__name__}{f': {error}' if str(error) else ''})"
    if isinstance(error, (json.JSONDecodeError, SafetensorsParsingError)):
        return f"Its answer broke off ({error})"
    if type(error) is OSError and "Consistency check failed" in str(error):
        return f"A file did not come whole ({str(error).splitlines()[0].rstrip('.')})"
    return None


def _answer(error: "HfHubHTTPError") -> str:
    """The Hub's answer; of the address no query, which may be signed."""
    response = error.response
    wait = response.headers.get("Retry-After")
    said = (error.server_message or response.reason_phrase or "no reason").rstrip(".")
    return f"It answered {response.status_code} ({said}) at {str(response.url).partition('?')[0]}" + (
        f"; wait {wait} s" if wait else ""
    )
