"""The base model: its tensors, its identity and its architecture.

Each is worked out once, and only when it is asked for: a merge that needs no architecture does not import
transformers.
"""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from dem_hub.checkpoints.architecture import Architecture, describe, describe_plain
from dem_hub.checkpoints.fingerprint import agree, fingerprint, places_digest, saw_all_bytes, tensor_digests
from dem_hub.checkpoints.model_building import needs_remote_code
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import Checkpoint, Tensors
from dem_hub.checkpoints.tokenizer import Vocabulary
from dem_hub.hub.download import Resolved, module_weights, side_files
from dem_hub.hub.references import BaseRecord, short_commit
from dem_hub.hub.remembered import is_hashing_again
from dem_hub.hub.remote import RangeReader, RemoteWeights

logger = logging.getLogger(__name__)


class Base:
    """The base that vectors are extracted from and added to.

    If `remote` is set, the weights are still on the Hub: names, shapes, dtypes and single digests are known, and
    `fingerprint` is not.
    """

    def __init__(self, resolved: Resolved, tensors: Tensors | None = None) -> None:
        """Open the headers of a resolved checkpoint; or take `tensors`, and from the folder the small files alone."""
        self.source = resolved.source
        self.folder = resolved.folder
        self.commit = resolved.commit
        self.remote = resolved.remote
        self._resolved = resolved
        self._options = resolved.options
        self.checkpoint: Tensors = Checkpoint(resolved.folder) if tensors is None else tensors
        self._hashes_all = is_hashing_again()

    def __str__(self) -> str:
        if self.commit is None:
            return str(self.source)
        return f"{self.source} at {short_commit(self.commit)}"

    @property
    def remotes(self) -> list[RemoteWeights]:
        """Its weights that are still on the Hub."""
        return [] if self.remote is None else [self.remote]

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders that its tensors are read from, by what they are: no result may be written there."""
        return {"the base": self.folder}

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of each tensor, by name; see [`dem_hub.checkpoints.fingerprint`]."""
        assert isinstance(self.checkpoint, Checkpoint)
        self.checkpoint.check_values()
        digests = tensor_digests(self.checkpoint, full=self._hashes_all)
        self.checkpoint.check_unchanged()
        return digests

    @cached_property
    def twins(self) -> dict[str, str]:
        """Tensors that are copies of another one, by name, each with the name of the first.

        Tied embeddings that are written out are such copies. The mapping is empty for a base that is still on the
        Hub.
        """
        if self.remotes:
            return {}
        names_by_digest: dict[str, list[str]] = {}
        for name, digest in sorted(self.digests.items()):
            names_by_digest.setdefault(digest, []).append(name)
        twins = {}
        for first, *others in names_by_digest.values():
            for name in others:
                # Digests are of samples of the bytes, so equal ones are compared in full.
                if self.checkpoint.is_copy(name, first):
                    twins[name] = first
        return twins

    def digest(self, name: str) -> str | None:
        """Return the digest of one tensor; `None` if it is not known without a download.

        If the base is still on the Hub, only the tensor's *places* are fetched.
        """
        if self.remote is None:
            return self.digests[name]
        info = self.checkpoint[name]
        path = PurePosixPath(self.source.subfolder, info.file.name)
        return places_digest(info, RangeReader(self.remote, str(path)))

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of all tensors; only for a base that is on this machine."""
        assert not self.remotes
        return fingerprint(self.digests)

    def is_recorded(self, record: BaseRecord) -> bool:
        """Check whether this base, which is on this machine, has the fingerprint of a record.

        Where all bytes were to be hashed, and the record has no hash of them, a warning says so. Files of a commit
        were compared with the hashes of the Hub.
        """
        if not agree(record.fingerprint, self.fingerprint):
            return False
        is_commit = self.commit is not None and self.commit == record.commit
        if self._hashes_all and not is_commit and not saw_all_bytes(record.fingerprint or ""):
            logger.warning(
                "What records the base '%s' has no hash of all its bytes, so only a sample of '%s' was compared. "
                "A vector that is extracted with --verify full has one.",
                record,
                self,
            )
        return True

    @cached_property
    def architecture(self) -> Architecture | None:
        """The map from tensors to modules, made by transformers; `None` without a config, or if only remote code has
        a class.

        Code beside the weights is never run for this. Where transformers has a class of its own for a model that
        came with code once (Phi-3, Falcon, DeepSeek), that class is asked.
        """
        config = read_config(self.folder)
        if not config.get("architectures") or needs_remote_code(config):
            return None
        described = describe_plain(config, self.checkpoint) or describe(self.folder, self.checkpoint)
        return replace(described, ties=self._actual_ties(described))

    @cached_property
    def text_architecture(self) -> Architecture | None:
        """The text model alone, of a model that reads images or sound too; `None` if it has no such class.

        It is what `AutoModelForCausalLM` makes of such a base, so adapters and fine-tunes of it have its names.
        """
        if self.architecture is None or not read_config(self.folder).get("text_config"):
            return None
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        config = AutoConfig.from_pretrained(self.folder)
        for candidate in (config, config.get_text_config()):
            concrete_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(candidate), None)
            if concrete_class is not None and concrete_class.__name__ != self.architecture.name:
                described = describe(self.folder, self.checkpoint, class_name=concrete_class.__name__)
                return replace(described, ties=self._actual_ties(described))
        return None

    def _actual_ties(self, described: Architecture) -> dict[str, str]:
        """Return the ties without those that the weights contradict.

        Where both tensors are on disk and differ, transformers does not tie them, whatever the config says.
        """
        ties = {}
        for name, other in described.ties.items():
            keys = [described.parameters.get(end) for end in (name, other)]
            if None in keys or keys[0] == keys[1] or self._are_equal(str(keys[0]), str(keys[1])):
                ties[name] = other
        return ties

    def _are_equal(self, key: str, other: str) -> bool:
        """Check whether two tensors are the same; of a base that is still on the Hub, whether their samples are."""
        infos = (self.checkpoint[key], self.checkpoint[other])
        if infos[0].shape != infos[1].shape:
            return False
        if self.remote is not None:
            return infos[0].dtype == infos[1].dtype and self.digest(key) == self.digest(other)
        values = self.checkpoint.read(key)
        return torch.equal(values, self.checkpoint.read(other).to(values.dtype))

    @cached_property
    def side_files(self) -> dict[str, Path]:
        """The files beside its weights that come along into what is made from it, by their paths; see [`side_files`]."""
        if self.commit is None:
            return side_files(self.source, self._options)
        options = replace(self._options, force_download=False)
        return side_files(replace(self.source, revision=self.commit), options)

    @cached_property
    def module_weights(self) -> dict[str, list[Path]]:
        """The weights of sentence-transformers' modules beside it; see [`dem_hub.hub.download.module_weights`]."""
        return module_weights(self._resolved)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokens of its tokenizer; `None` if it has none that can be read."""
        return Vocabulary.read(self.folder)

    @property
    def vocabulary_rows(self) -> int:
        """Number of rows of its embeddings; 0 if it is not known which tensors these are."""
        keys = frozenset[str]() if self.architecture is None else self.architecture.vocabulary
        return max((self.checkpoint[key].shape[0] for key in keys), default=0)

    @property
    def record(self) -> BaseRecord:
        """The base as vectors and recipes name it in their configs."""
        fingerprint = None if self.remotes else self.fingerprint
        if self.commit is None:
            return BaseRecord(str(self.folder.resolve()), None, "", fingerprint)
        return BaseRecord(self.source.repo_id, self.commit, self.source.subfolder, fingerprint)
