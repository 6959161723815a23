"""One commit on the Hub, on top of exactly the commit that it was made for.

A push reads what the repository has, works out its files from that, and commits them with that commit as the parent. Where somebody else
was quicker it begins again on top of theirs, so that nobody's work is lost; where they changed the very files that it writes, it stops.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from dem_hub.errors import HubError, PushConflictError, refuse
from dem_hub.files.names import CARD
from dem_hub.hub.client import hub_api
from dem_hub.hub.failures import hub_errors
from dem_hub.hub.hashes import is_version, verify_downloads

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete

Content: TypeAlias = "Path | str | CommitOperationAdd"  # a file, a text, or what was uploaded before the commit
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
    token: str | bool | None = field(default=None, repr=False)

    def read(self, path: str) -> str | None:
        """The text of a small file, if it is there."""
        if path not in self.files:
            return None
        with _pushing(self.repo_id):
            file = Path(hub_api().hf_hub_download(self.repo_id, path, revision=self.commit, token=self.token))
        verify_downloads(self.repo_id, [file])
        return file.read_text("utf-8")


@dataclass(frozen=True)
class Change:
    """What a commit does: files to write, by their path in the repository, and files to remove.

    `merged` are the paths among them that were made from what the branch has, and so may have been changed by others in between.
    """

    files: Mapping[str, Content]
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
        `HubError`: the line or the Hub failed, and the commit is not there.
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refused.
    """
    from huggingface_hub.errors import HfHubHTTPError

    api, token = hub_api(), options.get("token")
    parent, revision = options.get("parent_commit"), options.get("revision")
    with _pushing(repo_id):
        repo_id = api.create_repo(repo_id, private=options.get("private"), token=token, exist_ok=True).repo_id
        if revision is not None and not options.get("create_pr"):
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    head = _read_head(repo_id, options)
    for _ in range(_ATTEMPTS):
        if parent not in (None, head.commit):
            raise PushConflictError(
                f"'{repo_id}' is at {head.commit}, and parent_commit is {parent}. Look at what changed, and push again."
            )
        change = compose(head)
        try:
            return _commit(head, change, options, message)
        except HubError as error:
            return _arrived(head, change, options, message, error)
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
            refusal = error
            head = _moved(head, _read_head(repo_id, options), change)
    raise PushConflictError(
        f"'{repo_id}' moved on each of {_ATTEMPTS} times that this was pushed; it is at {head.commit} now. Nothing was pushed. "
        "Push again when others have done, or with create_pr=True."
    ) from refusal


def upload(head: Head, path: str, file: Path, options: PushOptions) -> "CommitOperationAdd":
    """Upload a file for a commit to come; until that is made nobody sees it, and from now on the file may go.

    Args:
        head ([`Head`]): where it will be.
        path (`str`): what it will be called there.
        file (`Path`): the file. Where the Hub has these bytes already, nothing is sent.
        options ([`PushOptions`]): the caller's.

    Returns:
        `CommitOperationAdd`: for [`Change`].

    Raises:
        `HubError`: the line or the Hub failed. `huggingface_hub.errors.HfHubHTTPError`: the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(path, file)
    with _pushing(head.repo_id):
        hub_api().preupload_lfs_files(
            head.repo_id,
            [operation],
            token=head.token,
            revision=options.get("revision"),
            create_pr=options.get("create_pr"),
        )
    if operation.path_or_fileobj != b"":  # which the repository keeps as a small file, and takes with the commit
        operation.path_or_fileobj = file.read_bytes()
    return operation


def _pushing(repo_id: str) -> AbstractContextManager[None]:
    return hub_errors(
        action=f"Files were pushed to '{repo_id}' on the Hub.",
        remedy="None of them is in the repository. Push again.",
    )


def _commit(head: Head, change: Change, options: PushOptions, message: str) -> "CommitInfo":
    """Commit a change on top of a head."""
    with _pushing(head.repo_id):
        return hub_api().create_commit(
            head.repo_id,
            _operations(change),
            commit_message=options.get("commit_message") or message,
            commit_description=options.get("commit_description"),
            token=head.token,
            revision=options.get("revision"),
            create_pr=options.get("create_pr"),
            parent_commit=head.commit,
        )


def _arrived(head: Head, change: Change, options: PushOptions, message: str, error: HubError) -> "CommitInfo":
    """A commit whose answer was lost, if the branch has it; the client does not try twice, since the first may have got through."""
    from huggingface_hub import CommitInfo

    if options.get("create_pr"):
        error.add_note(
            "Whether the pull request was opened all the same is not known: look at the repository before you push again."
        )
        raise error
    try:
        now = _read_head(head.repo_id, options)
    except (HubError, OSError):
        error.add_note("Whether the commit arrived all the same could not be looked up. To push again does no harm.")
        raise error from None
    if now.commit == head.commit or not all(_has(now, path, content) for path, content in change.files.items()):
        raise error
    url = f"{hub_api().endpoint}/{head.repo_id}/commit/{now.commit}"
    return CommitInfo(
        url, options.get("commit_message") or message, options.get("commit_description") or "", str(now.commit)
    )


def _has(head: Head, path: str, content: Content) -> bool:
    if not isinstance(content, Path | str):
        return head.files.get(path) == content.upload_info.sha256.hex()
    return path in head.files and is_version(content, head.files[path])


def _read_head(repo_id: str, options: PushOptions) -> Head:
    token = options.get("token")
    with _pushing(repo_id):
        info = hub_api().model_info(repo_id, revision=options.get("revision"), files_metadata=True, token=token)
    files = {file.rfilename: str(file.lfs.sha256 if file.lfs else file.blob_id) for file in info.siblings or ()}
    return Head(repo_id, info.sha, files, token)


def _moved(before: Head, now: Head, change: Change) -> Head:
    """The branch as it is now, if that leaves alone what the change is about."""
    ours = (set(change.files) | change.removed) - change.merged
    changed = sorted(
        path for path in ours if before.files.get(path) != now.files.get(path) and not _same(now, path, change)
    )
    if changed:
        refuse(
            PushConflictError,
            f"'{now.repo_id}' moved from {before.commit} to {now.commit} while this was pushed, and the same files changed.",
            [f"'{path}'" for path in changed],
            "Nothing was pushed. Fetch what is there now, and push again; or push to another branch, or with create_pr=True.",
        )
    return now


def _same(now: Head, path: str, change: Change) -> bool:
    """Whether others did just what the change does."""
    return _has(now, path, change.files[path]) if path in change.files else path not in now.files


def _operations(change: Change) -> "list[CommitOperationAdd | CommitOperationDelete]":
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    written: list[CommitOperationAdd | CommitOperationDelete] = [
        content if isinstance(content, CommitOperationAdd) else CommitOperationAdd(path, _bytes(content))
        for path, content in sorted(change.files.items())
    ]
    return written + [CommitOperationDelete(path) for path in sorted(change.removed)]


def _bytes(content: Path | str) -> Path | io.BytesIO:
    return content if isinstance(content, Path) else io.BytesIO(content.encode())
