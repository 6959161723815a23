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

# Statuses of which another try may be free: the request took too long, came too soon, or met a server in trouble (and all from 500 on).
_PASSING = {408, 425, 429}


@contextmanager
def contact(what: str, remedy: str) -> Iterator[None]:
    """Within the block, which calls the Hub's client, failures of the line and of the Hub become a `HubError`.

    Args:
        what (`str`): a sentence that says what is asked of the Hub; errors that pass through have it as a note.
        remedy (`str`): what was left undone, and what the user can do.

    Raises:
        `HubError`: the line failed, or the Hub did.
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refused.

    Example:

    ```python
    >>> import json
    >>> from dem_hub.hub.failures import contact
    >>> try:
    ...     with contact("'org/base' was looked for on the Hub.", "Try again."):
    ...         json.loads('{"siblings": [')
    ... except OSError as error:
    ...     print(error)
    'org/base' was looked for on the Hub. Its answer broke off (Expecting value: line 1 column 15 (char 14)). Try again.

    ```
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        for cause in _chain(error):
            failure = _failure(cause)
            if failure is not None:
                raise HubError(f"{what} {failure}. {remedy}") from error
            if isinstance(cause, HfHubHTTPError):  # the Hub's own refusal, whatever the client made of it
                cause.add_note(what)
                raise cause from cause.__cause__
        error.add_note(what)
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
        return _answer(error) if status in _PASSING or status >= 500 else None
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
