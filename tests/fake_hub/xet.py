"""Xet on this machine: the client's own store, in a folder, instead of a storage service.

`hf_xet` takes `local:///folder` for the address of its storage, and then keeps and reads chunks there itself. The
server has no bytes of such files; what it must know (which Xet file has which sha256 and how many bytes) it reads
from the shards that the client leaves there.
"""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fake_hub.access import open_files, writable
from tests.fake_hub.router import route
from tests.fake_hub.store import Blob, Commit, Repo, Store
from tests.fake_hub.wire import Refusal, Request, Response, json_response

RECORD = 48  # bytes; everything in a shard is a multiple of it, and a hash comes first
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags: a verification record per segment, one record with the sha256
END = b"\xff" * 32  # of the list of files


@dataclass(frozen=True)
class XetFile:
    """A file in Xet's store: its name there, and its sha256 and size in git."""

    name: str
    sha256: str
    size: int


def parse(shard: bytes) -> Iterator[XetFile]:
    """Return the files of a shard: a header record, then for each file its record, its segments, and the parts that
    its flags announce.
    """
    place = RECORD
    while place + RECORD <= len(shard) and shard[place : place + 32] != END:
        name, flags, segments = shard[place : place + 32], *struct.unpack_from("<II", shard, place + 32)
        # A segment: the hash of its block, flags, its bytes unpacked, the chunks from and to.
        sizes = [struct.unpack_from("<I", shard, place + RECORD * (1 + number) + 36)[0] for number in range(segments)]
        place += RECORD * (1 + segments + (segments if flags & VERIFIED else 0))
        if flags & DESCRIBED:
            yield XetFile(spelt(name), spelt(shard[place : place + 32]), sum(sizes))
            place += RECORD


def spelt(hash_: bytes) -> str:
    """Return a hash as Xet writes it: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash_))


def find(store: Store, sha256: str) -> XetFile | None:
    """Return the file in Xet's store that has a sha256."""
    if store.cas is None:
        return None
    found = (file for path in sorted(store.cas.rglob("*.mdb")) for file in parse(path.read_bytes()))
    return next((file for file in found if file.sha256 == sha256), None)


def headers(store: Store, repo: Repo, commit: Commit, blob: Blob) -> dict[str, str]:
    """Return the headers that tell the client to fetch a file from Xet."""
    file = find(store, blob.sha256)
    if file is None:
        return {}
    token = f"{store.endpoint}/api/{repo.kind}/{repo.id}/xet-read-token/{commit.id}"
    return {"X-Xet-Hash": file.name, "X-Xet-Refresh-Route": token, "Link": f'<{token}>; rel="xet-auth"'}


@route("GET", "/api/{repo}/xet-read-token/{rev}")
def read_token(store: Store, request: Request) -> Response:
    open_files(store, request)
    return _token(store, "read")


@route("GET", "/api/{repo}/xet-write-token/{rev}")
def write_token(store: Store, request: Request) -> Response:
    writable(store, request, by_request=request.flag("create_pr") or request.params["rev"].startswith("refs/pr/"))
    return _token(store, "write")


def _token(store: Store, scope: str) -> Response:
    if store.cas is None:
        raise Refusal(404, "This Hub has no Xet storage: set HF_HUB_DISABLE_XET=1")
    access = {"casUrl": f"local://{store.cas}", "accessToken": f"xet_{scope}", "exp": int(time.time()) + 3600}
    named = {
        "X-Xet-Cas-Url": access["casUrl"],
        "X-Xet-Access-Token": access["accessToken"],
        "X-Xet-Token-Expiration": str(access["exp"]),
    }
    return json_response(access, headers={name: str(value) for name, value in named.items()})
