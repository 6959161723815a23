"""Push a store in one commit: all of its vectors as they are public, the index, and a card.

A repository may have vectors that the folder has not. They stay there and in the index, if they have the same base.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.checkpoints.fingerprint import agree
from dem_hub.errors import BaseMismatchError, CheckpointError, DemHubError, refuse
from dem_hub.files.links import check_links
from dem_hub.files.names import CARD, STORE_CONFIG
from dem_hub.files.side_files import side_files_of
from dem_hub.hub.cards import render
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.listing import licenses
from dem_hub.hub.preview import announce
from dem_hub.hub.references import BaseRecord
from dem_hub.vectors.cards import store_card
from dem_hub.vectors.folder import stale_files
from dem_hub.vectors.publishing import public_base, public_vector, wanted_statistics
from dem_hub.vectors.store_index import Member, StoreIndex

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from dem_hub.vectors.store import VectorStore


def push_store(
    store: "VectorStore", repo_id: str, options: PushOptions, *, base_model: str | None, include_statistics: bool
) -> "CommitInfo":
    """Push all vectors of a store's folder; see [`VectorStore.push_to_hub`]."""
    token = options.get("token")
    base = public_base(store.base, base_model, f"store '{store.source}'", token=token)
    source_licenses = licenses([str(base.repo_id)], token=token)
    _verify(store)
    check_links(store.folder, (STORE_CONFIG,))
    members: dict[str, Member] = {}
    pushed: dict[str, Path | str] = {}
    for name in store:
        vector = public_vector(store.folder / name, base.repo_id, token=token)
        members[name] = Member(vector.sha256, vector.codec, vector.nbytes)
        pushed |= {f"{name}/{file}": content for file, content in vector.files.items()}
    if include_statistics:
        for folder, files in wanted_statistics(store.folder / name for name in members).items():
            pushed |= {f"{folder.name}/{file}": content for file, content in files.items()}
    pushed |= side_files_of(store.folder)
    announce(repo_id, {**pushed, STORE_CONFIG: StoreIndex(base, members).to_json()})

    def compose(head: Head) -> Change:
        index = StoreIndex(base, {**_members_of(head, base), **members})
        codecs_and_sizes = {name: (member.codec, member.nbytes) for name, member in index.members.items()}
        card = store_card(head.repo_id, base.repo_id, codecs_and_sizes, source_licenses)
        files = {**pushed, STORE_CONFIG: index.to_json(), CARD: render(card, head.read(CARD))}
        removed: set[str] = set()
        for name in members:
            removed |= stale_files(head, f"{name}/", files)
        return Change(files, frozenset(removed), frozenset({CARD, STORE_CONFIG}))

    return push(repo_id, compose, options, f"Push the vectors {', '.join(store)}")


def _verify(store: "VectorStore") -> None:
    """Refuse members whose files are not those that their configs and the index name, all in one error."""
    faults = []
    for name in store:
        try:
            store[name]
        except DemHubError as error:
            faults.append(f"'{name}': {error}")
    if faults:
        refuse(
            CheckpointError,
            f"Vectors of '{store.source}' are not what its index says.",
            faults,
            "Nothing was pushed.",
        )


def _members_of(head: Head, base: BaseRecord) -> Mapping[str, Member]:
    """Return the members that a repository's index has already, after a check that they have the same base."""
    text = head.read(STORE_CONFIG)
    if text is None:
        return {}
    index = StoreIndex.from_json(text, f"{STORE_CONFIG} of '{head.repo_id}'")
    if not agree(index.base.fingerprint, base.fingerprint):
        raise BaseMismatchError(
            f"'{head.repo_id}' has vectors of '{index.base}' (fingerprint {short_hash(index.base.fingerprint)}), "
            f"and these are of '{base}' "
            f"(fingerprint {short_hash(base.fingerprint)}). Push them to another repository."
        )
    return index.members
