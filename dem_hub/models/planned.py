"""A merged model to come: all of its files are known from headers, and its tensors can be had from any byte on."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import torch

from dem_hub._version import __version__
from dem_hub.checkpoints.lazy import CODES
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.writer import Block, Outline, Shard, plan_shards, shard_index, write_shard
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.errors import ConfigError
from dem_hub.files.names import PROVENANCE_CONFIG, RECIPE_CONFIG, SIDE_FILES
from dem_hub.files.strict_json import dump_json
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import OpenedRecipe
from dem_hub.numerics.slices import full_index, index_shape

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PlannedModel:
    """What a recipe's sum will be on the disk: its dtype (`None`: each tensor's own), and the files of its weights."""

    opened: OpenedRecipe
    merge: Merge
    dtype: str | None
    shards: tuple[Shard, ...]

    @classmethod
    def of(
        cls,
        opened: OpenedRecipe,
        *,
        dtype: str | None = None,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        allow_base_mismatch: bool = False,
    ) -> "PlannedModel":
        """Check all that can be refused before anything is read or written.

        Args:
            opened ([`OpenedRecipe`]): the recipe with its base and vectors.
            dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`; the recipe's by default, else each tensor's own.
            max_shard_size (`int` or `str`): where to begin another file.
            allow_base_mismatch (`bool`): see [`DEMModel.from_pretrained`].

        Raises:
            `ConfigError`: an unknown dtype. Everything that [`Merge.of`] raises.
        """
        chosen = dtype or opened.recipe.dtype
        if chosen is not None and chosen not in _DTYPES:
            raise ConfigError(f"dtype is '{chosen}'; choose one of {', '.join(_DTYPES)}.")
        merge = opened.merge(opened.recipe, allow_base_mismatch=allow_base_mismatch)
        wanted = _DTYPES[chosen] if chosen is not None else None
        outlines = [Outline(name, CODES[merge.dtype(name, wanted)], merge.shape(name)) for name in sorted(merge.base)]
        return cls(opened, merge, chosen, tuple(plan_shards(outlines, max_shard_size=max_shard_size)))

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype as torch has it."""
        return _DTYPES[self.dtype] if self.dtype is not None else None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def index(self) -> dict[str, str]:
        """The name and text of the index of its weights; empty where they are one file."""
        return shard_index(self.shards)

    @property
    def last(self) -> str:
        """The file with which it is whole: the index, or the only file of weights."""
        return next(iter(self.index), self.shards[0].name)

    @property
    def copies(self) -> dict[str, Path]:
        """The base's files that come along; its own code, where it has some, runs only if the user trusts it."""
        folder = self.opened.base.folder
        found = [*(folder / name for name in SIDE_FILES), *sorted(folder.glob("*.py"))]
        return {path.name: path for path in found if path.is_file()}

    @cached_property
    def purpose(self) -> str:
        """A hash of all that decides about its bytes: the recipe, what base and vectors turned out to be, files, and libraries."""
        base, vectors = self.opened.base.record.fingerprint, [vector.sha256 for vector in self.opened.vectors]
        files = {shard.name: len(shard.outlines) for shard in self.shards}
        decides = [
            self.opened.recipe.to_dict(),
            base,
            vectors,
            self.dtype,
            files,
            __version__,
            torch.__version__,
            numba.__version__,
        ]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def write(self, file: Path, shard: Shard, start: int = 0) -> Iterator[int]:
        """Merge one file of the weights and write it, from a byte on that a block begins at; see [`write_shard`].

        Raises:
            `CheckpointError`: NaN or inf in the base or after the merge.
        """
        if self.opened.remotes:
            raise AssertionError(f"'{self.opened.base}' was opened for its headers only")
        return write_shard(file, shard, self._blocks(shard, start), start)

    def _blocks(self, shard: Shard, start: int) -> Iterator[Block]:
        position = 0
        for outline in shard.outlines:
            itemsize = outline.nbytes // max(1, math.prod(outline.shape))
            for part in self.merge.blocks(outline.name, full_index(outline.shape), _CPU):
                begin, position = position, position + itemsize * math.prod(index_shape(part))
                if position > start:
                    yield begin, partial(self.merge.tensor, outline.name, part, _CPU, self.torch_dtype)

    def texts(self, folder: Path | None = None) -> dict[str, str]:
        """Its config and its recipe, in which paths of this machine are written relative to the folder that it is for."""
        provenance = replace(self.opened.recipe, dtype=self.dtype).to_dict(folder)
        config = self._model_config()
        return {PROVENANCE_CONFIG: _json(provenance)} | ({RECIPE_CONFIG: _json(config)} if config else {})

    def _model_config(self) -> dict[str, Any]:
        """The base's `config.json`, with the merged dtype and the size of a grown vocabulary."""
        config = read_config(self.opened.base.folder)
        if not config:
            return {}
        if self.dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = self.dtype
        if self.merge.vocabulary is not None:
            owner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
            owner["vocab_size"] = self.merge.vocabulary
        return config


def merging_bar(nbytes: int, start: int = 0) -> "tqdm":
    """Progress through the bytes of a model's tensors, of which the first are there."""
    from huggingface_hub.utils import tqdm

    return tqdm(total=nbytes, initial=start, desc="Merging", unit="B", unit_scale=True, delay=1)


def _json(data: dict[str, Any]) -> str:
    return dump_json(data)
