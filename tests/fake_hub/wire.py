"""Requests, responses and refusals as records. There are no sockets here, so every handler is a plain function."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class Refusal(Exception):
    """An answer that is an error. `code` is the `X-Error-Code` by which the client chooses its exception."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}

    def response(self) -> "Response":
        named = {"X-Error-Code": self.code} if self.code else {}
        return json_response(
            {"error": self.message}, self.status, {"X-Error-Message": self.message, **named, **self.headers}
        )


@dataclass(frozen=True)
class Request:
    """A request, read whole. Header names are in lower case; `params` are the named parts of the path, unquoted."""

    origin: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)

    @property
    def token(self) -> str | None:
        """Bearer token, if the request has one."""
        return bearer(self.headers)

    def json(self) -> Any:
        """Return the body as JSON. An empty body is an empty object."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}") from error

    def flag(self, name: str) -> bool:
        """Tell whether the query asks for something, in any of the client's spellings."""
        return self.query.get(name, [""])[0].lower() in {"1", "true"}


@dataclass(frozen=True)
class Response:
    """An answer, ready to be sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request that was answered, for tests to count. `fault` names the fault of the answer, if any."""

    origin: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    status: int
    fault: str | None = None

    @property
    def token(self) -> str | None:
        """Bearer token, if the request has one."""
        return bearer(self.headers)


def bearer(headers: dict[str, str]) -> str | None:
    """Return the token of an `Authorization` header."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" and token else None


def stamp(date: datetime) -> str:
    """Return a date in the only form that the client reads."""
    return f"{date:%Y-%m-%dT%H:%M:%S}.{date.microsecond // 1000:03}Z"


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    )


def ranged(body: bytes, wanted: str | None, headers: dict[str, str]) -> Response:
    """Return the bytes that a `Range` header asks for (one range, as the client sends), or all bytes."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    if not wanted:
        return Response(200, body, headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(len(body) - int(last), 0)
    stop = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= stop:
        raise Refusal(416, f"Range {wanted} of {len(body)} bytes", headers={"Content-Range": f"bytes */{len(body)}"})
    return Response(206, body[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"})
