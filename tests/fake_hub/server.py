"""`Hub`: the two origins, their accounts, and the methods that tests use.

The first origin is the Hub; the second, on another port, stands for the storage that it redirects large files to. It
must never receive a credential.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fake_hub import discussions, reading, repositories, writing  # noqa: F401  (they enter themselves into the routing table)
from tests.fake_hub.faults import Fault
from tests.fake_hub.listener import Journal, Origin
from tests.fake_hub.store import Store, User
from tests.fake_hub.wire import Seen


class Hub:
    """A Hub on this machine. It has its ports from the start, and answers after `start`.

    Args:
        port (`int`): of the Hub; 0 for any that is free.
        rate (`float`, *optional*): bytes a second of each answer; without it, as fast as it goes.

    Example:

        hub = Hub()
        hub.start()
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.user.token}  # before huggingface_hub is imported
    """

    def __init__(self, port: int = 0, rate: float | None = None) -> None:
        self.journal = Journal()
        self.journal.rate = rate
        self._hub, self._cdn = Origin("hub", port, self.journal), Origin("cdn", 0, self.journal)
        self.store = Store(self._hub.url, self._cdn.url)
        self.reset()

    @property
    def endpoint(self) -> str:
        return self._hub.url

    @property
    def cdn(self) -> str:
        return self._cdn.url

    @property
    def addresses(self) -> set[tuple[str, int]]:
        """Addresses to which a test may connect."""
        return {("127.0.0.1", origin.server_port) for origin in (self._hub, self._cdn)}

    @property
    def started(self) -> bool:
        return self._hub.thread is not None

    def start(self) -> None:
        for origin in (self._hub, self._cdn):
            origin.serve(self.store)

    def stop(self) -> None:
        self.journal.released.set()
        for origin in (self._hub, self._cdn):
            origin.stop()

    def reset(self) -> None:
        """Delete all contents, and create the user `ann`, who may write."""
        self.store.clear()
        self.user = self.add_user("ann")
        for kept in (self.journal.seen, self.journal.faults, self.journal.failures):
            kept.clear()

    def add_user(self, name: str, *, token: str | None = None, role: str = "write", orgs: tuple[str, ...] = ()) -> User:
        """Create an account. `role` is the token's: "read" or "write". Members of an organisation may write to it."""
        user = self.store.users[name] = User(name, token or f"hf_secretOf{name.capitalize()}", role, orgs)
        return user

    def grant(self, repo_id: str, name: str) -> None:
        """Give a user access to a gated repository."""
        self.store.repos["models", repo_id].readers.add(name)

    def use_xet(self, folder: Path) -> None:
        """Keep large files in the client's own Xet store in a folder, until the reset.

        Use it with one process at a time, started with `environment`: the store takes a lock, and the client keeps
        its address.
        """
        self.store.cas = folder

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Return the files of a repository as the server has them, without the Hub's own `.gitattributes`.
        (Not for Xet, whose bytes are not on the server.)
        """
        commit = self.store.repos[kind, repo_id].commit(revision)
        return {
            path: self.store.contents[blob.sha256] for path, blob in commit.files.items() if path != ".gitattributes"
        }

    @contextmanager
    def fault(self, method: str, pattern: str, **what: Any) -> Iterator[Fault]:
        """Cause a [`Fault`] while the block runs. `hits` of the yielded fault counts the requests that it met."""
        fault = Fault(method, pattern, **what)
        with self.journal.lock:
            self.journal.faults.append(fault)
        try:
            yield fault
        finally:
            with self.journal.lock:
                self.journal.faults.remove(fault)

    def requests(self, method: str | None = None, pattern: str = "", *, origin: str | None = None) -> list[Seen]:
        """Return the requests so far, in order, of one kind or of all."""
        with self.journal.lock:
            seen = list(self.journal.seen)
        return [
            one
            for one in seen
            if method in {None, one.method} and origin in {None, one.origin} and re.search(pattern, one.path)
        ]

    def forget_requests(self) -> None:
        """Empty the record of requests."""
        with self.journal.lock:
            self.journal.seen.clear()

    def environment(self, home: Path, *, user: User | None = None, **more: str) -> dict[str, str]:
        """Return the environment of a process that uses this Hub, with an empty home (cache, token) of its own."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))
        }
        return {
            **inherited,
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": (user or self.user).token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "0" if self.store.cas else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1",
            **more,
        }
