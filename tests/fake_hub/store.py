"""The data of the server: users, repositories, commits and contents, all in memory.

Commits and blobs are frozen, as in git; only refs move. A push moves one ref at its end, so it appears whole or not
at all.
"""

import hashlib
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.fake_hub.wire import Refusal

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".gguf",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".msgpack",
    ".npz",
    ".parquet",
    ".tar.gz",
    ".zip",
)
REGULAR_LIMIT = 10 * 2**20  # bytes; the Hub takes nothing larger outside LFS
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class User:
    """An account with one token."""

    name: str
    token: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blob:
    """One version of a file, without its bytes: `oid` is git's name for what git stores (for LFS: of the pointer)."""

    oid: str
    sha256: str
    size: int
    lfs: bool

    @property
    def pointer_size(self) -> int:
        return len(POINTER.format(self.sha256, self.size))


@dataclass(frozen=True)
class Commit:
    """All files at one point, and the parent commit."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: datetime
    files: Mapping[str, Blob]


@dataclass(frozen=True)
class Discussion:
    """A discussion, or a pull request: then `fork` is the commit of main from which it started."""

    number: int
    title: str
    author: str
    created: datetime
    status: str
    fork: str | None = None
    merged: str | None = None


@dataclass
class Repo:
    """A repository. `refs` has full names: `refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""

    kind: str
    id: str
    created: datetime
    private: bool = False
    gated: str | bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)  # who was let through the gate

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def prefix(self) -> str:
        """Return the part before the id in addresses outside the API."""
        return "" if self.kind == "models" else f"{self.kind}/"

    def ref(self, revision: str) -> str | None:
        """Return the full name of a ref. Like the Hub, try branch, tag, and full name."""
        return next(
            (name for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision) if name in self.refs), None
        )

    def commit(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag, a pull request or a full commit id."""
        ref = self.ref(revision)
        found = self.commits.get(self.refs[ref] if ref else revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def history(self, revision: str) -> Iterator[Commit]:
        commit: Commit | None = self.commit(revision)
        while commit:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None


class Store:
    """All data, behind one lock that the server holds while a handler runs."""

    def __init__(self, endpoint: str, cdn: str) -> None:
        self.endpoint, self.cdn = endpoint, cdn
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Delete all users and contents."""
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.contents: dict[str, bytes] = {}  # by sha256; includes what was uploaded and never committed
        self.parts: dict[str, dict[int, bytes]] = {}
        self.page_size = 1000
        self.part_size = 5 * 2**30  # larger files come up in parts
        self.cas: Path | None = None  # Xet's storage on this machine, in the suite that has it
        self._counter = itertools.count()

    def put(self, data: bytes, *, lfs: bool) -> Blob:
        """Store bytes."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.contents[sha256] = data
        return pointer(sha256, len(data)) if lfs else Blob(git_oid(data), sha256, len(data), lfs=False)

    def create(self, kind: str, repo_id: str, author: str, *, private: bool = False) -> Repo:
        """Create a repository with the first commit that the Hub makes."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, datetime.now(UTC), private)
        self.moved.pop((kind, repo_id), None)
        self.record(
            repo,
            "refs/heads/main",
            None,
            {".gitattributes": self.put(ATTRIBUTES, lfs=False)},
            "initial commit",
            author=author,
        )
        return repo

    def record(
        self,
        repo: Repo,
        ref: str,
        parent: str | None,
        files: Mapping[str, Blob],
        title: str,
        message: str = "",
        *,
        author: str,
    ) -> Commit:
        """Add a commit and move a ref to it."""
        listing = "".join(f"{path}\0{blob.oid}\n" for path, blob in sorted(files.items()))
        name = f"{repo.kind}\0{repo.id}\0{parent}\0{listing}\0{title}\0{message}\0{author}\0{next(self._counter)}"
        commit = Commit(
            hashlib.sha1(name.encode()).hexdigest(),
            parent,
            title,
            message,
            author,
            datetime.now(UTC),
            dict(sorted(files.items())),
        )
        repo.commits[commit.id] = commit
        repo.refs[ref] = commit.id
        return commit


def git_oid(data: bytes) -> str:
    """Return git's id of a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> Blob:
    """Return the blob of a file of which git has only the pointer."""
    return Blob(git_oid(POINTER.format(sha256, size).encode()), sha256, size, lfs=True)


def belongs_to_lfs(path: str, size: int) -> bool:
    """Tell whether the Hub keeps a file in LFS: because of its suffix or its size. An empty file is never in LFS."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > REGULAR_LIMIT)


def check_path(path: str) -> str:
    """Refuse names that would leave the repository."""
    if not path or re.search(r"\\|\0", path) or any(part in {"", ".", "..", ".git"} for part in path.split("/")):
        raise Refusal(400, f"Invalid path in repo: {path!r}")
    return path
