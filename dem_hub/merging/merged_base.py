"""A recipe as a base: its tensors are merged when they are read, and are bit for bit those of its export.

Sums differ in their last bits with the size of what is summed at a time. So a tensor is merged in the blocks of rows
that an export merges, whatever slice is asked for, and always on the CPU. The last few blocks are kept, since what is
asked for is often a part of one. A model is never whole in memory, and nothing but small files is on the disk.
"""

import hashlib
import json
import math
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.fingerprint import values_digest
from dem_hub.checkpoints.lazy import CODES, Computed, LazyTensor
from dem_hub.checkpoints.reader import TensorInfo, Tensors
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.download import Resolved, module_weights
from dem_hub.hub.references import BaseRecord
from dem_hub.hub.remote import RemoteWeights
from dem_hub.merging.exported_files import (
    config_texts,
    copied_files,
    float_dtype,
    tokenizer_texts,
    write_small_files,
)
from dem_hub.numerics.slices import Index, full_index, index_shape
from dem_hub.numerics.threads import in_order, most_held

if TYPE_CHECKING:
    from dem_hub.merging.opened_recipe import OpenedRecipe

_CPU = torch.device("cpu")

# The digests of recipes that were merged in this process, by the hash of all that decides about them. A model that is
# loaded and then changed in place opens its recipe twice.
_DIGESTS: dict[str, dict[str, str]] = {}


class MergedTensors(Tensors):
    """The tensors of an opened recipe, with the shapes, dtypes and bits that its export has."""

    def __init__(self, opened: "OpenedRecipe", path: Path) -> None:
        """Check that the recipe's vectors fit its base. Nothing is merged before it is read."""
        self.path = path
        self.merge = opened.merge(opened.recipe)
        self.opened = opened
        self._dtype = float_dtype(opened.recipe.dtype)
        self._infos = {name: self._info(name) for name in self.merge.base}
        self._blocks: dict[str, list[Index]] = {}
        self._block = lru_cache(maxsize=most_held())(self._merge_block)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def lazy(self, name: str) -> LazyTensor:
        """Return the tensor as a safetensors slice: it is merged when it is indexed."""
        info = self[name]
        return Computed(info.shape, info.dtype, partial(self.part, name))

    def check_unchanged(self) -> None:
        """Check that base and vectors are still the files that were opened."""
        self.opened.check_unchanged()

    def part(self, name: str, index: Index) -> Tensor:
        """Return a slice of a merged tensor, on the CPU. Do not write into it."""
        blocks = self._blocks_of(name)
        if not index:
            return self._block(name, 0)
        rows, *columns = index
        parts = []
        for number, block in enumerate(blocks):
            start = max(rows.start, block[0].start)
            stop = min(rows.stop, block[0].stop)
            if start < stop:
                parts.append((number, (slice(start - block[0].start, stop - block[0].start), *columns)))
        if len(parts) == 1:
            number, inside = parts[0]
            return self._block(name, number)[inside].contiguous()
        result = torch.empty(index_shape(index), dtype=self[name].torch_dtype, device=_CPU)
        filled = 0
        for number, inside in parts:
            values = self._block(name, number)[inside]
            result[filled : filled + len(values)] = values
            filled += len(values)
        return result

    def whole(self, name: str) -> Tensor:
        """Return a merged tensor, its blocks computed on all cores."""
        info = self[name]
        blocks = self._blocks_of(name)
        result = torch.empty(info.shape, dtype=info.torch_dtype, device=_CPU)
        computed = in_order(lambda number: self._merge_block(name, number), range(len(blocks)))
        for block, values in zip(blocks, computed, strict=True):
            result[block if block else ...] = values
        return result

    def _info(self, name: str) -> TensorInfo:
        dtype = self.merge.dtype(name, self._dtype)
        shape = self.merge.shape(name)
        return TensorInfo(CODES[dtype], shape, self.path, 0, dtype.itemsize * math.prod(shape))

    def _blocks_of(self, name: str) -> list[Index]:
        """Return the blocks in which an export merges a tensor."""
        if name not in self._blocks:
            self._blocks[name] = self.merge.blocks(name, full_index(self[name].shape), _CPU)
        return self._blocks[name]

    def _merge_block(self, name: str, number: int) -> Tensor:
        return self.merge.tensor(name, self._blocks_of(name)[number], _CPU, self._dtype)


class MergedBase(Base):
    """A recipe as a base. Its folder is a temporary one, with the files that its export has beside the weights.

    `recipe_source` is where the recipe itself was found.
    """

    def __init__(self, resolved: Resolved, opened: "OpenedRecipe") -> None:
        """Take an opened recipe as a base.

        Args:
            resolved ([`Resolved`]): Where the recipe was found.
            opened ([`OpenedRecipe`]): The recipe with its base and its vectors.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the recipe's dtype is one that a merge cannot write.
            [`~dem_hub.errors.DemHubError`]: What [`Merge.of`] raises.
        """
        self.recipe_source = resolved
        self._opened = opened
        self._tensors = MergedTensors(opened, resolved.folder)
        merge = self._tensors.merge
        texts = tokenizer_texts(opened.base, merge)
        self._small_files = frozenset({*opened.base.side_files, *texts})
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            texts |= config_texts(opened.base, merge, opened.recipe.dtype)
            write_small_files(folder, copied_files(opened.base), texts)
            super().__init__(replace(resolved, folder=folder), self._tensors)
            weakref.finalize(self, stack.pop_all().close)

    @property
    def remotes(self) -> list[RemoteWeights]:
        """Weights of its own base and vectors that are still on the Hub."""
        return self._opened.remotes

    @property
    def inputs(self) -> dict[str, Path]:
        """Its own folder, and those that the recipe is merged from."""
        below = {f"{what} of the recipe '{self.source}'": folder for what, folder in self._opened.inputs.items()}
        return {"the base": self.recipe_source.folder, **below}

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest that each tensor has in an export, by name. All of them are merged for this, one at a time."""
        key = self._contents()
        if key not in _DIGESTS:
            digests = {}
            for name, info in self._tensors.items():
                digests[name] = values_digest(self._tensors.whole(name), info, full=self._hashes_all)
            self.checkpoint.check_unchanged()
            _DIGESTS[key] = digests
        return _DIGESTS[key]

    def digest(self, name: str) -> str | None:
        """Return the digest of one tensor; `None` while weights are on the Hub, as a sum has no *places* to fetch."""
        return None if self.remotes else self.digests[name]

    @cached_property
    def side_files(self) -> dict[str, Path]:
        """The files that its export has beside the weights and the config, without code, by their paths."""
        return {name: self.folder / name for name in sorted(self._small_files)}

    @cached_property
    def module_weights(self) -> dict[str, list[Path]]:
        """The weights of sentence-transformers' modules, which its folder has as an export has them."""
        return module_weights(Resolved.local(self.folder))

    @property
    def record(self) -> BaseRecord:
        """The recipe as vectors and recipes name it, with the fingerprint of its export."""
        record = super().record
        if self.commit is None:
            return replace(record, repo_id=str(self.recipe_source.folder.resolve()))
        return record

    def _contents(self) -> str:
        """Return a hash of all that decides about the bits of the merged tensors."""
        recipe = self._opened.recipe
        merge = self._tensors.merge
        decisive = [
            self._opened.base.fingerprint,
            [(term.sha256, term.name, term.coefficient) for term in merge.terms],
            {text: asdict(token) for text, token in merge.tokens.placed.items()},
            recipe.dtype,
            recipe.rounding,
            recipe.rounding_seed,
            None if recipe.base_quantized is None else recipe.base_quantized.to_dict(),
            self._hashes_all,
        ]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _are_equal(self, key: str, other: str) -> bool:
        """Check whether two tensors are the same; while weights are on the Hub, whether they are so below."""
        if self.remotes:
            return self._opened.base._are_equal(key, other)
        return super()._are_equal(key, other)
