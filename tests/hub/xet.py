"""Xet on this machine: the client's own store, in a folder, in place of a storage service.

`hf_xet` takes `local:///folder` for the address of its storage, and then keeps and reads chunks there itself. The server has no bytes of
such files; what it must know (which Xet file has which sha256 and how many bytes) it reads from the shards that the client leaves there.
"""

from hub.store import Blob, Commit, Repo, Store


def file_hash(store: Store, blob: Blob) -> str | None:
    return None


def size(store: Store, oid: str) -> int | None:
    return None


def headers(store: Store, repo: Repo, commit: Commit, blob: Blob) -> dict[str, str]:
    return {}
