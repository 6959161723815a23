"""A planned merged model: its files and their sizes, known from the inputs' headers.

No weights are read to make a plan, and writing can start at any block. So everything that can be refused is refused
before the first byte is written, an estimate needs no weights, and an export that was interrupted goes on where it
stopped.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dem_hub._version import __version__
from dem_hub.checkpoints.lazy import CODES, DTYPES
from dem_hub.checkpoints.writer import Block, Outline, Shard, plan_shards, shard_index, write_shard
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.files.names import PROVENANCE_CONFIG
from dem_hub.merging.exported_files import config_texts, copied_files, float_dtype, tokenizer_texts
from dem_hub.merging.merge import Merge
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.numerics.passes import compiler_version
from dem_hub.numerics.slices import full_index, index_shape

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PlannedModel:
    """A merged model that is not written yet: the sum, its dtype (`None`: each tensor's own), and its files."""

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
        """Plan the model of a recipe, and check everything that can be refused before weights are read or written.

        Args:
            opened ([`OpenedRecipe`]): The recipe with its base and vectors.
            dtype (`str`, *optional*): `"float32"`, `"float16"` or `"bfloat16"`. Defaults to the recipe's, and to each
                tensor's own if the recipe has none.
            max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Largest file of weights before another
                one begins.
            allow_base_mismatch (`bool`, *optional*, defaults to `False`): Accept a base that the vectors were not
                taken from; see [`DEMModel.from_pretrained`].

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the dtype is unknown.
            [`~dem_hub.errors.DemHubError`]: What [`Merge.of`] raises.
        """
        dtype = dtype or opened.recipe.dtype
        torch_dtype = float_dtype(dtype)
        merge = opened.merge(opened.recipe, allow_base_mismatch=allow_base_mismatch)
        outlines = [
            Outline(name, CODES[merge.dtype(name, torch_dtype)], merge.shape(name)) for name in sorted(merge.base)
        ]
        return cls(opened, merge, dtype, tuple(plan_shards(outlines, max_shard_size=max_shard_size)))

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype as an object of torch."""
        return float_dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def index(self) -> dict[str, str]:
        """The name and the text of the weights' index; empty if the weights are one file."""
        return shard_index(self.shards)

    @property
    def last_file(self) -> str:
        """The file without which nothing loads as a model: the index of the weights, or their only file."""
        return next(iter(self.index), self.shards[0].name)

    @cached_property
    def copies(self) -> dict[str, Path]:
        """The base's files that are copied, by path; see [`copied_files`]."""
        return copied_files(self.opened.base)

    @cached_property
    def purpose(self) -> str:
        """A hash of everything that decides about the bytes of the model.

        These are the recipe, the contents of base and vectors, the dtype, the division into files, and the versions
        of the libraries that compute. Only an interrupted export with the same hash is resumed.
        """
        decisive = [
            self.opened.recipe.to_dict(),
            self.opened.base.record.fingerprint,
            [vector.sha256 for vector in self.opened.vectors],
            self.dtype,
            {shard.name: len(shard.outlines) for shard in self.shards},
            __version__,
            torch.__version__,
            compiler_version(),
            {text: asdict(token) for text, token in self.merge.tokens.merged.items()},
        ]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def write(self, file: Path, shard: Shard, start: int = 0) -> Iterator[int]:
        """Merge one file of the weights and write it.

        Args:
            file (`Path`): The file.
            shard ([`Shard`]): Which of the model's files it is.
            start (`int`, *optional*, defaults to 0): Bytes of the tensors that the file has already. A block must
                begin there.

        Yields:
            `int`: After each block, the number of bytes up to which all of the tensors are in the file.

        Raises:
            [`~dem_hub.errors.CheckpointError`]: If the base or the merged weights have NaN or inf.
        """
        if self.opened.remotes:
            raise AssertionError(f"'{self.opened.base}' was opened for its headers only")
        return write_shard(file, shard, self._blocks(shard, start), start)

    def _blocks(self, shard: Shard, start: int) -> Iterator[Block]:
        """Yield where each block of a file begins and what computes it, leaving out those that end before `start`."""
        position = 0
        for outline in shard.outlines:
            itemsize = DTYPES[outline.dtype].itemsize
            for part in self.merge.blocks(outline.name, full_index(outline.shape), _CPU):
                begin = position
                position += itemsize * math.prod(index_shape(part))
                if position > start:
                    yield begin, partial(self.merge.tensor, outline.name, part, _CPU, self.torch_dtype)

    def texts(self, folder: Path | None = None) -> dict[str, str]:
        """Return the model's config and its recipe, and the files of a tokenizer with more tokens, by file name.

        Args:
            folder (`Path`, *optional*): Folder that they are written to. Folders that the recipe refers to are
                written relative to it.
        """
        texts = tokenizer_texts(self.opened.base, self.merge)
        texts[PROVENANCE_CONFIG] = replace(self.opened.recipe, dtype=self.dtype).to_json(folder)
        return {**texts, **config_texts(self.opened.base, self.merge, self.dtype)}


def merging_bar(nbytes: int, start: int = 0) -> "tqdm":
    """Return a progress bar over the bytes of a model's tensors, the first `start` of which are written already."""
    from huggingface_hub.utils import tqdm

    return tqdm(total=nbytes, initial=start, desc="Merging", unit="B", unit_scale=True, delay=1)
