"""The cache of a search: losses, statistics and logits that were measured, by what they were measured on.

A measurement is kept under a key of its coefficients (by the hashes of the vectors) and its data (by their hash). So
going on after a kill, adding a vector, adding a distribution and dropping either are the same thing: what is known is
not measured again. With a folder, every number is appended to a file as soon as it is known, as a line of JSON. Logits
are safetensors files, and by far the largest part: they go at the end of a search, unless they are to stay. Without a
folder, the cache is in memory.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dem_hub.checkpoints.writer import write_file
from dem_hub.errors import ConfigError
from dem_hub.evaluation.processes import rank, world_size
from dem_hub.files.atomic import atomic_file
from dem_hub.files.locks import locked
from dem_hub.files.names import MEASUREMENTS, SAFETENSORS
from dem_hub.search.measure.logits import Block

logger = logging.getLogger(__name__)

_LOGITS_FOLDER = "logits"

# Those of a search that has not ended, or was killed.
_UNFINISHED_FOLDER = "unfinished-logits"

# Hex digits in the name of a file of logits: 96 bits, which tell all keys of a search apart.
_NAME_DIGITS = 24


class MeasurementCache:
    """Numbers and logits by key.

    Args:
        folder (`str` or `os.PathLike`, *optional*): The folder they are written to, and read from if they are there.
            In memory by default.
        known ([`MeasurementCache`], *optional*): The cache of an earlier search. What it has costs nothing.
        keep_logits (`bool`, defaults to `False`): Whether logits stay in the folder when the search has ended.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the folder has a file of numbers that no search wrote, or logits are to stay
            and there is no folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        known: "MeasurementCache | None" = None,
        *,
        keep_logits: bool = False,
    ) -> None:
        if keep_logits and folder is None:
            raise ConfigError("keep_logits=True keeps logits in a cache, and there is none. Give cache='FOLDER', too.")
        self.folder = Path(folder) if folder is not None else None
        self.keep_logits = keep_logits
        self._known = known
        self._numbers: dict[str, Any] = {}
        self._blocks: dict[str, Block] = {}
        if self.folder is not None and (self.folder / MEASUREMENTS).is_file():
            self._numbers = _read_numbers(self.folder / MEASUREMENTS)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers or self.is_free(key)

    def __getitem__(self, key: str) -> Any:
        if self._known is not None and key in self._known:
            return self._known[key]
        return self._numbers[key]

    def __len__(self) -> int:
        return len(self._all_numbers())

    def count_own(self, parts: Collection[str]) -> int:
        """Return how many numbers in its folder, from before this search, have one of some texts in their keys."""
        return sum(any(part in key for part in parts) for key in self._numbers)

    def is_free(self, key: str) -> bool:
        """Return whether an earlier search has paid for a number.

        Numbers in this cache's own folder are this search's, from before it was killed.
        """
        return self._known is not None and key in self._known

    def put(self, key: str, value: Any) -> None:
        """Keep a value of JSON data."""
        self._numbers[key] = value
        if self.folder is not None and rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / MEASUREMENTS
            try:
                _append(path, json.dumps([key, value]) + "\n")
            except OSError as error:
                error.filename = error.filename or str(path)  # the system does not say where a write failed
                raise

    def block(self, key: str) -> Block | None:
        """Return the logits that this process has kept under a key, or `None`."""
        if key not in self._blocks and self.folder is not None:
            found = _read_block(self._file(key))
            if found is not None:
                self._blocks[key] = found
        if key not in self._blocks and self._known is not None:
            known_block = self._known.block(key)
            if known_block is not None:
                # A copy, so that this search's moves are not added to the earlier search.
                self.put_block(key, known_block.copy())
        return self._blocks.get(key)

    def put_block(self, key: str, block: Block) -> None:
        """Keep a block of logits with its moves. Moves that the block gets later are kept with `put_move`."""
        self._blocks[key] = block
        if self.folder is not None:
            _write(self._file(key), block.tensors())
            for name in block.moves:
                self.put_move(key, name)

    def put_move(self, key: str, name: str) -> None:
        """Keep a move that was added to the block of a key."""
        if self.folder is not None:
            _write(_file_of_move(self._file(key), name), {"move": self._blocks[key].moves[name]})

    def finish(self) -> None:
        """End a search: keep the logits in its folder, or remove them. Those of an earlier search stay as they are."""
        if self.folder is None:
            return
        unfinished = self.folder / _UNFINISHED_FOLDER
        for key in self._blocks:
            block = unfinished / self._name(key)
            for file in unfinished.glob(f"{block.stem}*"):
                if self.keep_logits:
                    kept = self.folder / _LOGITS_FOLDER / file.name
                    kept.parent.mkdir(exist_ok=True)
                    file.replace(kept)
                else:
                    file.unlink()
        with suppress(OSError):  # another search has files there, or there is none
            unfinished.rmdir()

    def save(self, folder: Path, *, with_logits: bool) -> None:
        """Write everything to another folder. Logits are large, and are written only if asked for."""
        copy = MeasurementCache(folder, keep_logits=True)
        for key, value in self._all_numbers().items():
            if key not in copy:
                copy.put(key, value)
        if with_logits:
            self._save_logits(copy)
            copy.finish()

    def _save_logits(self, copy: "MeasurementCache") -> None:
        """Write the logits to another cache, those on disk first: a block in memory may have got moves since."""
        assert copy.folder is not None
        if self._known is not None:
            self._known._save_logits(copy)
        is_same = self.folder is not None and self.folder.resolve() == copy.folder.resolve()
        if self.folder is not None and not is_same:
            for name in (_UNFINISHED_FOLDER, _LOGITS_FOLDER):
                for file in sorted((self.folder / name).glob(f"*{SAFETENSORS}")):
                    place = copy.folder / _LOGITS_FOLDER / file.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_file(place, shared=True) as partial:
                        shutil.copyfile(file, partial)
        for key, block in self._blocks.items():
            if not (is_same and copy._file(key).is_file()):
                copy.put_block(key, block)

    def _all_numbers(self) -> dict[str, Any]:
        if self._known is None:
            return dict(self._numbers)
        return {**self._numbers, **self._known._all_numbers()}

    def _file(self, key: str) -> Path:
        """Return the file of a block: among those that stay, if it is there."""
        assert self.folder is not None
        kept = self.folder / _LOGITS_FOLDER / self._name(key)
        return kept if kept.is_file() else self.folder / _UNFINISHED_FOLDER / self._name(key)

    def _name(self, key: str) -> str:
        """Return the name of a block's file. Each process has files of its own."""
        digits = hashlib.sha256(f"{key} {rank()}/{world_size()}".encode()).hexdigest()[:_NAME_DIGITS]
        return f"{digits}{SAFETENSORS}"


def _file_of_move(block: Path, name: str) -> Path:
    return block.with_name(f"{block.stem}-{name}{SAFETENSORS}")


def _files_of_moves(block: Path) -> list[Path]:
    return sorted(block.parent.glob(f"{block.stem}-*{SAFETENSORS}"))


def _append(path: Path, line: str) -> None:
    """Append a line to a file that other searches may append to as well.

    Half a line at the end, which a killed process or a full disk left, is cut off first.
    """
    with locked(path.parent.resolve() / path.name), path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def _read_numbers(path: Path) -> dict[str, Any]:
    """Read all complete lines. Half a line at the end is of a process that was killed, or is writing."""
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    numbers = {}
    for number, line in enumerate(complete.splitlines(), 1):
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
    write_file(path, tensors)


def _read_block(path: Path) -> Block | None:
    """Read a block and its moves; `None` if it is not there, or damaged, and has to be measured again."""
    try:
        tensors = load_file(path)
        moves = {}
        for file in _files_of_moves(path):
            name = file.stem.partition("-")[2]
            moves[name] = load_file(file)["move"]
        return Block.of_tensors(tensors, moves)
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError) as error:
        logger.warning("The logits in '%s' are damaged (%s), and are measured again.", path, error)
        return None
