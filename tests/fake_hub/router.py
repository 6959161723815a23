"""The routing table: which function answers which address. Handlers register themselves with `@route`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from tests.fake_hub.store import Store
from tests.fake_hub.wire import Refusal, Request, Response

Handler = Callable[[Store, Request], Response]

PARTS = {
    "{repo}": r"(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)",
    "{page}": r"(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+?)",
    "{path}": r"(?P<path>.+)",
    "{rev}": r"(?P<rev>[^/]+)",
    "{name}": r"(?P<name>[^/]+)",
    "{number}": r"(?P<number>\d+)",
}


@dataclass(frozen=True)
class Route:
    origin: str
    method: str
    pattern: re.Pattern[str]
    handler: Handler


ROUTES: list[Route] = []


def route(method: str, template: str, origin: str = "hub") -> Callable[[Handler], Handler]:
    """Register a handler. `{repo}` is kind and id in the API, `{page}` outside of it; parts match the path as it is
    quoted.
    """
    pattern = template
    for name, expression in PARTS.items():
        pattern = pattern.replace(name, expression)

    def enter(handler: Handler) -> Handler:
        ROUTES.append(Route(origin, method, re.compile(pattern), handler))
        return handler

    return enter


def answer(store: Store, request: Request) -> Response:
    """Find the handler and run it. A HEAD request is answered like a GET request."""
    method = "GET" if request.method == "HEAD" else request.method
    found = [
        (entry, match)
        for entry in ROUTES
        if entry.origin == request.origin and (match := entry.pattern.fullmatch(request.path))
    ]
    for entry, match in found:
        if entry.method == method:
            params = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            with store.lock:
                try:
                    return entry.handler(store, replace(request, params=params))
                except Refusal as refusal:
                    return refusal.response()
    return Refusal(405 if found else 404, f"The tests' Hub has no {request.method} {request.path}").response()
