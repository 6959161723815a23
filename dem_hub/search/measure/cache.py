"""What a search has measured, by what it was measured on: the scores of models on data, statistics, logits.

A number is filed under the coefficients (by the vectors' hashes) and the data (by its hash) that it belongs to, so that going on after
a kill, adding a vector, adding a distribution and dropping either are one and the same thing: what is known is not measured again.
With a folder every number is written as soon as it is known, as a line of JSON or a safetensors file; without, it is kept in memory.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.evaluation.processes import rank, world_size
from dem_hub.files.names import MEASUREMENTS, SAFETENSORS
from dem_hub.search.measure.logits import Block

_LOGITS = "logits"


class MeasurementCache:
    """Numbers and logits by key.

    Args:
        folder (`str` or `os.PathLike`, *optional*): where they are written, and read from if they are there; memory alone by default.
        known ([`MeasurementCache`], *optional*): of an earlier search, whose numbers are had for nothing.

    Raises:
        `ConfigError`: the folder's lines are not a search's.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, known: "MeasurementCache | None" = None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self._known = known
        self._numbers: dict[str, Any] = {}
        self._blocks: dict[str, Block] = {}
        if self.folder is not None and (self.folder / MEASUREMENTS).is_file():
            self._numbers = _read_lines(self.folder / MEASUREMENTS)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers or self.is_free(key)

    def __getitem__(self, key: str) -> Any:
        return self._known[key] if self._known is not None and key in self._known else self._numbers[key]

    def __len__(self) -> int:
        return len(self._all())

    def is_free(self, key: str) -> bool:
        """Whether an earlier search has paid for it; what lies in this cache's own folder is this search's, begun before."""
        return self._known is not None and key in self._known

    @property
    def has_logits(self) -> bool:
        """Whether there are logits to begin from."""
        before = self._known is not None and self._known.has_logits
        return (
            before
            or bool(self._blocks)
            or (self.folder is not None and any((self.folder / _LOGITS).glob("*.safetensors")))
        )

    def put(self, key: str, value: Any) -> None:
        """Keep JSON data."""
        self._numbers[key] = value
        if self.folder is not None and rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / MEASUREMENTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, value]) + "\n")

    def block(self, key: str) -> Block | None:
        """The logits kept under a key, by this process."""
        if key not in self._blocks and self.folder is not None:
            path = self._path(key)
            if path.is_file():
                self._blocks[key] = _read_block(path)
        if key not in self._blocks and self._known is not None and (block := self._known.block(key)) is not None:
            self.put_block(key, block.copy())
        return self._blocks.get(key)

    def put_block(self, key: str, block: Block) -> None:
        """Keep the logits at a centre; their moves follow one by one."""
        self._blocks[key] = block
        if self.folder is not None:
            _write(self._path(key), {"centre": block.center, "targets": block.targets, "owners": block.owners})
            for name in block.moves:
                self.put_move(key, name)

    def put_move(self, key: str, name: str) -> None:
        """Keep a move that the block of this key has got."""
        if self.folder is not None:
            _write(self._path(key, name), {"move": self._blocks[key].moves[name]})

    def save(self, folder: Path, *, with_logits: bool) -> None:
        """Write everything to another folder, the logits (gigabytes) only if asked for."""
        copy = MeasurementCache(folder)
        for key, value in self._all().items():
            if key not in copy:
                copy.put(key, value)
        for key, block in self._blocks.items() if with_logits else ():
            copy.put_block(key, block)

    def _all(self) -> dict[str, Any]:
        return {**self._numbers, **(self._known._all() if self._known is not None else {})}

    def _path(self, key: str, move: str = "") -> Path:
        assert self.folder is not None
        name = hashlib.sha256(f"{key} {rank()}/{world_size()}".encode()).hexdigest()[:24]
        return self.folder / _LOGITS / f"{name}{'-' if move else ''}{move}{SAFETENSORS}"


def _read_lines(path: Path) -> dict[str, Any]:
    """All lines that were written whole; a killed process can leave half of its last one, which is cut off."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content) and rank() == 0:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    numbers = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a line of a search ({error}). Name another folder for the search."
            ) from error
        numbers[key] = value
    return numbers


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def _read_block(path: Path) -> Block:
    tensors = load_file(path)
    moves = {
        file.stem.partition("-")[2]: load_file(file)["move"]
        for file in sorted(path.parent.glob(f"{path.stem}-*.safetensors"))
    }
    return Block(tensors["owners"], tensors["centre"], tensors["targets"], moves)
