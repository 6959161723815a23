"""Safetensors checkpoints, read one tensor or slice at a time.

Files are memory-mapped: a tensor that is only looked at costs no private memory, since the operating system can
drop its pages. A file whose header, length or dtypes are wrong is refused when the checkpoint is opened, before
anything is computed from it.

Weights that are still on the Hub have files with the real header and no data (`hub/headers.py`). They are opened like
others, and a tensor of theirs cannot be read.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dem_hub.checkpoints.lazy import DTYPES, LazyTensor, View
from dem_hub.errors import CheckpointError, ConfigError, NotFoundError, refuse
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.json_types import fits
from dem_hub.files.links import check_paths
from dem_hub.files.names import HEADERS_ONLY, INDEX_SUFFIX, MODEL_WEIGHTS, PICKLES, SAFETENSORS
from dem_hub.files.shown import shown
from dem_hub.files.states import FileState, check_unchanged
from dem_hub.files.strict_json import read_json
from dem_hub.numerics.slices import Index


@dataclass(frozen=True)
class TensorInfo:
    """The place of one tensor on disk: its dtype as a safetensors code, its shape, its file, and the range of its
    bytes there.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of torch."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.stop - self.start


class TensorSource(Protocol):
    """Tensors by their names on disk, of which one or a slice is read at a time.

    A checkpoint is one, and so is a model in training, with the names that it would be saved under. `path` says
    where they are, for messages. It is not a folder if the tensors are those of a model.
    """

    path: Path

    def __getitem__(self, name: str, /) -> TensorInfo: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def read(self, name: str, index: Index | None = None) -> Tensor: ...
    def is_copy(self, name: str, other: str) -> bool: ...


class Tensors(Mapping[str, TensorInfo]):
    """All tensors of a model by their names on disk: those of files, or those that a merge makes when they are read.

    `path` says where they are from, for messages.
    """

    path: Path

    @abstractmethod
    def lazy(self, name: str) -> LazyTensor:
        """Return the tensor as a safetensors slice: nothing is read until it is indexed."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Check that the files are still those that were opened. What reads the tensors calls this at its end.

        Raises:
            [`~dem_hub.errors.CheckpointError`]: If files were replaced or written to.
        """

    def read(self, name: str, index: Index | None = None) -> Tensor:
        """Return the tensor or a slice of it, on the CPU in its own dtype.

        It may be backed by a file, so do not write into it.

        Args:
            name (`str`): The tensor's name.
            index (`tuple[slice, ...]`, *optional*): One slice for each dimension. Defaults to the whole tensor.
        """
        return self.lazy(name)[index if index else ...]

    def is_copy(self, name: str, other: str) -> bool:
        """Check whether two tensors have the same bits because one is a copy of the other.

        Tensors of a single value are no evidence: all norms of a new model are ones, and none is a copy.
        """
        first = self[name]
        second = self[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape) or first.nbytes == 0:
            return False
        values = self.read(name)
        return torch.equal(values, self.read(other)) and not torch.equal(*torch.aminmax(values))


class Checkpoint(Tensors):
    """The tensors of one or more safetensors files, by name. Only the headers are read when it is opened.

    Example:

    ```python
    >>> import tempfile, torch
    >>> from dem_hub.checkpoints.reader import Checkpoint
    >>> from dem_hub.checkpoints.writer import write_file
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> write_file(path, {"weight": torch.ones(4, 2)})
    >>> checkpoint = Checkpoint(path)
    >>> checkpoint["weight"].shape, checkpoint.read("weight", (slice(0, 1), slice(0, 2)))
    ((4, 2), tensor([[1., 1.]]))

    ```
    """

    def __init__(self, path: str | os.PathLike[str], *, index: str | None = None) -> None:
        """Open a file, or a folder with `<name>.safetensors` or `<name>.safetensors.index.json`.

        Args:
            path (`str` or `os.PathLike`): A file or a folder.
            index (`str`, *optional*): The file to look for in a folder, or whose index to look for. Defaults to
                `model.safetensors`, or to the only safetensors file there.

        Raises:
            [`~dem_hub.errors.NotFoundError`]: If nothing is there.
            [`~dem_hub.errors.CheckpointError`]: If there are only pickled weights, a truncated file, or an index
                that names a missing file or tensor.
            [`~dem_hub.errors.ConfigError`]: If an index names a file outside its folder, or a file of the folder is
                a link that leads out of it.
        """
        self.path = Path(path)
        self._index = index
        if self.path.is_file():
            self.files = [self.path]
            folder = self.path.parent
        else:
            self.files = _find_files(self.path, index)
            check_paths(self.files, self.path)
            folder = self.path
        # False if the weights are still on the Hub: names, shapes and dtypes are known, and no tensor can be read.
        self.has_values = not (folder / HEADERS_ONLY).exists()
        self._states = {file: FileState.of(file) for file in self.files}
        self._tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            self._tensors |= _read_header(file)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps cannot be copied: a deep copy, or another process, opens the files again.
        return _reopen, (self.path, self._index)

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        # Before and after: what is mapped is what was checked.
        self.check_unchanged()
        handles = {file: safe_open(file, framework="pt") for file in self.files}
        self.check_unchanged()
        return handles

    def check_unchanged(self) -> None:
        """Check that the files are still those whose headers were read; see [`Tensors.check_unchanged`].

        Each slice is preceded by the same check of its own file.
        """
        check_unchanged(self._states)

    def check_values(self) -> None:
        """Check that the weights are here, and not their headers alone.

        Raises:
            [`~dem_hub.errors.CheckpointError`]: If the weights are still on the Hub.
        """
        if not self.has_values:
            _refuse_zeros(self.files[0])

    def lazy(self, name: str) -> LazyTensor:
        """Return the tensor as a slice of its file. It can be indexed if the checkpoint has values."""
        file = self._tensors[name].file
        return _FileSlice(self._handles[file].get_slice(name), file, self._states[file], self.has_values)


@dataclass(frozen=True)
class _FileSlice(View):
    """A slice of a file, which is checked to be unchanged before each read.

    A read beyond the end of a mapped file that has become shorter would end the process. A file without data would
    give zeros.
    """

    file: Path
    state: FileState
    has_values: bool

    def __getitem__(self, index: Any) -> Tensor:
        """Check the file, and read a slice."""
        if not self.has_values:
            _refuse_zeros(self.file)
        check_unchanged({self.file: self.state})
        return self.tensor[index]


def _refuse_zeros(file: Path) -> NoReturn:
    raise CheckpointError(
        f"The weights of '{file.name}' are still on the Hub, and only its header is here ('{file}'), so its tensors cannot "
        "be read. Open what it belongs to with its weights: `from_pretrained` downloads them."
    )


def _reopen(path: Path, index: str | None) -> Checkpoint:
    return Checkpoint(path, index=index)


def _find_files(folder: Path, name: str | None) -> list[Path]:
    """Return the safetensors files of a folder: the single file, those of an index, or the only one there."""
    if not folder.is_dir():
        raise NotFoundError(f"'{folder}' is not a file or folder. Check the path.")
    single = folder / (name or MODEL_WEIGHTS)
    index = single.with_name(single.name + INDEX_SUFFIX)
    # A single file goes before an index, as in transformers.
    if single.is_file():
        return [single]
    if index.is_file():
        return _files_of_index(index)
    if name is None:
        others = sorted(folder.glob(f"*{SAFETENSORS}"))
        if len(others) == 1:
            return others
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if pickles:
        raise CheckpointError(
            f"'{folder}' has only pickled weights ({', '.join(pickles[:3])}), which can run code when they "
            "are read. Convert them: AutoModel.from_pretrained(folder, weights_only=True).save_pretrained(new_folder) "
            "writes safetensors."
        )
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf:
        raise CheckpointError(
            f"'{folder}' has only GGUF weights ({', '.join(gguf[:3])}), which are mostly quantised. Take the model's "
            "repository with safetensors, or convert it: AutoModel.from_pretrained(folder, "
            f"gguf_file='{gguf[0]}').save_pretrained(new_folder)."
        )
    raise NotFoundError(f"'{folder}' has no {single.name}, and no {index.name}. Check the path.")


def _files_of_index(index: Path) -> list[Path]:
    """Return the files that an index names, once they are all there with the tensors that it says they have."""
    folder = index.parent
    try:
        weight_map: Any = read_json(index, foreign=True).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(f"{index} is not an index of safetensors files. {error}") from error
    if not fits(Mapping[str, str], weight_map):
        raise CheckpointError(
            f"{index} is not an index of safetensors files (its weight_map is {shown(weight_map)}). Fetch it again."
        )
    names = sorted(set(weight_map.values()))
    for file in names:
        check_inside(str(file), f"file in {index}")
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        refuse(CheckpointError, f"{index} names files that are not there.", missing, "Download the checkpoint again.")
    headers = {file: _read_header(folder / file) for file in names}
    lost = [f"'{key}' is not in '{file}'" for key, file in sorted(weight_map.items()) if key not in headers[file]]
    if lost:
        refuse(CheckpointError, f"{index} names tensors that are not there.", lost, "Download the checkpoint again.")
    return [folder / file for file in names]


def _read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file, once its header fits its size and all dtypes are known."""
    try:
        with safe_open(file, framework="pt"):  # checks the header against the file's size
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{file}' is not a whole safetensors file ({error}). Fetch it again.") from error
    # A file begins with the length of its header, 8 bytes; the data offsets count from the end of the header.
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    data_start = 8 + length
    header.pop("__metadata__", None)
    unknown = [f"'{name}' has dtype {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in DTYPES]
    if unknown:
        refuse(
            CheckpointError,
            f"'{file}' has tensors of a dtype that cannot be merged.",
            unknown,
            f"Known: {', '.join(DTYPES)}.",
        )
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), file, data_start + start, data_start + stop)
    return tensors
