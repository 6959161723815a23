"""Faults that a test can cause, request by request.

A fault with a status answers instead of the handler, so nothing happens on the server. The others let the handler
work and spoil the bytes of its answer, as a bad connection does. They wait for an answer that has bytes.
"""

import re
from dataclasses import dataclass, field

from tests.fake_hub.wire import Refusal, Request, Response

MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Forbidden",
    404: "Not found",
    412: "A commit has happened since. Please refresh and try again.",
    429: "You have been rate limited.",
    503: "Service temporarily unavailable",
}


@dataclass
class Fault:
    """One fault.

    Args:
        method (`str`): of the requests that it spoils; "*" for any.
        pattern (`str`): a regular expression, searched in the path.
        origin (`str`, *optional*): "hub" or "cdn"; else both.
        times (`int`, *optional*): how many requests; else all.
        after (`int`): how many matching requests are let through first.
        status (`int`, *optional*): answered in place of anything else; with `code`, an `X-Error-Code` such as "GatedRepo", and with
            `retry_after` seconds.
        cut (`int`, *optional*): the headers promise the whole body, the connection closes after so many bytes of it.
        truncate (`int`, *optional*): the body has only so many bytes, and its headers agree.
        corrupt (`bool`): the byte in the middle is another one.
        delay (`float`): seconds until the answer begins.
        lost (`bool`): the server does what it is asked, and the answer never comes.
        endless (`bool`): after the body come more bytes, until the client goes.
        drip (`str`, *optional*): "headers" or "body": these come a byte every 20 ms.
        headers (`dict`, *optional*): headers in place of the true ones.
    """

    method: str
    pattern: str
    origin: str | None = None
    times: int | None = None
    after: int = 0
    status: int | None = None
    code: str | None = None
    retry_after: int | None = None
    cut: int | None = None
    truncate: int | None = None
    corrupt: bool = False
    delay: float = 0
    lost: bool = False
    endless: bool = False
    drip: str | None = None
    headers: dict[str, str] | None = None
    hits: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        spoils = (self.status, self.corrupt, self.delay, self.lost, self.endless, self.drip, self.headers)
        if not any(spoils) and self.cut is None and self.truncate is None:
            raise ValueError("This fault does nothing: say what goes wrong.")

    @property
    def name(self) -> str:
        """Name of the fault in the record of requests."""
        kinds = {
            "cut": self.cut is not None,
            "truncate": self.truncate is not None,
            "corrupt": self.corrupt,
            "delay": self.delay,
            "lost": self.lost,
            "endless": self.endless,
            f"drip {self.drip}": self.drip,
            "headers": self.headers,
        }
        return str(self.status) if self.status else "+".join(kind for kind, there in kinds.items() if there)

    def meets(self, request: Request) -> bool:
        """Tell whether the fault applies to the request."""
        return (
            self.method in {"*", request.method}
            and self.origin in {None, request.origin}
            and re.search(self.pattern, request.path) is not None
            and (self.times is None or self.hits < self.times + self.after)
        )

    def strike(self) -> bool:
        """Count a matching request. Return `False` if it is let through."""
        self.hits += 1
        return self.hits > self.after

    def refusal(self, request: Request) -> Response | None:
        """Return the answer that replaces the handler's, if the fault has a status. On the Hub a 404 always has a
        code.
        """
        if self.status is None:
            return None
        missing = "EntryNotFound" if "/resolve/" in request.path else "RepoNotFound"
        code = self.code or (missing if self.status == 404 else None)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return Refusal(self.status, MESSAGES.get(self.status, "Internal error"), code, headers).response()

    def spoils(self, request: Request, response: Response) -> bool:
        """Tell whether the fault spoils an answer."""
        if self.delay or self.lost:
            return True
        return request.method != "HEAD" and response.status in {200, 206} and len(response.body) > 1

    def spoil(self, response: Response) -> Response:
        """Return the answer, with those faults in it that come before sending."""
        body = response.body
        if self.truncate is not None:
            body = body[: self.truncate]
        if self.corrupt:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return Response(response.status, body, response.headers | (self.headers or {}))
