"""Permissions: who may do what, with the status and the error code that the Hub answers.

A private repository looks as if it did not exist: 401 without a token, 404 with one. A gated repository shows
everything except its files. An unknown token is refused everywhere, on public repositories too.
"""

from urllib.parse import quote

from tests.fake_hub.store import Repo, Store, User
from tests.fake_hub.wire import Refusal, Request


def identify(store: Store, request: Request) -> User | None:
    """Return the user of the request's token, or `None` for a request without one."""
    if "authorization" not in request.headers:
        return None
    user = next((user for user in store.users.values() if user.token == request.token), None)
    if user is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return user


def require_user(store: Store, request: Request) -> User:
    user = identify(store, request)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return user


def require_writer(store: Store, request: Request) -> User:
    """Return the user of a token that may write."""
    user = require_user(store, request)
    if user.role != "write":
        raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
    return user


def owns(user: User | None, namespace: str) -> bool:
    return user is not None and namespace in {user.name, *user.orgs}


def readable(store: Store, request: Request) -> Repo:
    """Return the repository that the path names, if the sender may see it."""
    kind, repo_id = request.params.get("kind", "models"), request.params["id"]
    user = identify(store, request)
    repo = store.repos.get((kind, repo_id))
    if repo is None and (kind, repo_id) in store.moved and f"/{quote(repo_id)}" in request.path:
        there = request.path.replace(f"/{quote(repo_id)}", f"/{quote(store.moved[kind, repo_id])}", 1)
        raise Refusal(307, f"Moved to {there}", headers={"Location": store.endpoint + there})
    if repo is None or (repo.private and not owns(user, repo.owner)):
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return repo


def open_files(store: Store, request: Request) -> Repo:
    """Return the repository that the path names, if the sender may read its files."""
    repo = readable(store, request)
    user = identify(store, request)
    if repo.gated and not owns(user, repo.owner) and (user is None or user.name not in repo.readers):
        if user is None:
            login = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(401, f"Access to model {repo.id} is restricted. {login}", "GatedRepo")
        ask = f"you are not in the authorized list. Visit {store.endpoint}/{repo.id} to ask for access."
        raise Refusal(403, f"Access to model {repo.id} is restricted and {ask}", "GatedRepo")
    return repo


def writable(store: Store, request: Request, *, by_request: bool = False) -> tuple[Repo, User]:
    """Return the repository that the path names, if the sender may change it. With `by_request`, every user may: a
    pull request is enough.
    """
    repo = readable(store, request)
    user = require_writer(store, request)
    if not by_request and not owns(user, repo.owner):
        way_out = "pass `create_pr=1` as a query parameter to create a Pull Request"
        raise Refusal(403, f"Forbidden: you have no write access to {repo.id}; {way_out}.")
    return repo, user
