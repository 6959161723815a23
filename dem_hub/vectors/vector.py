"""`DistributionVector`: what a fine-tune added to its base, theta_i - theta_0, opened lazily.

Two kinds of folder are a vector. One is our own: `vector_config.json`, a PEFT adapter for everything of low rank, and
`vector_model.safetensors` for the rest. The other is any LoRA adapter that PEFT wrote. Both are used in the same way:
[`DistributionVector.deltas`] returns the stored delta of each tensor of a base, and reads no tensor itself.
"""

import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.opening import open_base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.defaults import THEME, VERIFY, Theme, Verify
from dem_hub.files.folders import ADAPTER, VECTOR, check_replaced
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_FILES, SAFETENSORS, VECTOR_CONFIG, VECTOR_FILES
from dem_hub.files.replacing import read_steadily
from dem_hub.files.scratch import scratch_folder
from dem_hub.files.states import check_unchanged, states_of
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import PushOptions
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.hashes import digest, verify_files
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import BaseRecord, VectorSource
from dem_hub.hub.remembered import hashing_again
from dem_hub.vectors.compatibility import check_base, check_weights
from dem_hub.vectors.config import VectorConfig, codec_name, contents_sha256
from dem_hub.vectors.copies import copy_vector
from dem_hub.vectors.extraction import extract
from dem_hub.vectors.folder import is_vector_file
from dem_hub.vectors.lora.config import read_adapter_config
from dem_hub.vectors.lora.reader import read_adapter
from dem_hub.vectors.lora.summary import AdaptedModule, adapted_modules
from dem_hub.vectors.norms import decode
from dem_hub.vectors.pictures import plot_vector
from dem_hub.vectors.publishing import push_vector
from dem_hub.vectors.reader import part_sizes, read_contents, tensor_sizes
from dem_hub.vectors.report import vector_report

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from dem_hub.plotting.picture import Picture


class DistributionVector:
    """A distribution vector: what one fine-tune added to its base, tensor by tensor.

    Take a vector from two checkpoints with [`DistributionVector.extract`], or open one with
    [`DistributionVector.from_pretrained`]. Any LoRA adapter that PEFT wrote is a vector as it is. Opening a vector
    reads its config and its headers; tensors stay on disk.

    The tensors of a vector have the names that the base's tensors have on disk, not those of `model.state_dict()`.

    Attributes:
        config ([`VectorConfig`], *optional*): Content of `vector_config.json`; `None` for an adapter that PEFT wrote.
        source ([`VectorSource`]): Where the vector was found.
        folder (`Path`): The folder its files are in.
        commit (`str`, *optional*): Commit of the Hub that it was read at; `None` for a local folder.
        remote ([`Remote`], *optional*): Set if the weights are still on the Hub and `folder` has only their headers.

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

    def __init__(self, resolved: Resolved, *, verify: bool) -> None:
        """Open a folder, and compare its files with the hashes if `verify`. Call `from_pretrained` instead."""
        self.source = resolved.source
        self.folder = resolved.folder
        self.commit = resolved.commit
        self.remote = resolved.remote
        self.options = resolved.options
        self.config: VectorConfig | None = None
        self._adapter_config: dict[str, Any] = {}
        self.owns_files = False  # the files are this object's own, so they may be linked instead of copied
        read_steadily(self.folder, lambda: self._read(verify=verify))

    def _read(self, *, verify: bool) -> None:
        """Read the config, and compare the files with it."""
        self._states = states_of([file for file in self.folder.glob("*") if is_vector_file(file.name)])
        if (path := self.folder / VECTOR_CONFIG).is_file():
            self.config = VectorConfig.read(path)
            if verify:
                verify_files(self.folder, self.config.files, self._remote_hashes)
        else:
            self.config = None
            self._adapter_config = read_adapter_config(self.folder)
            Checkpoint(self.folder, index=ADAPTER_WEIGHTS)  # its header is checked now, not when a model is half loaded

    @classmethod
    def extract(  # noqa: PLR0913  # those of transformers, and three more
        cls,
        base: str | os.PathLike[str] | VectorSource,
        finetuned: str | os.PathLike[str] | VectorSource,
        *,
        codec: str = "auto",
        device: str | torch.device | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        verify: Verify = VERIFY,
        **codec_options: Any,
    ) -> "DistributionVector":
        """Extract the vector `finetuned - base`, one tensor at a time. No model is built.

        Args:
            base, finetuned (`str`, `os.PathLike` or [`VectorSource`]): Hub ids or folders of two safetensors
                checkpoints. The base may be a recipe.
            codec (`str`, *optional*, defaults to `"auto"`): How to store the deltas.

                * `"auto"` chooses a codec for each tensor. It stays within 9 % of the deltas' size in bf16, or
                  within `max_bytes` (a number, `"20MB"` or `"3%"`), or keeps the relative error of every tensor
                  below `max_error`.
                * Unbiased codecs: `"lrsign"` (`rank`, `group`), `"sign"` (`group`), `"random"` (`density`, `bits`,
                  `seed`), `"int8"`, `"int4"`, `"nf4"`.
                * Biased codec: `"lowrank"` (`rank` or `energy`, `dtype`).
                * Lossless codecs: `"exact"`, `"dense"` (`dtype`).
            device (`str` or `torch.device`, *optional*): Device to encode on. By default the accelerator, if there
                is one.
            token, cache_dir, local_files_only (*optional*): As in transformers.
            verify (`str`, *optional*, defaults to `"quick"`): `"full"` records a hash of all bytes of the base, with
                which `verify="full"` compares a base from then on.
            codec_options: Options of the codec, for instance `rank=16` or `dtype="float32"`.

        Returns:
            [`DistributionVector`]: The vector. Its files are in a temporary folder until it is saved.

        Raises:
            `CodecError`: If the codec or one of its options does not exist, or the vector does not fit in the budget.
            `NotFoundError`: If a checkpoint is not found.
            `CheckpointError`: If the two checkpoints have no difference: shapes or tensors that do not match,
                quantised or pickled weights, NaN.
        """
        encoder = encoder_from_name(codec, codec_options)
        options = HubOptions(token, cache_dir, local_files_only)
        with hashing_again(verify):
            resolved_base = resolve(VectorSource.parse(base), MODEL_FILES, options)
            resolved_finetuned = resolve(VectorSource.parse(finetuned), MODEL_FILES, options)
            write = partial(extract, base=resolved_base, finetuned=resolved_finetuned, encoder=encoder, device=device)
            return cls.written_by(write)

    @classmethod
    def written_by(cls, write: Callable[[Path], object]) -> "DistributionVector":
        """Return the vector that a function writes into a temporary folder, which is removed with the object."""
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            write(folder)
            vector = cls(Resolved.local(folder), verify=False)
            weakref.finalize(vector, stack.pop_all().close)
        vector.owns_files = True
        return vector

    @classmethod
    def from_pretrained(  # noqa: PLR0913  # those of transformers, and one more
        cls,
        name_or_path: str | os.PathLike[str] | VectorSource,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        verify: Verify = VERIFY,
    ) -> "DistributionVector":
        """Open a vector or a PEFT LoRA adapter, from a folder or from the Hub. Files are downloaded and checked.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder: `ID[@REVISION][//SUBFOLDER]`.
            revision (`str`, *optional*): Branch, tag or commit on the Hub, in place of the one in `name_or_path`.
            subfolder (`str`, *optional*): Subfolder of the repository or folder, likewise.
            token, cache_dir, local_files_only, force_download (*optional*): As in transformers.
            verify (`str`, *optional*, defaults to `"quick"`): `"full"` hashes files again that did not seem to change.

        Raises:
            `VectorNotFoundError`: If what is there is not a vector.
            `NotFoundError`: If nothing is there, or an adapter lacks its weights.
            `CheckpointError`: If a file is missing, truncated, altered (its sha256 is checked) or pickled.
            `ConfigError`: If the config is damaged, or of a newer version.
            `AdapterError`: If an adapter is not a plain sum of deltas.
        """
        source = VectorSource.parse(name_or_path, revision=revision, subfolder=subfolder)
        options = HubOptions(token, cache_dir, local_files_only, force_download)
        with hashing_again(verify):
            return cls(resolve(source, VECTOR_FILES, options), verify=True)

    @classmethod
    def describe(cls, name_or_path: str | os.PathLike[str] | VectorSource) -> "DistributionVector":
        """Open a vector to look at its config and its headers, without downloading its weights.

        Args:
            name_or_path (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder: `ID[@REVISION][//SUBFOLDER]`.

        Returns:
            [`DistributionVector`]: To look at. If it is on the Hub, reading its tensors is refused. No hash is checked.

        Raises:
            `VectorNotFoundError`, `NotFoundError`, `ConfigError`, `AdapterError`: As `from_pretrained` raises them.
            `CheckpointError`: If a header is truncated, or the weights are pickled.
            `HubError`: If the Hub cannot be reached or fails.
        """
        with ExitStack() as stack:
            scratch = stack.enter_context(scratch_folder())
            vector = cls(resolve_headers(VectorSource.parse(name_or_path), VECTOR_FILES, scratch=scratch), verify=False)
            weakref.finalize(vector, stack.pop_all().close)
        return vector

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, exist_ok: bool = True) -> None:
        """Save the vector in a folder. The folder appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            exist_ok (`bool`, *optional*, defaults to `True`): Whether a vector that is already there is replaced.

        Raises:
            `ConfigError`: If the folder holds something other than a vector: a model, a recipe, a store.
        """
        target = Path(save_directory)
        check_replaced(target, VECTOR if self.config is not None else ADAPTER, exist_ok=exist_ok)
        copy_vector(self, target)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str = "",
        base_model: str | None = None,
        include_statistics: bool = False,
        **options: Unpack[PushOptions],
    ) -> "CommitInfo":
        """Push the vector to the Hub in one commit, with a model card. A vector in the same place is replaced.

        Args:
            repo_id (`str`): The repository. It is created if it does not exist.
            subfolder (`str`, *optional*): Subfolder of the repository to push into, so that a repository can hold
                many vectors.
            base_model (`str`, *optional*): Hub id of the base. Needed if the vector was extracted from a local base.
            include_statistics (`bool`, *optional*, defaults to `False`): Push its input statistics too. They tell
                something about its data.
            options ([`PushOptions`]): `commit_message`, `commit_description`, `private`, `token`, `revision`,
                `create_pr` and `parent_commit`, as in `huggingface_hub`.

        Returns:
            `CommitInfo`: The commit, as `huggingface_hub` describes it.

        Raises:
            `ConfigError`: If the base is a local folder and `base_model` is not given.
            `PushConflictError`: If the same files were changed on the Hub in the meantime.
        """
        check_weights(self)
        return push_vector(
            self.folder,
            repo_id,
            options,
            subfolder=subfolder,
            base_model=base_model,
            include_statistics=include_statistics,
        )

    def __repr__(self) -> str:
        return f"DistributionVector('{self.source}', base='{self.base}', codec='{self.codec}', {self.nbytes:,} bytes)"

    def _repr_html_(self) -> str:
        return vector_report(self, self.name).html()

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        base: str | os.PathLike[str] | VectorSource | None = None,
        theme: Theme = THEME,
    ) -> "Picture":
        """Draw its norms by layer and by what the tensors are for. A notebook shows the picture.

        Args:
            path (`str` or `os.PathLike`, *optional*): The file to write: `.png`, `.svg` or `.pdf`.
            base (`str`, `os.PathLike` or [`VectorSource`], *optional*): Hub id or folder of the base; its own by default.
            theme (`str`, *optional*, defaults to `"light"`): `light` or `dark`.

        Returns:
            `matplotlib.figure.Figure`: The picture. It needs the extra `plot`.
        """
        return plot_vector(self, base, path, theme)

    @property
    def name(self) -> str:
        """The name of the vector in recipes and in `set_coefficients`: its id or path, with its subfolder."""
        return str(replace(self.source, revision=None))

    @property
    def codec(self) -> str:
        """The name of the codec, as recipes and stores record it; `"lora"` for an adapter that PEFT wrote."""
        return codec_name(self.config)

    @property
    def base(self) -> BaseRecord:
        """The base it was taken from, as far as its files say. An adapter has no fingerprint of its base."""
        record = BaseRecord(self._adapter_config.get("base_model_name_or_path") or None)
        if self.config is not None:
            record = self.config.base
        return record if self.commit is None else record.on_hub

    @property
    def file_names(self) -> list[str]:
        """The names of the files that the vector consists of, without sidecar files."""
        if self.config is None:
            return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        return [VECTOR_CONFIG, *sorted(self.config.files)]

    @property
    def nbytes(self) -> int:
        """The size of its tensor files, in bytes."""
        return sum((self.folder / name).stat().st_size for name in self.file_names if name.endswith(SAFETENSORS))

    def tensor_bytes(self) -> dict[str, int]:
        """Return the size of each tensor's parts in bytes, by the base's checkpoint key; empty for a plain adapter."""
        if self.config is None:
            return {}
        return tensor_sizes(self.config, part_sizes(self.folder, self.config))

    def adapted_modules(self) -> dict[str, AdaptedModule]:
        """Return the modules of a plain adapter with their ranks and, where its weights are here, their norms."""
        return adapted_modules(self.folder, self._adapter_config, with_norms=self.remote is None)

    @cached_property
    def sha256(self) -> str:
        """The identity of the vector, 64 hex digits: the same for two vectors with the same contents."""
        if self.config is not None:
            return self.config.sha256
        hashes = {name: self._remote_hashes.get(name) or digest(self.folder / name) for name in self.file_names}
        self.check_unchanged()
        return contents_sha256(hashes)

    @property
    def _remote_hashes(self) -> Mapping[str, str]:
        """The sha256 of each file that is still on the Hub."""
        return {} if self.remote is None else self.remote.hashes

    def deltas(self, base: Base, *, allow_base_mismatch: bool = False) -> dict[str, StoredDelta]:
        """Return the stored delta of each tensor that the vector changes, if the vector belongs on this base.

        Args:
            base ([`Base`]): The base that the deltas are to be added to.
            allow_base_mismatch (`bool`): Accept another base with the same names and shapes. Never set it without
                the user's word.

        Returns:
            `dict[str, StoredDelta]`: The deltas, unread, by the base's checkpoint key.

        Raises:
            `BaseMismatchError`: If base, revision or shapes differ. Both are named, with the first tensor that differs.
            `AdapterError`: If an adapter does not fit the base.
        """
        if self.config is not None:
            check_base(self.name, self.config, base, allow_mismatch=allow_base_mismatch)
            deltas = read_contents(self.folder, self.config)
        else:
            deltas = read_adapter(self.name, self.folder, self._adapter_config, base)
        self.check_unchanged()
        return deltas

    def check_unchanged(self) -> None:
        """Refuse files that changed since they were opened. A reader of deltas calls this at its end."""
        check_unchanged(self._states)

    def decode(self, name: str, base: str | os.PathLike[str]) -> Tensor:
        """Return the delta of one tensor, to look at it.

        Args:
            name (`str`): The tensor's key in the base's checkpoint.
            base (`str` or `os.PathLike`): Hub id or folder of the base.

        Returns:
            `torch.Tensor`: The delta in float32, of the base's shape; zeros where the vector changes nothing.
        """
        check_weights(self)
        opened = open_base(resolve(VectorSource.parse(base), MODEL_FILES))
        return decode(self.deltas(opened).get(name, StoredDelta()), opened, name)
