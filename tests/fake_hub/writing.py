"""Changing a repository: branches, tags, uploads and commits. A commit is checked whole before a ref moves."""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tests.fake_hub import cards, xet
from tests.fake_hub.access import readable, require_writer, writable
from tests.fake_hub.discussions import open_request, pull_request
from tests.fake_hub.router import route
from tests.fake_hub.store import Blob, Commit, Repo, Store, belongs_to_lfs, check_path, pointer
from tests.fake_hub.wire import Refusal, Request, Response, json_response


@route("POST", "/api/{repo}/branch/{name}")
def create_branch(store: Store, request: Request) -> Response:
    repo, _ = writable(store, request)
    return _new_ref(repo, f"refs/heads/{request.params['name']}", request.json().get("startingPoint", "main"))


@route("DELETE", "/api/{repo}/branch/{name}")
def delete_branch(store: Store, request: Request) -> Response:
    repo, _ = writable(store, request)
    if request.params["name"] == "main":
        raise Refusal(403, "Cannot delete the default branch")
    return _no_ref(repo, f"refs/heads/{request.params['name']}")


@route("POST", "/api/{repo}/tag/{rev}")
def create_tag(store: Store, request: Request) -> Response:
    repo, _ = writable(store, request)
    return _new_ref(repo, f"refs/tags/{request.json()['tag']}", request.params["rev"])


@route("DELETE", "/api/{repo}/tag/{name}")
def delete_tag(store: Store, request: Request) -> Response:
    repo, _ = writable(store, request)
    return _no_ref(repo, f"refs/tags/{request.params['name']}")


def _new_ref(repo: Repo, ref: str, revision: str) -> Response:
    if ref in repo.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.commit(revision).id
    return json_response({"ref": ref, "commit": repo.refs[ref]})


def _no_ref(repo: Repo, ref: str) -> Response:
    if repo.refs.pop(ref, None) is None:
        raise Refusal(404, f"Reference does not exist: {ref}", "RevisionNotFound")
    return json_response({})


@route("POST", "/api/{repo}/super-squash/{rev}")
def squash(store: Store, request: Request) -> Response:
    repo, user = writable(store, request)
    commit = repo.commit(request.params["rev"])
    store.record(
        repo, f"refs/heads/{request.params['rev']}", None, commit.files, request.json()["message"], author=user.name
    )
    return json_response({})


@route("POST", "/api/{repo}/preupload/{rev}")
def preupload(store: Store, request: Request) -> Response:
    """Say how to upload each file, and which version of it the server has."""
    repo, _ = writable(
        store, request, by_request=request.flag("create_pr") or request.params["rev"].startswith("refs/pr/")
    )
    there = repo.commit(request.params["rev"]).files
    asked = request.json()["files"]
    if len(asked) > 256:
        raise Refusal(400, f"{len(asked)} files; 256 at most")
    return json_response(
        {"files": [_upload_mode(check_path(one["path"]), one["size"], there.get(one["path"])) for one in asked]}
    )


def _upload_mode(path: str, size: int, there: Blob | None) -> dict[str, Any]:
    known = {} if there is None else {"oid": there.sha256 if there.lfs else there.oid}
    return {
        "path": path,
        "uploadMode": "lfs" if belongs_to_lfs(path, size) else "regular",
        "shouldIgnore": False,
        **known,
    }


@route("POST", r"/{page}\.git/info/lfs/objects/batch")
def batch(store: Store, request: Request) -> Response:
    """Return the upload addresses of large files, and none for known files. Without a ref it is for a pull
    request.
    """
    asked = request.json()
    ref = asked.get("ref", {}).get("name")
    repo, _ = writable(store, request, by_request=ref is None or ref.startswith("refs/pr/"))
    objects = [
        {**one, **({} if one["oid"] in store.contents else _actions(store, repo, one["oid"], one["size"]))}
        for one in asked["objects"]
    ]
    return json_response({"transfer": "basic", "objects": objects})


def _actions(store: Store, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    upload: dict[str, Any] = {"href": f"{store.cdn}/upload/{oid}"}
    verify = {"href": f"{store.endpoint}/api/lfs/verify/{repo.kind}/{repo.id}"}
    if size > store.part_size:
        parts = {str(part + 1): f"{store.cdn}/upload/{oid}/{part + 1}" for part in range(-(-size // store.part_size))}
        upload = {"href": f"{store.endpoint}/api/lfs/complete", "header": {"chunk_size": str(store.part_size), **parts}}
    return {"actions": {"upload": upload, "verify": verify}}


@route("PUT", "/upload/(?P<oid>[0-9a-f]{64})", origin="cdn")
def upload(store: Store, request: Request) -> Response:
    return _keep(store, request.params["oid"], request.body)


@route("PUT", "/upload/(?P<oid>[0-9a-f]{64})/{number}", origin="cdn")
def upload_part(store: Store, request: Request) -> Response:
    store.parts.setdefault(request.params["oid"], {})[int(request.params["number"])] = request.body
    return Response(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", "/api/lfs/complete")
def complete(store: Store, request: Request) -> Response:
    asked = request.json()
    parts = store.parts.pop(asked["oid"], {})
    return _keep(store, asked["oid"], b"".join(parts[one["partNumber"]] for one in asked["parts"]))


def _keep(store: Store, oid: str, data: bytes) -> Response:
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, "The provided 'x-amz-content-sha256' header does not match what was computed.")
    store.contents[oid] = data
    return Response(headers={"ETag": f'"{oid}"'})


@route("POST", "/api/lfs/verify/{repo}")
def verify(store: Store, request: Request) -> Response:
    readable(store, request)
    require_writer(store, request)
    asked = request.json()
    if len(store.contents.get(asked["oid"], b"")) != asked["size"]:
        raise Refusal(400, f"Object {asked['oid']} is not here with {asked['size']} bytes")
    return json_response({})


@route("POST", "/api/{repo}/commit/{rev}")
def commit(store: Store, request: Request) -> Response:
    """Commit new and removed files to a branch, or as a pull request."""
    revision, by_request = request.params["rev"], request.flag("create_pr")
    repo, user = writable(store, request, by_request=by_request or revision.startswith("refs/pr/"))
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), None)
    if header is None or not header.get("summary"):
        raise Refusal(400, "A commit needs a header with a summary.")
    parent = _parent(repo, revision, header.get("parentCommit"), by_request=by_request)
    files = _changed(store, parent.files, [line for line in lines if line["key"] != "header"])
    if by_request:
        discussion = open_request(store, repo, user.name, header["summary"], fork=parent.id)
        ref, extra = (
            f"refs/pr/{discussion.number}",
            {"pullRequestUrl": f"{store.endpoint}/{repo.prefix}{repo.id}/discussions/{discussion.number}"},
        )
    else:
        ref, extra = _target(repo, revision, user.name), {}
    made = store.record(repo, ref, parent.id, files, header["summary"], header.get("description", ""), author=user.name)
    return json_response(
        {
            "success": True,
            "commitOid": made.id,
            "commitUrl": f"{store.endpoint}/{repo.prefix}{repo.id}/commit/{made.id}",
            **extra,
        }
    )


def _parent(repo: Repo, revision: str, wanted: str | None, *, by_request: bool) -> Commit:
    """Return the parent of a new commit. It must be the head, except for a pull request, which may start anywhere."""
    head = repo.commit(revision)
    if wanted is None or head.id.startswith(wanted):
        return head
    if by_request:
        return repo.commit(wanted)
    raise Refusal(412, "A commit has happened since. Please refresh and try again.")


def _target(repo: Repo, revision: str, user: str) -> str:
    ref = repo.ref(revision)
    if ref is None or ref.startswith("refs/tags/"):
        raise Refusal(400, f"{revision} is not a branch")
    if ref.startswith("refs/pr/"):
        discussion = pull_request(repo, int(ref.removeprefix("refs/pr/")))
        if user not in {discussion.author, repo.owner} or discussion.status not in {"open", "draft"}:
            raise Refusal(403, f"Forbidden: {user} cannot push to {ref}, which is {discussion.status}.")
    return ref


def _changed(store: Store, before: Mapping[str, Blob], lines: list[dict[str, Any]]) -> dict[str, Blob]:
    """Return all files after a commit."""
    files = dict(before)
    for line in lines:
        key, value = line["key"], line["value"]
        path = check_path(value["path"].rstrip("/") if key == "deletedFolder" else value["path"])
        if key == "file":
            files[path] = _regular(store, path, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = _large(store, path, value["oid"])
        elif key in {"deletedFile", "deletedFolder"}:
            gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(f"{path}/"))]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refusal(400, f"The tests' Hub does not know the operation '{key}'")
    return files


def _regular(store: Store, path: str, data: bytes) -> Blob:
    if belongs_to_lfs(path, len(data)):
        raise Refusal(
            400,
            f"Your push was rejected because {path} belongs into LFS. https://hf.co/docs/hub/repositories-getting-started",
        )
    if path == "README.md" and (errors := cards.problems(data.decode("utf-8", "replace"))[0]):
        raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    return store.put(data, lfs=False)


def _large(store: Store, path: str, oid: str) -> Blob:
    if oid in store.contents:
        return pointer(oid, len(store.contents[oid]))
    if file := xet.find(store, oid):
        return pointer(oid, file.size)
    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path} ({oid})")
