"""`DistributionVector`: what a fine-tune added to its base, theta_i - theta_0, opened lazily.

Two things on disk are a vector: our own folder (`vector_config.json`, with what is low rank kept as a PEFT adapter and the rest in
`vector_model.safetensors`), and any PEFT LoRA adapter as it is. Both give the same answer to the same question: the stored delta of
each tensor of a base, unread.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs import add_deltas
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import AdapterError, BaseMismatchError, CheckpointError, CodecError, DemHubError, refuse
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.folders import ADAPTER, VECTOR, check_target
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    MODEL_FILES,
    NORMS_PLOT,
    SAFETENSORS,
    SIDECARS,
    VECTOR_CONFIG,
    VECTOR_FILES,
)
from dem_hub.files.strict_json import check_inside
from dem_hub.hub.cards import render
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.hashes import digest, verify_files
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.listing import licenses
from dem_hub.hub.references import BaseRecord, VectorSource
from dem_hub.numerics.slices import full_index
from dem_hub.vectors.cards import vector_card
from dem_hub.vectors.compatibility import check_base
from dem_hub.vectors.config import VectorConfig, codec_name, contents_sha256
from dem_hub.vectors.extraction import extract
from dem_hub.vectors.lora.reader import read_adapter, read_adapter_config
from dem_hub.vectors.publishing import public_vector, stale
from dem_hub.vectors.reader import part_sizes, read_contents, tensor_sizes
from dem_hub.vectors.sidecars import companions_of, read_training

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class DistributionVector:
    """A distribution vector: the deltas of one fine-tune, by the names of the base's tensors on disk.

    Made by [`DistributionVector.extract`] or [`DistributionVector.from_pretrained`], never directly. `config` is its
    `vector_config.json`, `None` for an adapter that PEFT wrote.

    Example:

    ```python
    >>> import tempfile
    >>> from dem_hub import DistributionVector
    >>> vector = DistributionVector.extract(base_folder, finetuned_folder, codec="lowrank", rank=4)
    >>> folder = tempfile.mkdtemp()
    >>> vector.save_pretrained(folder)
    >>> DistributionVector.from_pretrained(folder).config.codec
    'lowrank'

    ```
    """

    def __init__(self, found: Resolved, *, verify: bool) -> None:
        self.source, self.folder, self.commit, self.remote = found.source, found.folder, found.commit, found.remote
        self.config: VectorConfig | None = None
        self._adapter_config: dict[str, Any] = {}
        self._put: Callable[[Path, Path], object] = shutil.copyfile
        path = self.folder / VECTOR_CONFIG
        if path.is_file():
            self.config = VectorConfig.from_json(path.read_bytes(), str(path))
            if verify:
                verify_files(self.folder, self.config.files, self.remote.hashes if self.remote is not None else {})
        else:
            self._adapter_config = read_adapter_config(self.folder)
            Checkpoint(self.folder, index=ADAPTER_WEIGHTS)  # its header is checked now, not when a model is half loaded

    @classmethod
    def extract(
        cls,
        base: str | os.PathLike[str] | VectorSource,
        finetuned: str | os.PathLike[str] | VectorSource,
        *,
        codec: str = "auto",
        device: str | torch.device | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **codec_options: Any,
    ) -> "DistributionVector":
        """Take the vector finetuned - base, tensor by tensor; no model is built.

        Args:
            base, finetuned (`str`, `os.PathLike` or [`VectorSource`]): Hub ids or folders of safetensors checkpoints.
            codec (`str`, *optional*, defaults to `"auto"`): how to store it. `"auto"` chooses for each tensor, within 9 % of the delta's
                bytes in bf16, or `max_bytes` (a number, `"20MB"`, `"3%"`), or a relative `max_error`. Unbiased codecs: `"lrsign"`
                (`rank`, `group`), `"sign"` (`group`), `"random"` (`density`, `bits`, `seed`), `"int8"`, `"int4"`,
                `"nf4"`. A biased one: `"lowrank"` (`rank` or `energy`, `dtype`). Without loss: `"exact"`, `"dense"` (`dtype`).
            device (`str` or `torch.device`, *optional*): where to encode; the accelerator where there is one, by default.
            token, cache_dir, local_files_only: as in transformers.
            codec_options: of the codec, for instance `rank=16`, or `dtype="float32"`.

        Returns:
            [`DistributionVector`]: kept in a temporary folder until it is saved.

        Raises:
            `CodecError`: no such codec or option, or a budget that the vector does not fit in.
            `NotFoundError`: no checkpoint there.
            `CheckpointError`: checkpoints that have no difference (shapes, missing tensors, quantised or pickled weights, NaN).
        """
        encoder = encoder_from_name(codec, codec_options)
        options = HubOptions(token, cache_dir, local_files_only)
        ours, theirs = (resolve(VectorSource.parse(name), MODEL_FILES, options) for name in (base, finetuned))
        folder = Path(tempfile.mkdtemp(prefix="dem_hub-vector-"))
        try:
            extract(folder, ours, theirs, encoder, device=device)
            vector = cls(Resolved.local(folder), verify=False)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(vector, shutil.rmtree, folder, ignore_errors=True)
        vector._put = os.link  # nobody else has these files
        return vector

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
    ) -> "DistributionVector":
        """Open a vector, or a PEFT LoRA adapter, from a folder or the Hub; tensors stay unread.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): where it is.
            revision, subfolder, token, cache_dir, local_files_only, force_download: as in transformers.

        Raises:
            `VectorNotFoundError`: what is there is not a vector.
            `NotFoundError`: nothing is there, or an adapter without its weights.
            `CheckpointError`: a file is missing, truncated or altered (its sha256 is checked), or pickled.
            `ConfigError`: a config that this version must not read.
            `AdapterError`: an adapter that is not a plain sum of deltas.
        """
        source = VectorSource.parse(name_or_path, revision=revision, subfolder=subfolder)
        options = HubOptions(token, cache_dir, local_files_only, force_download)
        return cls(resolve(source, VECTOR_FILES, options), verify=True)

    @classmethod
    def describe(cls, name_or_path: str | os.PathLike[str] | VectorSource) -> "DistributionVector":
        """Open a vector to look at its config and headers; tensors on the Hub stay there, and none are checked.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): where it is.

        Returns:
            [`DistributionVector`]: one to look at. Of a vector on the Hub the values of its tensors are not here.

        Raises:
            `VectorNotFoundError`, `NotFoundError`, `ConfigError`, `AdapterError`: as [`DistributionVector.from_pretrained`] raises them.
            `CheckpointError`: a header that is truncated, or weights that are pickled.
            `HubError`: the line or the Hub failed.
        """
        scratch = Path(tempfile.mkdtemp(prefix="dem_hub-headers-"))
        vector = cls(resolve_headers(VectorSource.parse(name_or_path), VECTOR_FILES, scratch=scratch), verify=False)
        weakref.finalize(vector, shutil.rmtree, scratch, ignore_errors=True)
        return vector

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the vector into a folder, which appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): the folder; a vector that is there already is replaced.

        Raises:
            `ConfigError`: the folder holds something else, see [`check_target`].
        """
        target = Path(save_directory)
        check_target(target, VECTOR if self.config is not None else ADAPTER)
        self.put(target)

    def put(self, target: Path) -> None:
        """Write the vector into a folder that is for vectors, in place of the vector or adapter that is there.

        Args:
            target (`Path`): the folder, which appears complete or not at all. What it holds is not checked, unlike in
                [`DistributionVector.save_pretrained`].

        Raises:
            `OSError`: the folder cannot be written.
        """
        if target.is_dir() and target.resolve() == self.folder.resolve():
            return
        put, self._put = self._put, shutil.copyfile  # from now on, somebody has the files
        with atomic_folder(target) as folder:
            for name in self.file_names:
                source = (self.folder / name).resolve()  # the Hub's cache has links to its blobs
                try:
                    put(source, folder / name)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(source, folder / name)
            for path in [path for pattern in VECTOR_FILES for path in target.glob(pattern)]:
                if path.name not in self.file_names:
                    path.unlink()

    def push_to_hub(
        self, repo_id: str, *, subfolder: str = "", base_model: str | None = None, **options: Unpack[PushOptions]
    ) -> "CommitInfo":
        """Push the vector as one commit, with a card; an older vector in the same place is replaced.

        Args:
            repo_id (`str`): the repository; made where there is none.
            subfolder (`str`): where in it.
            base_model (`str`, *optional*): Hub id of the base, where the vector was extracted from a folder of this machine.
            options ([`PushOptions`]): `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr`,
                `parent_commit`, as in the Hub's client.

        Returns:
            `CommitInfo`: of the Hub's client.

        Raises:
            `ConfigError`: the base is a folder of this machine, and `base_model` does not say what others know it as.
            `PushConflictError`: somebody else changed the same files meanwhile.
        """
        public = public_vector(self.folder, base_model, token=options.get("token"))
        stated = licenses([public.base] if public.base else [], token=options.get("token"))
        prefix = f"{subfolder}/" if subfolder else ""
        check_inside(subfolder, f"subfolder of '{repo_id}'")
        beside = companions_of(self.folder)

        def compose(head: Head) -> Change:
            picture = NORMS_PLOT if NORMS_PLOT in beside else ""
            card = vector_card(
                head.repo_id, subfolder, public.config, public.base, stated, read_training(self.folder), picture
            )
            files = {prefix + name: file for name, file in {**public.files, **beside}.items()}
            removed = stale(head, prefix, files) | (
                {prefix + name for name in SIDECARS if prefix + name in head.files} - set(files)
            )
            return Change(
                {**files, prefix + CARD: render(card, head.read(prefix + CARD))}, removed, frozenset({prefix + CARD})
            )

        return push(repo_id, compose, options, f"Push the vector {subfolder or repo_id}")

    def __repr__(self) -> str:
        return f"DistributionVector('{self.source}', base='{self.base}', codec='{self.codec}', {self.nbytes:,} bytes)"

    @property
    def name(self) -> str:
        """How a recipe and `set_coefficients` call it: its id or path, and subfolder."""
        return str(replace(self.source, revision=None))

    @property
    def codec(self) -> str:
        """Name of its codec, as recipes and stores record it; `"lora"` for an adapter that PEFT wrote."""
        return codec_name(self.config)

    @property
    def base(self) -> BaseRecord:
        """The base it was taken from, as far as its files say."""
        if self.config is not None:
            return self.config.base
        return BaseRecord(self._adapter_config.get("base_model_name_or_path") or None)

    @property
    def file_names(self) -> list[str]:
        """The files that make it up."""
        if self.config is None:
            return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        return [VECTOR_CONFIG, *sorted(self.config.files)]

    @property
    def nbytes(self) -> int:
        """Size of its tensor files, in bytes."""
        return sum((self.folder / name).stat().st_size for name in self.file_names if name.endswith(SAFETENSORS))

    def tensor_bytes(self) -> dict[str, int]:
        """Count the bytes of the parts of each tensor in the files, headers aside.

        Returns:
            `dict[str, int]`: by the base's key; empty for a plain adapter.

        Raises:
            `CodecError`: a codec, or an option of one, that this version does not have.
            `CheckpointError`: files that lack tensors, have others, or have them in another shape or dtype.
        """
        return tensor_sizes(self.config, part_sizes(self.folder, self.config)) if self.config is not None else {}

    @cached_property
    def sha256(self) -> str:
        """What it is, whatever it is called: the sha256 of the names and hashes of its files, 64 hex digits."""
        if self.config is not None:
            return self.config.sha256
        known = self.remote.hashes if self.remote is not None else {}
        return contents_sha256({name: known.get(name) or digest(self.folder / name) for name in self.file_names})

    def deltas(self, base: Base, *, allow_base_mismatch: bool = False) -> dict[str, StoredDelta]:
        """The stored delta of each tensor that it changes, unread, once it is sure that they belong on this base.

        Args:
            base ([`Base`]): the base they go on.
            allow_base_mismatch (`bool`): take another base with the same names and shapes; only by hand.

        Raises:
            `BaseMismatchError`: another base or revision, or other shapes; names both and the first tensor that differs.
            `AdapterError`: an adapter that does not fit the base.
        """
        if self.config is None:
            return self._adapter_deltas(base)
        check_base(self.name, self.config, base, allow_mismatch=allow_base_mismatch)
        return read_contents(self.folder, self.config)

    def decode(self, name: str, base: str | os.PathLike[str]) -> Tensor:
        """The delta of one tensor as float32, for looking at it; merging never makes it.

        Args:
            name (`str`): the base's key.
            base (`str` or `os.PathLike`): the base's folder.
        """
        opened = Base(resolve(VectorSource.parse(base), MODEL_FILES))
        shape = opened.checkpoint[name].shape
        stored = self.deltas(opened).get(name, StoredDelta())
        return add_deltas(
            torch.zeros(shape, dtype=torch.float32), stored.decode(opened.checkpoint.lazy(name), full_index(shape))
        )

    def _adapter_deltas(self, base: Base) -> dict[str, StoredDelta]:
        if base.architecture is None:
            raise AdapterError(
                f"The architecture of '{base}' is not known (no config.json with architectures that transformers has), so where the LoRA "
                f"'{self.name}' goes cannot be known either. Merge it with PEFT and extract the vector."
            )
        return read_adapter(self.folder, self._adapter_config, base.checkpoint, base.architecture)


def all_deltas(
    vectors: Sequence[DistributionVector], base: Base, *, allow_base_mismatch: bool = False
) -> list[dict[str, StoredDelta]]:
    """[`DistributionVector.deltas`] of several vectors; what is wrong with any of them is in one error."""
    found: list[dict[str, StoredDelta]] = []
    errors: list[DemHubError] = []
    for vector in vectors:
        try:
            found.append(vector.deltas(base, allow_base_mismatch=allow_base_mismatch))
        except (AdapterError, BaseMismatchError, CheckpointError, CodecError) as error:
            errors.append(error)
    if len(errors) > 1:
        refuse(
            type(errors[0]),
            f"{len(errors)} of {len(vectors)} vectors cannot be put on '{base}'.",
            [str(error) for error in errors],
        )
    if errors:
        raise errors[0]
    return found
