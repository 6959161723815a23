"""`VectorStore`: many vectors of one base in one folder or repository.

Each member is an ordinary vector folder. Everything that takes a vector takes it as a `subfolder`, with or without
the store. What the members share is kept once: the record of the base, and its tokenizer. Any number of processes may
change a store and read it: one changes it at a time, and what a killed one began is finished by the next that opens
the store.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from dem_hub.checkpoints.fingerprint import agree
from dem_hub.checkpoints.opening import open_base
from dem_hub.errors import BaseMismatchError, ConfigError, DemHubError
from dem_hub.files.folders import STORE, check_target
from dem_hub.files.locks import locked
from dem_hub.files.names import MODEL_FILES, STORE_CHANGE, STORE_CONFIG
from dem_hub.files.sizes import format_size
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import PushOptions
from dem_hub.hub.download import Resolved, copy_side_files, resolve
from dem_hub.hub.hashes import short_hash
from dem_hub.hub.references import BaseRecord, HubId, VectorSource
from dem_hub.hub.report import Report, Table
from dem_hub.vectors.comparison import Comparison, compare
from dem_hub.vectors.copies import copy_vector
from dem_hub.vectors.statistics_beside import statistics_files
from dem_hub.vectors.store_change import StoreChange, finish_change, store_at_rest
from dem_hub.vectors.store_index import Member, StoreIndex
from dem_hub.vectors.store_publishing import push_store
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class VectorStore(Mapping[str, DistributionVector]):
    """A collection of vectors of one base, by name, in one folder or one repository of the Hub.

    Create a store with [`VectorStore.create`], or open one with [`VectorStore.from_pretrained`]. A store is a
    mapping from names to [`DistributionVector`]s. A vector is opened, and downloaded if it is on the Hub, when it
    is asked for; its contents are checked against the index.

    Attributes:
        base ([`BaseRecord`]): The base of all vectors, with its fingerprint.
        source ([`VectorSource`]): Where the store was found.
        folder (`Path`): The folder it is in.
        commit (`str`, *optional*): Commit of the Hub that it was read at; `None` for a local folder.

    Example:

    ```python
    >>> import tempfile
    >>> from dem_hub import DistributionVector, VectorStore
    >>> store = VectorStore.create(tempfile.mkdtemp() + "/vectors", base_folder)
    >>> store.add("maths", DistributionVector.from_pretrained(vector_folder))
    >>> store
    VectorStore('...', base='...', vectors=[maths])
    >>> store["maths"].sha256 == DistributionVector.from_pretrained(vector_folder).sha256
    True

    ```
    """

    def __init__(self, resolved: Resolved, options: HubOptions) -> None:
        """Read the index of a store that was found. Call [`VectorStore.from_pretrained`] instead.

        Args:
            resolved ([`Resolved`]): The folder, and where it comes from.
            options ([`HubOptions`]): How to reach the Hub when a member is downloaded.
        """
        self.source = resolved.source
        self.folder = resolved.folder
        self.commit = resolved.commit
        self._options = options
        self._index = self._latest()

    @classmethod
    def create(cls, folder: str | os.PathLike[str], base: str | os.PathLike[str] | VectorSource) -> "VectorStore":
        """Create an empty store in a folder, with the base's tokenizer and chat template.

        Args:
            folder (`str` or `os.PathLike`): The folder. It is created if it does not exist.
            base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base.

        Returns:
            [`VectorStore`]: The store.

        Raises:
            `ConfigError`: If the folder has a store already, or holds something else.
        """
        target = Path(folder)
        opened = open_base(resolve(VectorSource.parse(base), MODEL_FILES))
        target.mkdir(parents=True, exist_ok=True)
        with locked(target.resolve()):
            if (target / STORE_CONFIG).is_file():
                raise ConfigError(
                    f"'{target}' is a store of vectors already. Open it: VectorStore.from_pretrained('{target}')."
                )
            check_target(target, STORE)
            copy_side_files(opened.side_files, target)
            StoreIndex(opened.record).write(target)
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
        """Open a store in a folder or on the Hub.

        Only the index is downloaded; a vector is downloaded when it is asked for.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder, written
                `ID[@REVISION][//SUBFOLDER]`.
            revision (`str`, *optional*): Branch, tag or commit on the Hub. It takes precedence over the one in
                `name_or_path`.
            subfolder (`str`, *optional*): Subfolder of the repository or folder. It takes precedence likewise.
            token, cache_dir, local_files_only, force_download (*optional*): As in transformers.

        Returns:
            [`VectorStore`]: The store.

        Raises:
            `NotFoundError`: If there is no store.
            `ConfigError`: If the index is damaged, or of a newer version.
        """
        source = VectorSource.parse(name_or_path, revision=revision, subfolder=subfolder)
        options = HubOptions(token, cache_dir, local_files_only, force_download)
        return cls(resolve(source, (STORE_CONFIG,), options), options)

    def __getitem__(self, name: str) -> DistributionVector:
        """Open a member and compare its identity with the index.

        Raises:
            `KeyError`: If the store has no vector of that name.
            `ConfigError`: If the vector is not the one that the index names.
        """
        member = self._index.members[name]
        try:
            return self._open(name, member)
        except (DemHubError, OSError):
            if self.commit is not None:
                raise
        # Another process may have replaced or removed the vector since the index was read.
        with store_at_rest(self.folder) as index:
            self._index = index
            return self._open(name, index.members[name])

    def _open(self, name: str, member: Member) -> DistributionVector:
        vector = DistributionVector.from_pretrained(self.member_source(name), **vars(self._options))
        if vector.sha256 != member.sha256:
            raise ConfigError(
                f"'{name}' in '{self.source}' has sha256 {short_hash(vector.sha256)}, and its index says "
                f"{short_hash(member.sha256)}. Add it again."
            )
        return vector

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._index.members))

    def __contains__(self, name: object) -> bool:
        return name in self._index.members

    def __len__(self) -> int:
        return len(self._index.members)

    def __repr__(self) -> str:
        return f"VectorStore('{self.source}', base='{self.base}', vectors=[{', '.join(self)}])"

    def _repr_html_(self) -> str:
        rows = []
        for name, member in self.members.items():
            rows.append((name, member.codec, format_size(member.nbytes), short_hash(member.sha256)))
        table = Table(("vector", "codec", "size", "sha256"), rows)
        return Report(f"Vectors in {self.source}", ((f"base    {self.base}",), table)).html()

    @property
    def base(self) -> BaseRecord:
        """The base of all vectors, with its fingerprint."""
        return self._index.base if self.commit is None else self._index.base.on_hub

    @property
    def members(self) -> Mapping[str, Member]:
        """The index entry of each vector: its sha256, its codec and its size. No vector is opened."""
        return {name: self._index.members[name] for name in self}

    def member_source(self, name: str) -> VectorSource:
        """Return where a member is, in the form that `vectors=` of [`DEMModel.from_pretrained`] takes.

        Args:
            name (`str`): Name of the member.
        """
        subfolder = "/".join(part for part in (self.source.subfolder, name) if part)
        repo_id = self.source.repo_id if self.commit is None else HubId(self.source.repo_id)
        return VectorSource(repo_id, self.commit, subfolder)

    def add(self, name: str, vector: DistributionVector) -> None:
        """Copy a vector or a PEFT adapter into the store's folder, with its input statistics if it has some.

        A vector of the same name is replaced.

        Args:
            name (`str`): Name of the vector, which is also the name of its subfolder.
            vector ([`DistributionVector`]): A vector of the store's base.

        Raises:
            `BaseMismatchError`: If the vector was made from another base.
            `ConfigError`: If the name cannot be a folder's, or the store is on the Hub.
            `BusyError`: If another process changes the store, and does not come to an end.
        """
        folder = self._writable(name)
        known = vector.base.fingerprint
        if known is not None and not agree(known, self.base.fingerprint):
            raise BaseMismatchError(
                f"The vector '{vector.name}' was made from '{vector.base}' (fingerprint "
                f"{short_hash(known)}), and the store "
                f"'{self.source}' is for '{self.base}' (fingerprint {short_hash(self.base.fingerprint)}). Make a "
                "store for its base."
            )
        member = Member(vector.sha256, vector.codec, vector.nbytes)
        # Into the folder of the vector in the cache, from where the copy takes them.
        statistics_files(vector, download=True)
        # The files are copied first, which takes long, and the store is locked for the rest.
        copy_vector(vector, folder, self._changing(StoreChange(name, member)))

    def remove(self, name: str) -> None:
        """Remove a vector from the store's folder.

        Args:
            name (`str`): Name of the vector.

        Raises:
            `KeyError`: If the store has no vector of that name.
            `ConfigError`: If the store is on the Hub.
            `BusyError`: If another process changes the store, and does not come to an end.
        """
        self._writable(name)
        with self._changing(StoreChange(name, None)):
            pass

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        include_statistics: bool = False,
        **options: Unpack[PushOptions],
    ) -> "CommitInfo":
        """Push all vectors of the store's folder, the index and a card in one commit.

        Vectors that only the repository has stay there.

        Args:
            repo_id (`str`): The repository. It is created if it does not exist.
            base_model (`str`, *optional*): Hub id of the base. Needed if the store names a local folder.
            include_statistics (`bool`, *optional*, defaults to `False`): Push the input statistics of the vectors that
                have some, too. They tell something about the vectors' data.
            options ([`PushOptions`]): As in [`DistributionVector.push_to_hub`].

        Returns:
            `CommitInfo`: The commit, as `huggingface_hub` describes it.

        Raises:
            `BaseMismatchError`: If the repository has vectors of another base.
            `CheckpointError`: If a vector is not the one that the index names, or its files were altered. All of
                these vectors are listed.
            `ConfigError`, `PushConflictError`: As [`DistributionVector.push_to_hub`] raises them.
        """
        return push_store(self, repo_id, options, base_model=base_model, include_statistics=include_statistics)

    def compare(self, base: str | os.PathLike[str] | VectorSource | None = None) -> Comparison:
        """Compare all members with each other: norms, cosines and overlaps; see [`compare`].

        Args:
            base (`str`, `os.PathLike` or [`VectorSource`], *optional*): Hub id or folder of the base. By default
                the one that the store records.

        Returns:
            [`Comparison`]: The members in the order of their names.
        """
        source = self.base.source if base is None else VectorSource.parse(base)
        opened = open_base(resolve(source, MODEL_FILES, self._options))
        return compare([self[name] for name in self], opened, names=list(self))

    def _writable(self, name: str) -> Path:
        """Return the folder for a vector, after a check that it can be written."""
        if self.commit is not None:
            raise ConfigError(
                f"'{self.source}' is on the Hub and cannot be changed here. Change a folder, and push that."
            )
        folder = self.folder / name
        is_one_name = bool(name) and not any(sign in name for sign in "/\\:")
        if not is_one_name or name.startswith(".") or folder.is_file() or folder.is_symlink():
            raise ConfigError(
                f"A vector in a store cannot be called '{name}': it is the name of a folder in '{self.folder}'."
            )
        return folder

    def _latest(self) -> StoreIndex:
        """Read the index. If a change is being made, wait for it; if its process was killed, finish it."""
        if self.commit is None and (self.folder / STORE_CHANGE).is_file():
            with store_at_rest(self.folder) as index:
                return index
        return StoreIndex.read(self.folder)

    @contextmanager
    def _changing(self, change: StoreChange) -> Iterator[None]:
        """Lock the store, and write a change into the index once the block has moved the vector's files."""
        with locked(self.folder.resolve()):
            self._index = finish_change(self.folder)
            if change.member is None and change.name not in self._index.members:
                raise KeyError(change.name)
            change.write(self.folder)
            yield
            self._index = finish_change(self.folder)
