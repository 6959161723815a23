"""Pushing to the Hub: one commit, on top of exactly the commit that it was made for.

A push reads the head of the branch, works out its files from that, and commits them with the head as the parent. If
another push was faster, it begins again on the new head, so that no work is lost. If the other push changed the
very files that this one writes, it stops.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from dem_hub.errors import HubError, PushConflictError, refuse
from dem_hub.files.names import CARD
from dem_hub.hub.bounded import bounded
from dem_hub.hub.client import hub_api
from dem_hub.hub.failures import hub_errors
from dem_hub.hub.hashes import is_version, verify_downloads
from dem_hub.hub.remote import in_time

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete

# The content of a file: a file on disk, a text, or a file that was uploaded before the commit.
Content: TypeAlias = "Path | str | CommitOperationAdd"

# What the Hub calls a kind of repository.
RepoType: TypeAlias = Literal["model", "space"]

# Times that a push begins again on a new head before it gives up. Chosen by hand, not measured.
_ATTEMPTS = 5

# HTTP status 412, Precondition Failed: with it the Hub refuses a commit whose parent is no longer the head.
_HEAD_MOVED = 412


class PushOptions(TypedDict, total=False):
    """The options of every `push_to_hub`, with the names and meanings of `huggingface_hub`.

    `private` (`bool`) is used when the repository is created, and ignored if it exists. `revision` (`str`) is a
    branch. `create_pr` (`bool`) opens a pull request instead of committing. With `parent_commit` (`str`, 40 hex
    digits) the push is refused if the branch is at another commit.
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
    """The head of a branch: its commit and its files.

    `commit` is `None` in an empty repository. `files` has the hash by which the Hub knows each file, by path.
    """

    repo_id: str
    commit: str | None
    files: Mapping[str, str]
    token: str | bool | None = field(default=None, repr=False)
    repo_type: RepoType = "model"

    def read(self, path: str) -> str | None:
        """Return the text of a small file; `None` if the branch has no such file."""
        if path not in self.files:
            return None
        with _pushing(self.repo_id):
            call = partial(hub_api().hf_hub_download, self.repo_id, path, repo_type=self.repo_type)
            call = partial(call, revision=self.commit, token=self.token)
            file = Path(bounded(lambda meter: call(tqdm_class=meter), self.repo_id, None))
        verify_downloads(self.repo_id, [file])
        return file.read_text("utf-8")


@dataclass(frozen=True)
class Change:
    """The content of a commit: files to write, by their paths in the repository, and files to remove.

    `merged` are paths whose new content is made from the old one, such as the card. If another push changes one of
    them in between, it is made again from the new content, and this is no conflict.
    """

    files: Mapping[str, Content]
    removed: frozenset[str] = frozenset()
    merged: frozenset[str] = field(default=frozenset({CARD}))


def push(
    repo_id: str,
    compose: Callable[[Head], Change],
    options: PushOptions,
    message: str,
    *,
    repo_type: RepoType = "model",
) -> "CommitInfo":
    """Commit the change that `compose` makes of the head of a branch, all files at once.

    Args:
        repo_id (`str`): The repository. It is created if it does not exist.
        compose (`Callable[[Head], Change]`): Returns the change for a head. It is called again if the branch moves.
        options ([`PushOptions`]): The options of the caller.
        message (`str`): The message of the commit, if the caller gives none.
        repo_type (`str`, *optional*, defaults to `"model"`): The kind of the repository. A new Space is one of Gradio,
            on a free machine.

    Returns:
        `CommitInfo`: The answer of the Hub's client; `oid` is the commit, and `pr_url` the pull request if one was
            asked for.

    Raises:
        [`~dem_hub.errors.PushConflictError`]: If another push changed the same files in between, or the branch is
            not at `parent_commit`.
        [`~dem_hub.errors.HubError`]: If the connection or the Hub failed and the commit is not there.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refused.
    """
    from huggingface_hub.errors import HfHubHTTPError

    parent = options.get("parent_commit")
    repo_id = _make_repository(repo_id, options, repo_type)
    head = _read_head(repo_id, options, repo_type)
    for _ in range(_ATTEMPTS):
        if parent not in (None, head.commit):
            raise PushConflictError(
                f"'{repo_id}' is at {head.commit}, and parent_commit is {parent}. Look at what changed, and push again."
            )
        change = compose(head)
        try:
            return _commit(head, change, options, message)
        except HubError as error:
            return _commit_if_arrived(head, change, options, message, error)
        except HfHubHTTPError as error:
            if error.response.status_code != _HEAD_MOVED:
                raise
            refusal = error
            head = _check_moved(head, _read_head(repo_id, options, repo_type), change)
    raise PushConflictError(
        f"'{repo_id}' moved during each of {_ATTEMPTS} attempts to push; it is at {head.commit} now. "
        "Nothing was pushed. Push again when the other pushes are done, or with create_pr=True."
    ) from refusal


def upload(head: Head, path: str, file: Path, options: PushOptions) -> "CommitOperationAdd":
    """Upload a file before the commit that it belongs to.

    The file is not visible in the repository until that commit is made. After the upload the local file may be
    deleted.

    Args:
        head ([`Head`]): The head of the branch.
        path (`str`): The path of the file in the repository.
        file (`Path`): The local file. If the Hub has these bytes already, nothing is sent.
        options ([`PushOptions`]): The options of the caller.

    Returns:
        `CommitOperationAdd`: The file's content, for a [`Change`].

    Raises:
        [`~dem_hub.errors.HubError`]: If the connection or the Hub failed.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(path, file)
    with _pushing(head.repo_id):
        hub_api().preupload_lfs_files(
            head.repo_id,
            [operation],
            repo_type=head.repo_type,
            token=head.token,
            revision=options.get("revision"),
            create_pr=options.get("create_pr"),
        )
    # `preupload_lfs_files` empties the operation after an upload. A regular file (not in LFS) was not uploaded, and
    # comes with the commit: keep its bytes, since `file` may be deleted before that.
    if operation.path_or_fileobj != b"":
        operation.path_or_fileobj = file.read_bytes()
    return operation


def _pushing(repo_id: str) -> AbstractContextManager[None]:
    """Turn failures of a block that pushes into a `HubError` that names the repository; see [`hub_errors`]."""
    return hub_errors(
        action=f"Files were pushed to '{repo_id}' on the Hub.",
        remedy="None of them is in the repository. Push again.",
    )


def _make_repository(repo_id: str, options: PushOptions, repo_type: RepoType) -> str:
    """Create the repository and the branch if they do not exist, and return the full id of the repository."""
    token = options.get("token")
    revision = options.get("revision")
    create = partial(hub_api().create_repo, repo_type=repo_type, private=options.get("private"), token=token)
    if repo_type == "space":
        create = partial(create, space_sdk="gradio")
    with _pushing(repo_id):
        repo_id = create(repo_id, exist_ok=True).repo_id
        if revision is not None and not options.get("create_pr"):
            hub_api().create_branch(repo_id, branch=revision, repo_type=repo_type, token=token, exist_ok=True)
    return repo_id


def _commit(head: Head, change: Change, options: PushOptions, message: str) -> "CommitInfo":
    """Commit a change on top of a head."""
    with _pushing(head.repo_id):
        return hub_api().create_commit(
            head.repo_id,
            _operations(change),
            repo_type=head.repo_type,
            commit_message=options.get("commit_message") or message,
            commit_description=options.get("commit_description"),
            token=head.token,
            revision=options.get("revision"),
            create_pr=options.get("create_pr"),
            parent_commit=head.commit,
        )


def _commit_if_arrived(head: Head, change: Change, options: PushOptions, message: str, error: HubError) -> "CommitInfo":
    """Return the commit whose answer was lost, if the branch has it; else raise `error`.

    The Hub's client sends a commit only once, because the first request may have arrived.
    """
    from huggingface_hub import CommitInfo

    if options.get("create_pr"):
        error.add_note(
            "The pull request may have been opened all the same: look at the repository before you push again."
        )
        raise error
    try:
        now = _read_head(head.repo_id, options, head.repo_type)
    except (HubError, OSError):
        error.add_note(
            "The commit may have arrived all the same; this could not be looked up. Pushing again does no harm."
        )
        raise error from None
    if now.commit == head.commit or not all(_has(now, path, content) for path, content in change.files.items()):
        raise error
    return CommitInfo(
        commit_url=f"{hub_api().endpoint}/{_page(head)}/commit/{now.commit}",
        commit_message=options.get("commit_message") or message,
        commit_description=options.get("commit_description") or "",
        oid=str(now.commit),
    )


def _page(head: Head) -> str:
    """Return the path of the repository's page below the Hub's address."""
    return f"spaces/{head.repo_id}" if head.repo_type == "space" else head.repo_id


def _has(head: Head, path: str, content: Content) -> bool:
    """Check whether a branch has this content at a path."""
    if not isinstance(content, Path | str):
        return head.files.get(path) == content.upload_info.sha256.hex()
    return path in head.files and is_version(content, head.files[path])


def _read_head(repo_id: str, options: PushOptions, repo_type: RepoType) -> Head:
    token = options.get("token")
    with _pushing(repo_id):
        find = partial(hub_api().repo_info, repo_id, repo_type=repo_type, token=token)
        find = partial(find, revision=options.get("revision"))
        info: Any = in_time(lambda: find(files_metadata=True))
    files = {}
    for file in info.siblings or ():
        files[file.rfilename] = str(file.lfs.sha256 if file.lfs else file.blob_id)
    return Head(repo_id, info.sha, files, token, repo_type)


def _check_moved(before: Head, now: Head, change: Change) -> Head:
    """Return the new head, unless it changes files that `change` is about in another way than `change` does."""
    ours = (set(change.files) | change.removed) - change.merged
    changed = [path for path in sorted(ours) if before.files.get(path) != now.files.get(path)]
    conflicts = [path for path in changed if not _is_done(now, path, change)]
    if conflicts:
        refuse(
            PushConflictError,
            f"'{now.repo_id}' moved from {before.commit} to {now.commit} while this was pushed, and the same files "
            "changed.",
            [f"'{path}'" for path in conflicts],
            "Nothing was pushed. Fetch what is there now and push again, or push to another branch, or with "
            "create_pr=True.",
        )
    return now


def _is_done(now: Head, path: str, change: Change) -> bool:
    """Check whether the head has the state of a path that `change` would give it."""
    if path in change.files:
        return _has(now, path, change.files[path])
    return path not in now.files


def _operations(change: Change) -> "list[CommitOperationAdd | CommitOperationDelete]":
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for path, content in sorted(change.files.items()):
        if isinstance(content, CommitOperationAdd):
            operations.append(content)
        elif isinstance(content, Path):
            operations.append(CommitOperationAdd(path, content))
        else:
            operations.append(CommitOperationAdd(path, io.BytesIO(content.encode())))
    operations += [CommitOperationDelete(path) for path in sorted(change.removed)]
    return operations
