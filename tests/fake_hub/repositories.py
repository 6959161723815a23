"""Accounts and repositories: who am I, create, delete, move, settings, describe, search."""

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from tests.fake_hub import cards
from tests.fake_hub.access import identify, open_files, owns, readable, require_user, require_writer, writable
from tests.fake_hub.router import route
from tests.fake_hub.store import Blob, Commit, Repo, Store
from tests.fake_hub.wire import Refusal, Request, Response, json_response, stamp

SHORT = (
    "id",
    "modelId",
    "private",
    "tags",
    "pipeline_tag",
    "library_name",
    "createdAt",
    "downloads",
    "likes",
)  # of a search without `full`
SEARCHES = {"filter", "author", "search", "pipeline_tag", "sort", "limit", "cursor", "full", "cardData", "expand"}


@route("GET", "/api/whoami-v2")
def whoami(store: Store, request: Request) -> Response:
    user = require_user(store, request)
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in user.orgs]
    token = {"accessToken": {"displayName": "tests", "role": user.role}}
    return json_response(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name,
            "orgs": orgs,
            "auth": {"type": "access_token", **token},
        }
    )


@route("POST", "/api/repos/create")
def create(store: Store, request: Request) -> Response:
    asked = request.json()
    user = require_writer(store, request)
    kind, repo_id = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or user.name}/{asked['name']}"
    url = {"url": f"{store.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"}
    namespace = repo_id.split("/")[0]
    if not owns(user, namespace):
        raise Refusal(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"')
    if kind == "spaces" and asked.get("sdk") not in cards.SDKS:
        raise Refusal(400, '"sdk" is required to create a Space')
    if asked.get("hardware", "cpu-basic") != "cpu-basic":
        raise Refusal(402, "This machine costs something, and the tests pay nothing")
    if (kind, repo_id) in store.repos:
        return json_response({"error": f"You already created this {kind[:-1]} repo", **url}, 409)
    store.create(kind, repo_id, user.name, private=asked.get("visibility") == "private")
    return json_response(url)


@route("DELETE", "/api/repos/delete")
def delete(store: Store, request: Request) -> Response:
    asked = request.json()
    user = require_writer(store, request)
    params = {
        "kind": f"{asked.get('type') or 'model'}s",
        "id": f"{asked.get('organization') or user.name}/{asked['name']}",
    }
    repo, _ = writable(store, replace(request, params=params))
    del store.repos[repo.kind, repo.id]
    return json_response({})


@route("POST", "/api/repos/move")
def move(store: Store, request: Request) -> Response:
    asked = request.json()
    kind, new = f"{asked['type']}s", asked["toRepo"]
    repo, user = writable(store, replace(request, params={"kind": kind, "id": asked["fromRepo"]}))
    if not owns(user, new.split("/")[0]):
        raise Refusal(403, f"You don't have the rights to move a repo to {new}")
    if (kind, new) in store.repos:
        raise Refusal(409, f"{new} exists already")
    store.moved[kind, repo.id] = new
    store.moved.pop((kind, new), None)
    store.repos[kind, new] = store.repos.pop((kind, repo.id))
    repo.id = new
    return json_response({})


@route("PUT", "/api/{repo}/settings")
def settings(store: Store, request: Request) -> Response:
    repo, _ = writable(store, request)
    asked = request.json()
    repo.gated = asked.get("gated", repo.gated)
    repo.private = asked["visibility"] == "private" if "visibility" in asked else repo.private
    return json_response({"private": repo.private, "gated": repo.gated})


@route("GET", "/api/{repo}/auth-check")
def auth_check(store: Store, request: Request) -> Response:
    open_files(store, request)
    return json_response({})


@route("GET", "/api/{repo}/auth-check/write")
def auth_check_write(store: Store, request: Request) -> Response:
    writable(store, request)
    return json_response({})


@route("POST", "/api/validate-yaml")
def validate(store: Store, request: Request) -> Response:
    asked = request.json()
    errors, warnings = cards.problems(asked["content"], asked.get("repoType") or "model")
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_response(found, 400 if errors else 200)


@route("GET", "/api/{repo}")
@route("GET", "/api/{repo}/revision/{rev}")
def info(store: Store, request: Request) -> Response:
    repo = readable(store, request)
    found = describe(store, repo, repo.commit(request.params.get("rev", "main")))
    if request.flag("blobs"):
        files = repo.commit(found["sha"]).files
        found["siblings"] = [{"rfilename": path, **_sizes(blob)} for path, blob in files.items()]
    wanted = request.query.get("expand")
    if wanted and not set(wanted) <= set(found):
        raise Refusal(400, f"The tests' Hub cannot expand {sorted(set(wanted) - set(found))}")
    return json_response({key: value for key, value in found.items() if key in {"id", *wanted}} if wanted else found)


def describe(store: Store, repo: Repo, commit: Commit) -> dict[str, Any]:
    """Return all that the Hub says about a repository, with its keys."""
    readme = commit.files.get("README.md")
    card = cards.metadata(store.contents[readme.sha256].decode("utf-8", "replace")) if readme else {}
    return {
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.owner,
        "sha": commit.id,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "tags": cards.tags(card, commit.files),
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card or None,
        "siblings": [{"rfilename": path} for path in commit.files],
        "createdAt": stamp(repo.created),
        "lastModified": stamp(commit.date),
        "downloads": 0,
        "likes": 0,
        "usedStorage": sum({blob.sha256: blob.size for blob in commit.files.values()}.values()),
    }


def _sizes(blob: Blob) -> dict[str, Any]:
    lfs = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}} if blob.lfs else {}
    return {"size": blob.size, "blobId": blob.oid, **lfs}


@route("GET", "/api/(?P<kind>models|datasets|spaces)")
def search(store: Store, request: Request) -> Response:
    """Return the repositories that have every filter among their tags."""
    if unknown := request.query.keys() - SEARCHES:
        raise Refusal(400, f"The tests' Hub cannot search by {', '.join(sorted(unknown))}")
    found = [
        describe(store, repo, repo.commit("main"))
        for repo in _visible(store, request)
        if "refs/heads/main" in repo.refs
    ]
    for tag in request.query.get("filter", []):
        found = [one for one in found if tag in one["tags"]]
    if task := request.query.get("pipeline_tag", [""])[0]:
        found = [one for one in found if one["pipeline_tag"] == task]
    if order := request.query.get("sort", [""])[0]:
        found.sort(key=lambda one: one[order], reverse=True)
    shown = {*SHORT, *(("author", "sha", "gated", "lastModified", "siblings") if request.flag("full") else ())}
    shown |= {"cardData"} if request.flag("cardData") else set()
    shown |= {"id", *request.query["expand"]} if "expand" in request.query else set()
    return paged(store, request, [{key: value for key, value in one.items() if key in shown} for one in found])


def _visible(store: Store, request: Request) -> list[Repo]:
    """Return the repositories that the sender may see, filtered by author and name."""
    user = identify(store, request)
    author, words = request.query.get("author", [None])[0], request.query.get("search", [""])[0].lower()
    return [
        repo
        for repo in store.repos.values()
        if repo.kind == request.params["kind"]
        and (not repo.private or owns(user, repo.owner))
        and author in {None, repo.owner}
        and words in repo.id.lower()
    ]


def paged(store: Store, request: Request, items: list[Any]) -> Response:
    """Return one page, with the address of the next one in `Link`."""
    size = min(int(request.query.get("limit", [store.page_size])[0]), store.page_size)
    start = int(request.query.get("cursor", ["0"])[0])
    query = urlencode({**request.query, "cursor": [start + size]}, doseq=True)
    more = {"Link": f'<{store.endpoint}{request.path}?{query}>; rel="next"'} if start + size < len(items) else {}
    return json_response(items[start : start + size], headers=more)
