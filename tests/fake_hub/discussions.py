"""Pull requests: open, list, show, merge, close. A merge takes what the request changed since it forked, or names the
conflicts.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests.fake_hub.access import owns, readable, require_writer, writable
from tests.fake_hub.router import route
from tests.fake_hub.store import Blob, Commit, Discussion, Repo, Store
from tests.fake_hub.wire import Refusal, Request, Response, json_response, stamp


def open_request(
    store: Store, repo: Repo, author: str, title: str, *, fork: str | None, status: str = "open"
) -> Discussion:
    """Number a new discussion; one with a fork is a pull request and has a ref."""
    number = len(repo.discussions) + 1
    repo.discussions[number] = Discussion(number, title, author, datetime.now(UTC), status, fork)
    if fork:
        repo.refs[f"refs/pr/{number}"] = fork
    return repo.discussions[number]


def numbered(repo: Repo, request: Request) -> Discussion:
    """Return the discussion that the path names."""
    found = repo.discussions.get(int(request.params["number"]))
    if found is None:
        raise Refusal(404, f"No discussion {request.params['number']} in {repo.id}")
    return found


def pull_request(repo: Repo, number: int) -> Discussion:
    found = repo.discussions[number]
    if found.fork is None:
        raise Refusal(400, f"Discussion {number} is no pull request")
    return found


def changes(before: Commit, after: Commit) -> dict[str, Blob | None]:
    """Return the change of every file that differs."""
    paths = before.files.keys() | after.files.keys()
    return {path: after.files.get(path) for path in paths if before.files.get(path) != after.files.get(path)}


def conflicts(repo: Repo, discussion: Discussion) -> list[str]:
    """Return the files that the request and main changed in different ways."""
    fork = repo.commit(discussion.fork or "main")
    theirs, ours = changes(fork, repo.commit(f"refs/pr/{discussion.number}")), changes(fork, repo.commit("main"))
    return sorted(path for path in theirs.keys() & ours.keys() if theirs[path] != ours[path])


def shown(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author, "type": "user"},
        "createdAt": stamp(discussion.created),
        "status": discussion.status,
        "isPullRequest": discussion.fork is not None,
        "repo": {"name": repo.id, "type": repo.kind[:-1]},
    }


@route("GET", "/api/{repo}/discussions")
def index(store: Store, request: Request) -> Response:
    repo = readable(store, request)
    kind, status = request.query.get("type", ["all"])[0], request.query.get("status", ["all"])[0]
    author = request.query.get("author", [None])[0]
    found = [
        shown(repo, one)
        for one in repo.discussions.values()
        if kind in {"all", "pull_request" if one.fork else "discussion"}
        and (status == "all" or (status == "open") == (one.status in {"open", "draft"}))
        and author in {None, one.author}
    ]
    return json_response({"discussions": found, "count": len(found), "start": 0})


@route("POST", "/api/{repo}/discussions")
def create(store: Store, request: Request) -> Response:
    repo = readable(store, request)
    user = require_writer(store, request)
    asked = request.json()
    wanted = bool(asked.get("pullRequest"))
    fork, status = (repo.commit("main").id, "draft") if wanted else (None, "open")
    made = open_request(store, repo, user.name, asked["title"], fork=fork, status=status)
    return json_response(
        {**shown(repo, made), "url": f"{store.endpoint}/{repo.prefix}{repo.id}/discussions/{made.number}"}
    )


@route("GET", "/api/{repo}/discussions/{number}")
def show(store: Store, request: Request) -> Response:
    repo = readable(store, request)
    one = numbered(repo, request)
    request_only: dict[str, Any] = {}
    if one.fork:
        request_only["changes"] = {"base": "refs/heads/main", **({"mergeCommitId": one.merged} if one.merged else {})}
        request_only["filesWithConflicts"] = [] if one.merged else conflicts(repo, one)
        request_only["diff"] = ""
    return json_response({**shown(repo, one), "events": [], **request_only})


@route("POST", "/api/{repo}/discussions/{number}/status")
def change_status(store: Store, request: Request) -> Response:
    repo = readable(store, request)
    user, one, status = require_writer(store, request), numbered(repo, request), request.json()["status"]
    if user.name != one.author and not owns(user, repo.owner):
        raise Refusal(403, f"Forbidden: {user.name} did not open this, and does not own {repo.id}")
    repo.discussions[one.number] = replace(one, status=status)
    event = {"id": f"{one.number}-{status}", "type": "status-change", "createdAt": stamp(datetime.now(UTC))}
    return json_response({"newStatus": {**event, "author": {"name": user.name}, "data": {"status": status}}})


@route("POST", "/api/{repo}/discussions/{number}/merge")
def merge(store: Store, request: Request) -> Response:
    repo, user = writable(store, request)
    one = pull_request(repo, numbered(repo, request).number)
    if one.status not in {"open", "draft"}:
        raise Refusal(400, f"Pull request {one.number} is {one.status}")
    if paths := conflicts(repo, one):
        raise Refusal(409, f"Pull request {one.number} conflicts with main in {', '.join(paths)}")
    head = repo.commit("main")
    found = {**head.files, **changes(repo.commit(one.fork or "main"), repo.commit(f"refs/pr/{one.number}"))}
    files = {path: blob for path, blob in found.items() if blob is not None}
    made = store.record(repo, "refs/heads/main", head.id, files, f"{one.title} (#{one.number})", author=user.name)
    repo.discussions[one.number] = replace(one, status="merged", merged=made.id)
    return json_response({"commitOid": made.id})
