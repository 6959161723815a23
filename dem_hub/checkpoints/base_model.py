"""A base model on this machine: its tensors, which base it is, and its architecture, each worked out once and only when asked."""

from functools import cached_property

from dem_hub.checkpoints.architecture import Architecture, describe, describe_plain
from dem_hub.checkpoints.fingerprint import fingerprint, tensor_digest, tensor_digests
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.hub.download import Resolved
from dem_hub.hub.references import BaseRecord, short_commit
from dem_hub.hub.remote import RangeReader


class Base:
    """The base that vectors are taken from and put on; with a `remote`, its headers alone."""

    def __init__(self, found: Resolved) -> None:
        """Open the headers of a resolved checkpoint."""
        self.source, self.folder, self.commit, self.remote = found.source, found.folder, found.commit, found.remote
        self.checkpoint = Checkpoint(found.folder)

    def __str__(self) -> str:
        if self.commit is None:
            return str(self.source)
        return f"{self.source} at {short_commit(self.commit)}"

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of each tensor."""
        return tensor_digests(self.checkpoint)

    @cached_property
    def twins(self) -> dict[str, str]:
        """Of tensors that are the same bits under several names (tied embeddings, written out), the first name of each."""
        if self.remote is not None:
            return {}
        names: dict[str, list[str]] = {}
        for name, value in sorted(self.digests.items()):
            names.setdefault(value, []).append(name)
        return {
            name: first for first, *others in names.values() for name in others if self.checkpoint.is_copy(name, first)
        }

    def digest(self, name: str) -> str:
        """The digest of one tensor; of a base that is still on the Hub, the bytes for that are fetched and no others."""
        if self.remote is None:
            return self.digests[name]
        info = self.checkpoint[name]
        place = "/".join(part for part in (self.source.subfolder, info.file.name) if part)
        return tensor_digest(info, RangeReader(self.remote, place))

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of all tensors, 64 hex digits."""
        assert self.remote is None
        return fingerprint(self.digests)

    @cached_property
    def architecture(self) -> Architecture | None:
        """What transformers says of it; `None` where there is no config, or one with code of its own."""
        config = read_config(self.folder)
        if not config.get("architectures") or config.get("auto_map"):
            return None
        return describe_plain(config, self.checkpoint) or describe(self.folder, self.checkpoint)

    @property
    def record(self) -> BaseRecord:
        """What vectors and recipes keep of it."""
        name = str(self.folder.resolve()) if self.commit is None else self.source.repo_id
        subfolder = self.source.subfolder if self.commit is not None else ""
        return BaseRecord(name, self.commit, subfolder, self.fingerprint if self.remote is None else None)
