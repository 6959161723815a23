"""Safetensors checkpoints, read one tensor or slice at a time, memory-mapped: a tensor that is only looked at costs no private memory."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dem_hub.checkpoints.lazy import DTYPES, LazyTensor
from dem_hub.errors import CheckpointError, NotFoundError, refuse
from dem_hub.files.names import INDEX_SUFFIX, MODEL_WEIGHTS, PICKLES, SAFETENSORS
from dem_hub.files.strict_json import check_inside
from dem_hub.numerics.slices import Index


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is: its safetensors dtype code, its shape, its file, and its bytes in that file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start


class TensorSource(Protocol):
    """Tensors by their names on disk, one or a slice at a time: a checkpoint, or a model that would become one.

    `path` says where they are; of a model it is no folder.
    """

    path: Path

    def __getitem__(self, name: str, /) -> TensorInfo: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def read(self, name: str, index: Index | None = None) -> Tensor: ...
    def is_copy(self, name: str, other: str) -> bool: ...


class Checkpoint(Mapping[str, TensorInfo]):
    """The tensors of one or more safetensors files, by name, with nothing read but the headers.

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
            path (`str` or `os.PathLike`): a file or a folder.
            index (`str`, *optional*): the file to look for in a folder; defaults to `model.safetensors`, or the only one there.

        Raises:
            `NotFoundError`: nothing there.
            `CheckpointError`: pickled weights only, a truncated file, an index that names files outside its folder.
        """
        self.path = Path(path)
        self._index = index
        self.files = [self.path] if self.path.is_file() else _find_files(self.path, index)
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
        return _reopen, (
            self.path,
            self._index,
        )  # memory maps cannot be copied; a deep copy or another process opens its own

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        return {file: safe_open(file, framework="pt") for file in self.files}

    def lazy(self, name: str) -> LazyTensor:
        """The tensor as a safetensors slice: nothing is read until it is indexed."""
        return self._handles[self._tensors[name].file].get_slice(name)  # type: ignore[no-any-return]

    def read(self, name: str, index: Index | None = None) -> Tensor:
        """The tensor, or a slice of it, on the CPU in its own dtype; backed by the file, so do not write into it.

        Args:
            name (`str`): the tensor's name.
            index (`tuple[slice, ...]`, *optional*): one slice for each dimension; all of it by default.
        """
        return self.lazy(name)[index if index else ...]

    def is_copy(self, name: str, other: str) -> bool:
        """Whether two tensors are the same bits and not by chance: all norms of a new model are ones, and no copies."""
        first, second = self[name], self[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape) or first.nbytes == 0:
            return False
        values = self.read(name)
        return torch.equal(values, self.read(other)) and not torch.equal(*torch.aminmax(values))


def _reopen(path: Path, index: str | None) -> Checkpoint:
    return Checkpoint(path, index=index)


def _find_files(folder: Path, name: str | None) -> list[Path]:
    """The safetensors files of a folder: those of its index, or the single one."""
    if not folder.is_dir():
        raise NotFoundError(f"'{folder}' is not a file or folder. Check the path.")
    single = folder / (name or MODEL_WEIGHTS)
    index = single.with_name(single.name + INDEX_SUFFIX)
    if single.is_file():  # before an index, as transformers has it
        return [single]
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{index} is not an index of safetensors files ({error!r}). Fetch it again."
            ) from error
        for file in names:
            check_inside(str(file), f"file in {index}")
        missing = [file for file in names if not (folder / file).is_file()]
        if missing:
            refuse(
                CheckpointError, f"{index} names files that are not there.", missing, "Download the checkpoint again."
            )
        headers = {file: _read_header(folder / file) for file in names}
        lost = [
            f"'{tensor}' is not in '{file}'"
            for tensor, file in sorted(weight_map.items())
            if tensor not in headers[file]
        ]
        if lost:
            refuse(
                CheckpointError, f"{index} names tensors that are not there.", lost, "Download the checkpoint again."
            )
        return [folder / file for file in names]
    others = sorted(folder.glob(f"*{SAFETENSORS}")) if name is None else []
    if len(others) == 1:
        return others
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if pickles:
        raise CheckpointError(
            f"'{folder}' has only pickled weights ({', '.join(pickles[:3])}), which can run code when they are read. Convert them: "
            "AutoModel.from_pretrained(folder, weights_only=True).save_pretrained(new_folder) writes safetensors."
        )
    raise NotFoundError(f"'{folder}' has no {single.name}, and no {index.name}. Check the path.")


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(file, framework="pt"):  # checks the header against the file's size
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{file}' is not a whole safetensors file ({error}). Fetch it again.") from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    unknown = [f"'{name}' has dtype {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in DTYPES]
    if unknown:
        refuse(
            CheckpointError,
            f"'{file}' has tensors of a dtype that cannot be merged.",
            unknown,
            f"Known: {', '.join(DTYPES)}.",
        )
    return {
        name: TensorInfo(
            entry["dtype"], tuple(entry["shape"]), file, *(8 + length + offset for offset in entry["data_offsets"])
        )
        for name, entry in header.items()
    }
