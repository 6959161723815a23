"""One commit on the Hub, on top of exactly the commit that it was made for.

A push reads what the repository has, works out its files from that, and commits them with that commit as the parent. Where somebody else
was quicker it begins again on top of theirs, so that nobody's work is lost; where they changed the very files that it writes, it stops.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from dem_hub.errors import PushConflictError, refuse
from dem_hub.hub import hub_api

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete

CARD = "README.md"
_ATTEMPTS = 5


class PushOptions(TypedDict, total=False):
    """What every `push_to_hub` takes, with the ecosystem's names and meanings.

    `private` (`bool`) counts when the repository is made; `revision` (`str`) is a branch; `create_pr` (`bool`) opens a pull request
    instead of committing; `parent_commit` (`str`, 40 hex digits) refuses to push if the branch is anywhere else.
    """

    commit_message: str
    commit_description: str
    private: bool
    token: str | bool
    revision: str
    create_pr: bool
    parent_commit: str


@dataclass(frozen=True)
class Head:
    """A branch as it is: its commit, and the id of the contents of each file."""

    repo_id: str
    commit: str | None
    files: Mapping[str, str]
    token: str | bool | None = None

    def read(self, path: str) -> str | None:
        """The text of a small file, if it is there."""
        if path not in self.files:
            return None
        file = hub_api().hf_hub_download(self.repo_id, path, revision=self.commit, token=self.token)
        return Path(file).read_text("utf-8")


@dataclass(frozen=True)
class Change:
    """What a commit does: files to write, by their path in the repository, and files to remove.

    `merged` are the paths among them that were made from what the branch has, and so may have been changed by others in between.
    """

    files: Mapping[str, Path | str]
    removed: frozenset[str] = frozenset()
    merged: frozenset[str] = field(default=frozenset({CARD}))


def push(repo_id: str, compose: Callable[[Head], Change], options: PushOptions, message: str) -> "CommitInfo":
    """Commit what `compose` makes of a branch, all at once.

    Args:
        repo_id (`str`): the repository; made where there is none.
        compose (`Callable[[Head], Change]`): from the branch as it is to what shall change; called again if the branch moves.
        options ([`PushOptions`]): the caller's.
        message (`str`): of the commit, where the caller gives none.

    Returns:
        `CommitInfo`: of the Hub's client; `oid` is the commit, `pr_url` the pull request where one was asked for.

    Raises:
        `PushConflictError`: somebody changed the same files in between, or the branch is not at `parent_commit`.
        `huggingface_hub.errors.HfHubHTTPError`: what the Hub answers, untouched.
    """
    from huggingface_hub.errors import HfHubHTTPError

    api, token = hub_api(), options.get("token")
    repo_id = api.create_repo(repo_id, private=options.get("private"), token=token, exist_ok=True).repo_id
    revision, parent = options.get("revision"), options.get("parent_commit")
    if revision is not None and not options.get("create_pr"):
        api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    head = _read_head(repo_id, options)
    for attempt in range(_ATTEMPTS):
        if parent not in (None, head.commit):
            raise PushConflictError(
                f"'{repo_id}' is at {head.commit}, and parent_commit is {parent}. Look at what changed, and push again."
            )
        change = compose(head)
        try:
            return api.create_commit(
                repo_id,
                _operations(change),
                commit_message=options.get("commit_message") or message,
                commit_description=options.get("commit_description"),
                token=token,
                revision=revision,
                create_pr=options.get("create_pr"),
                parent_commit=head.commit,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != 412 or attempt == _ATTEMPTS - 1:
                raise
            head = _moved(head, _read_head(repo_id, options), change)
    raise AssertionError  # the last attempt returns or raises


def _read_head(repo_id: str, options: PushOptions) -> Head:
    token = options.get("token")
    info = hub_api().model_info(repo_id, revision=options.get("revision"), files_metadata=True, token=token)
    return Head(repo_id, info.sha, {file.rfilename: str(file.blob_id) for file in info.siblings or ()}, token)


def _moved(before: Head, now: Head, change: Change) -> Head:
    """The branch as it is now, if that leaves alone what the change is about."""
    ours = (set(change.files) | change.removed) - change.merged
    changed = sorted(path for path in ours if before.files.get(path) != now.files.get(path))
    if changed:
        refuse(
            PushConflictError,
            f"'{now.repo_id}' moved from {before.commit} to {now.commit} while this was pushed, and the same files changed.",
            [f"'{path}'" for path in changed],
            "Nothing was pushed. Fetch what is there now, and push again; or push to another branch, or with create_pr=True.",
        )
    return now


def _operations(change: Change) -> "list[CommitOperationAdd | CommitOperationDelete]":
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    written: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, content if isinstance(content, Path) else io.BytesIO(content.encode()))
        for path, content in sorted(change.files.items())
    ]
    return written + [CommitOperationDelete(path) for path in sorted(change.removed)]
