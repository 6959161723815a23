"""Reading a repository: trees, refs, history, and the files themselves, large ones by way of the second origin."""

from typing import Any
from urllib.parse import parse_qs, quote

from tests.fake_hub import xet
from tests.fake_hub.access import open_files, readable
from tests.fake_hub.repositories import paged
from tests.fake_hub.router import route
from tests.fake_hub.store import Blob, Commit, Store, git_oid
from tests.fake_hub.wire import Refusal, Request, Response, json_response, ranged, stamp


def entry(store: Store, path: str, blob: Blob) -> dict[str, Any]:
    """Return a file as trees show it."""
    found: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.lfs:
        found["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
        if file := xet.find(store, blob.sha256):
            found["xetHash"] = file.name
    return found


def folders(commit: Commit) -> set[str]:
    """Return every folder of a commit."""
    return {"/".join(path.split("/")[:depth]) for path in commit.files for depth in range(1, path.count("/") + 1)}


def listing(store: Store, commit: Commit) -> list[dict[str, Any]]:
    """Return all entries, sorted by path."""
    directories = [
        {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path} for path in folders(commit)
    ]
    return sorted(
        [*directories, *(entry(store, path, blob) for path, blob in commit.files.items())], key=lambda one: one["path"]
    )


def expanded(found: list[dict[str, Any]], commit: Commit, request: Request) -> list[dict[str, Any]]:
    """Return entries with the commit, if it is asked for. (It is the newest commit, not each file's own.)"""
    wanted = request.flag("expand") or b"expand=true" in request.body.lower()
    last = {"id": commit.id, "title": commit.title, "date": stamp(commit.date)}
    return [{**one, "lastCommit": last} for one in found] if wanted else found


@route("GET", "/api/{repo}/tree/{rev}")
@route("GET", "/api/{repo}/tree/{rev}/{path}")
def tree(store: Store, request: Request) -> Response:
    commit = readable(store, request).commit(request.params["rev"])
    top = request.params.get("path", "").strip("/")
    if top and top not in folders(commit):
        raise Refusal(404, f"{top} does not exist on {request.params['rev']}", "EntryNotFound")
    inside = f"{top}/" if top else ""
    found = [one for one in listing(store, commit) if one["path"].startswith(inside)]
    if not request.flag("recursive"):
        found = [one for one in found if "/" not in one["path"].removeprefix(inside)]
    return paged(store, request, expanded(found, commit, request))


@route("POST", "/api/{repo}/paths-info/{rev}")
def paths_info(store: Store, request: Request) -> Response:
    commit = readable(store, request).commit(request.params["rev"])
    wanted = {path.rstrip("/") for path in parse_qs(request.body.decode()).get("paths", [])}
    return json_response(expanded([one for one in listing(store, commit) if one["path"] in wanted], commit, request))


@route("GET", "/api/{repo}/refs")
def refs(store: Store, request: Request) -> Response:
    repo = readable(store, request)

    def under(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if ref.startswith(prefix)
        ]

    pulls = (
        {"pullRequests": [{**one, "name": one["ref"]} for one in under("refs/pr/")]}
        if request.flag("include_prs")
        else {}
    )
    return json_response({"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": [], **pulls})


@route("GET", "/api/{repo}/commits/{rev}")
def commits(store: Store, request: Request) -> Response:
    found = [
        {
            "id": one.id,
            "title": one.title,
            "message": one.message,
            "date": stamp(one.date),
            "authors": [{"user": one.author}],
        }
        for one in readable(store, request).history(request.params["rev"])
    ]
    return paged(store, request, found)


@route("GET", "/{page}/resolve/{rev}/{path}")
def resolve(store: Store, request: Request) -> Response:
    """Return a file, or for a file in LFS the address of its bytes."""
    repo = open_files(store, request)
    commit = repo.commit(request.params["rev"])
    path = request.params["path"]
    named = {"X-Repo-Commit": commit.id}
    blob = commit.files.get(path)
    if blob is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", named)
    if not blob.lfs:
        etag = {"ETag": f'"{blob.oid}"', "Content-Disposition": f'inline; filename="{path.split("/")[-1]}"'}
        return ranged(store.contents[blob.sha256], request.headers.get("range"), {**named, **etag})
    there = f"{store.cdn}/{repo.prefix}{repo.id}/resolve/{commit.id}/{quote(path)}?oid={blob.sha256}"
    linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "ETag": f'"{blob.oid}"'}
    return Response(
        302,
        f"Found. Redirecting to {there}".encode(),
        {"Location": there, **linked, **named, **xet.headers(store, repo, commit, blob)},
    )


@route("GET", "/{page}/resolve/{rev}/{path}", origin="cdn")
def content(store: Store, request: Request) -> Response:
    """Return the bytes of a large file. The address alone is enough, like a signed one."""
    oid = request.query.get("oid", [""])[0]
    if oid not in store.contents:
        raise Refusal(404, f"No such object: {oid}")
    return ranged(store.contents[oid], request.headers.get("range"), {"ETag": f'"{oid}"'})
