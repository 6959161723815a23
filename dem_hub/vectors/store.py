"""`VectorStore`: many vectors of one base in one folder or repository.

Each member is an ordinary vector folder, a `subfolder` to everything that takes one, and stays usable alone. What they share is kept
once: which base it is, and its tokenizer. The index is written last when a member comes and first when one goes, so that it never names
what is not there.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import BaseMismatchError, ConfigError, NotFoundError
from dem_hub.files.atomic import write_text
from dem_hub.files.folders import STORE, check_target
from dem_hub.files.names import CARD, MODEL_FILES, SIDE_FILES, STORE_CONFIG
from dem_hub.files.strict_json import (
    FORMAT_VERSION,
    as_mapping,
    check_inside,
    check_version,
    dump_json,
    parse_json,
    read_record,
)
from dem_hub.hub.cards import render
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.download import Resolved, copy_side_files, resolve
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.listing import licenses
from dem_hub.hub.references import BaseRecord, VectorSource
from dem_hub.vectors.cards import store_card
from dem_hub.vectors.comparison import Comparison, compare
from dem_hub.vectors.publishing import public_base, public_vector, stale
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


@dataclass(frozen=True)
class Member:
    """What the index says of a vector: the hash of its contents, its codec, and the bytes of its tensors."""

    sha256: str
    codec: str
    nbytes: int


class VectorStore(Mapping[str, DistributionVector]):
    """The vectors of one base, by name; opened one by one when they are asked for, checked, and never read into memory.

    Example:

    ```python
    >>> import tempfile
    >>> from dem_hub import DistributionVector, VectorStore
    >>> store = VectorStore.create(tempfile.mkdtemp() + "/vectors", base_folder)
    >>> store.add("maths", DistributionVector.from_pretrained(vector_folder))
    >>> store
    VectorStore('...', base='...', vectors=[maths])

    ```
    """

    def __init__(self, found: Resolved, options: HubOptions) -> None:
        """Read the index; made by [`VectorStore.create`] or [`VectorStore.from_pretrained`], never directly."""
        self.source, self.folder, self.commit = found.source, found.folder, found.commit
        self._options = options
        self.base, self._members = _read_index(self.folder / STORE_CONFIG)

    @classmethod
    def create(cls, folder: str | os.PathLike[str], base: str | os.PathLike[str] | VectorSource) -> "VectorStore":
        """Begin a store in a folder, with the base's tokenizer and chat template.

        Args:
            folder (`str` or `os.PathLike`): made where there is none.
            base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base.

        Raises:
            `ConfigError`: there is a store already, or something else.
        """
        target = Path(folder)
        if (target / STORE_CONFIG).is_file():
            raise ConfigError(
                f"'{target}' is a store of vectors already. Open it: VectorStore.from_pretrained('{target}')."
            )
        check_target(target, STORE)
        opened = Base(resolve(VectorSource.parse(base), MODEL_FILES))
        target.mkdir(parents=True, exist_ok=True)
        copy_side_files(opened.folder, target)
        _write_index(target, opened.record, {})
        return cls.from_pretrained(target)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] | VectorSource,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "VectorStore":
        """Open a store in a folder or on the Hub; of a repository only the index comes down, and each member when it is asked for.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): where it is.
            revision, subfolder, token, cache_dir, local_files_only, force_download: as in transformers.

        Raises:
            `NotFoundError`: there is no store.
            `ConfigError`: an index that this version must not read.
        """
        source = VectorSource.parse(name_or_path, revision=revision, subfolder=subfolder)
        options = HubOptions(token, cache_dir, local_files_only, force_download)
        return cls(resolve(source, (STORE_CONFIG,), options), options)

    def __getitem__(self, name: str) -> DistributionVector:
        """Open a member; its files are checked against the index.

        Raises:
            `KeyError`: no vector of that name.
            `ConfigError`: it is not the one that the index names.
        """
        member = self._members[name]
        vector = DistributionVector.from_pretrained(self.member_source(name), **vars(self._options))
        if vector.sha256 != member.sha256:
            raise ConfigError(
                f"'{name}' in '{self.source}' has sha256 {short_hash(vector.sha256)}, and its index says {short_hash(member.sha256)}. Add it again."
            )
        return vector

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._members))

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"VectorStore('{self.source}', base='{self.base}', vectors=[{', '.join(self)}])"

    @property
    def members(self) -> Mapping[str, Member]:
        """What the index says of each vector, without opening any."""
        return {name: self._members[name] for name in self}

    def member_source(self, name: str) -> VectorSource:
        """Where a member is, as `vectors=` of [`DEMModel.from_pretrained`] takes it."""
        place = "/".join(part for part in (self.source.subfolder, name) if part)
        return VectorSource(self.source.repo_id, self.commit, place)

    def add(self, name: str, vector: DistributionVector) -> None:
        """Copy a vector, or a PEFT adapter, into the store's folder; one of that name is replaced.

        Args:
            name (`str`): the name of its subfolder.
            vector ([`DistributionVector`]): of the store's base.

        Raises:
            `BaseMismatchError`: a vector of another base.
            `ConfigError`: a name that is no folder, or a store that is not a folder of this machine.
        """
        folder = self._writable(name)
        if vector.base.fingerprint not in (None, self.base.fingerprint):
            raise BaseMismatchError(
                f"The vector '{vector.name}' was made from '{vector.base}' (fingerprint {short_hash(vector.base.fingerprint)}), and the store "
                f"'{self.source}' is for '{self.base}' (fingerprint {short_hash(self.base.fingerprint)}). Make a store for its base."
            )
        vector.put(folder)
        self._update({**self._reread(), name: Member(vector.sha256, vector.codec, vector.nbytes)})

    def remove(self, name: str) -> None:
        """Take a vector out of the store's folder.

        Raises:
            `KeyError`: no vector of that name. `ConfigError`: the store is not a folder of this machine.
        """
        folder = self._writable(name)
        members = self._reread()
        del members[name]
        self._update(members)
        shutil.rmtree(folder)

    def push_to_hub(
        self, repo_id: str, *, base_model: str | None = None, **options: Unpack[PushOptions]
    ) -> "CommitInfo":
        """Push all vectors of the store's folder, the index and a card as one commit; vectors that only the repository has stay.

        Args:
            repo_id (`str`): the repository; made where there is none.
            base_model (`str`, *optional*): Hub id of the base, where the store names a folder of this machine.
            options ([`PushOptions`]): as in [`DistributionVector.push_to_hub`].

        Raises:
            `BaseMismatchError`: the repository has vectors of another base.
            `ConfigError`, `PushConflictError`: see [`DistributionVector.push_to_hub`].
        """
        token = options.get("token")
        base = public_base(self.base, base_model, f"store '{self.source}'", token=token)
        vectors = {name: public_vector(self.folder / name, base.repo_id, token=token) for name in self}
        members = {name: Member(vector.sha256, vector.codec, vector.nbytes) for name, vector in vectors.items()}
        own = {f"{name}/{file}": content for name, vector in vectors.items() for file, content in vector.files.items()}
        own |= {name: self.folder / name for name in SIDE_FILES if (self.folder / name).is_file()}
        stated = licenses([str(base.repo_id)], token=token)

        def compose(head: Head) -> Change:
            everything = {**_members_of(head, base), **members}
            listed = {name: (member.codec, member.nbytes) for name, member in everything.items()}
            card = store_card(head.repo_id, base.repo_id, listed, stated)
            files = {**own, STORE_CONFIG: _index_text(base, everything), CARD: render(card, head.read(CARD))}
            removed = frozenset().union(*(stale(head, f"{name}/", files) for name in members))
            return Change(files, removed, frozenset({CARD, STORE_CONFIG}))

        return push(repo_id, compose, options, f"Push the vectors {', '.join(self)}")

    def compare(self, base: str | os.PathLike[str] | VectorSource | None = None) -> Comparison:
        """Norms, cosines and overlaps of all members, tensor by tensor from their compact parts; see [`compare`].

        Args:
            base (`str`, `os.PathLike` or [`VectorSource`], *optional*): where the base is; where the store says, by default.
        """
        source = VectorSource.parse(base) if base is not None else self.base.source
        return compare(
            [self[name] for name in self], Base(resolve(source, MODEL_FILES, self._options)), names=list(self)
        )

    def _writable(self, name: str) -> Path:
        if self.commit is not None:
            raise ConfigError(
                f"'{self.source}' is on the Hub and cannot be changed here. Change a folder, and push that."
            )
        if not name or name.startswith(".") or any(sign in name for sign in "/\\:") or (self.folder / name).is_file():
            raise ConfigError(
                f"A vector in a store cannot be called '{name}': it is the name of a folder in '{self.folder}'."
            )
        return self.folder / name

    def _reread(self) -> dict[str, Member]:
        """The index as it is now: somebody else may have added to it."""
        return _read_index(self.folder / STORE_CONFIG)[1]

    def _update(self, members: Mapping[str, Member]) -> None:
        _write_index(self.folder, self.base, members)
        self._members = dict(members)


def _members_of(head: Head, base: BaseRecord) -> dict[str, Member]:
    """What a repository's index has already, once it is known to be of the same base."""
    text = head.read(STORE_CONFIG)
    if text is None:
        return {}
    theirs, members = _parse_index(text, f"{STORE_CONFIG} of '{head.repo_id}'")
    if theirs.fingerprint != base.fingerprint:
        raise BaseMismatchError(
            f"'{head.repo_id}' has vectors of '{theirs}' (fingerprint {short_hash(theirs.fingerprint)}), and these are of '{base}' "
            f"(fingerprint {short_hash(base.fingerprint)}). Push them to another repository."
        )
    return members


def _read_index(path: Path) -> tuple[BaseRecord, dict[str, Member]]:
    if not path.is_file():
        raise NotFoundError(
            f"'{path.parent}' is not a store of vectors: it has no {STORE_CONFIG}. VectorStore.create(...) makes one."
        )
    return _parse_index(path.read_bytes(), str(path))


def _parse_index(text: str | bytes, where: str) -> tuple[BaseRecord, dict[str, Member]]:
    data = parse_json(text, where)
    check_version(data, where)
    unknown = sorted(set(data) - {"format_version", "base", "vectors"})
    if unknown:
        raise ConfigError(
            f"{where} has unknown keys {', '.join(map(repr, unknown))}; format version {FORMAT_VERSION} has base and vectors."
        )
    members = {}
    for name, entry in as_mapping(data.get("vectors"), f"{where}: vectors").items():
        check_inside(name, f"vector named in {where}")
        members[name] = read_record(Member, entry, f"{where}: vector '{name}'")
    return read_record(BaseRecord, data.get("base"), f"{where}: base"), members


def _write_index(folder: Path, base: BaseRecord, members: Mapping[str, Member]) -> None:
    write_text(folder / STORE_CONFIG, _index_text(base, members))


def _index_text(base: BaseRecord, members: Mapping[str, Member]) -> str:
    vectors = {name: asdict(member) for name, member in members.items()}
    data = {"format_version": FORMAT_VERSION, "base": asdict(base), "vectors": vectors}
    return dump_json(data)
