"""Taking a distribution vector: two checkpoints walked tensor by tensor, no model built, memory that of one tensor.

    delta = finetuned - base        in float32, whatever the checkpoints' dtypes

Everything that does not fit is found from the headers and reported in one error before a byte is written.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dem_hub._version import __version__
from dem_hub.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config, factor_names
from dem_hub.architecture import Architecture, Module, read_config, refuse_quantised
from dem_hub.base import Base
from dem_hub.checkpoint import CODES, Checkpoint, TensorInfo, digest, is_finite
from dem_hub.codecs import Codec, to_dense
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.replace import Replace
from dem_hub.config import VECTOR_CONFIG, TensorRecord, VectorConfig
from dem_hub.errors import CheckpointError, refuse
from dem_hub.hub import Resolved, write_text
from dem_hub.index import Index, full_index, row_blocks
from dem_hub.records import BaseRecord
from dem_hub.shards import TensorWriter

VECTOR_STEM = "vector_model"
SEPARATOR = "::"  # between a checkpoint key and the name of a part
_BLOCK = 1 << 22
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class _Pair:
    """One tensor on both sides; `rows` counts those that only the fine-tune has."""

    base_key: str
    finetuned_key: str
    rows: int


def extract(folder: Path, base: Resolved, finetuned: Resolved, codec: Codec, max_shard_size: int | str = "5GB") -> VectorConfig:
    """Write the vector finetuned - base into a folder.

    Args:
        folder (`Path`): an empty folder.
        base, finetuned ([`Resolved`]): the two checkpoints, safetensors, sharded as they like.
        codec ([`Codec`]): how to store the deltas.
        max_shard_size (`int` or `str`): where to begin another file.

    Returns:
        [`VectorConfig`]: what was written.

    Raises:
        `CheckpointError`: a quantised or pickled checkpoint, tensors that differ in shape or that one side lacks, NaN or inf.
    """
    from huggingface_hub.utils import tqdm

    refuse_quantised(base.folder, "base")
    refuse_quantised(finetuned.folder, "fine-tune")
    ours, theirs = Base(base), Checkpoint(finetuned.folder)
    pairs = _match(ours.checkpoint, theirs)
    vector = _Writer(folder, codec, ours.architecture, max_shard_size)
    for pair in tqdm(pairs, desc="Extracting", unit="tensor", delay=1):
        record = _extract_tensor(vector, pair, ours, theirs)
        if record is not None:
            vector.tensors[pair.base_key] = record
    files = vector.close(ours.record)
    options = {name: value for name, value in vars(codec).items() if value is not None}
    libraries = {"dem_hub": __version__, "torch": version("torch"), "safetensors": version("safetensors")}
    config = VectorConfig(ours.record, codec.name, options, vector.tensors, files, str(finetuned.source), libraries=libraries)
    write_text(folder / VECTOR_CONFIG, config.to_json())
    return config


def _match(base: Checkpoint, finetuned: Checkpoint) -> list[_Pair]:
    """Pair the tensors of both sides by name, or refuse, naming each one that has no partner or another shape."""
    faults, pairs = [], []
    vocabularies = _vocabulary(base.path), _vocabulary(finetuned.path)
    for key in sorted(set(base) | set(finetuned)):
        finetuned_key = key
        if key not in finetuned:  # written out in the base, tied in the fine-tune: it follows the tensor it is tied to
            finetuned_key = _twin(base, key, finetuned) or key
        if key not in base:
            if _twin(finetuned, key, base) is None:
                faults.append(f"'{key}' {list(finetuned[key].shape)} is in the fine-tune only")
            continue  # written out in the fine-tune, tied in the base: nothing of its own
        if finetuned_key not in finetuned:
            faults.append(f"'{key}' {list(base[key].shape)} is in the base only")
            continue
        ours, theirs = base[key].shape, finetuned[finetuned_key].shape
        grown = len(ours) == len(theirs) > 0 and ours[1:] == theirs[1:] and theirs[0] > ours[0]
        grown = grown and base[key].torch_dtype.is_floating_point and (None in vocabularies or vocabularies == (ours[0], theirs[0]))
        if ours != theirs and not grown:
            faults.append(f"'{key}' is {list(ours)} in the base and {list(theirs)} in the fine-tune")
        elif base[key].torch_dtype.is_floating_point != finetuned[finetuned_key].torch_dtype.is_floating_point:
            faults.append(f"'{key}' is {base[key].dtype} in the base and {finetuned[finetuned_key].dtype} in the fine-tune")
        else:
            pairs.append(_Pair(key, finetuned_key, theirs[0] - ours[0] if grown else 0))
    if faults:
        refuse(
            CheckpointError,
            f"'{finetuned.path}' is not a fine-tune of '{base.path}': {len(faults)} tensors do not fit.",
            faults,
            "Name the base that this model was trained from. An untied or differently built model has no vector on this base.",
        )
    return pairs


def _vocabulary(folder: Path) -> int | None:
    """The size of a model's vocabulary, where its config says."""
    config = read_config(folder)
    return (config.get("text_config") or config).get("vocab_size")


def _twin(checkpoint: Checkpoint, key: str, other: Checkpoint) -> str | None:
    """Another tensor of the checkpoint with the same bits, known to the other side too: what `key` is tied to."""
    return next((name for name in checkpoint if name != key and name in other and checkpoint.is_copy(name, key)), None)


class _Writer:
    """The files of a vector: a PEFT adapter for the factors that fit in one, `vector_model` for the rest."""

    def __init__(self, folder: Path, codec: Codec, architecture: Architecture | None, max_shard_size: int | str) -> None:
        self.codec, self.architecture = codec, architecture
        self.tensors: dict[str, TensorRecord] = {}
        self._folder = folder
        self._rest = TensorWriter(folder, VECTOR_STEM, max_shard_size)
        self._factors = TensorWriter(folder, ADAPTER_WEIGHTS.removesuffix(".safetensors"), 1 << 62)
        self._ranks: dict[str, int] = {}

    def codec_for(self, key: str, info: TensorInfo) -> Codec:
        """The codec of one tensor: the user's where it can, else dense; buffers and integers are replaced."""
        if not info.torch_dtype.is_floating_point or (self.architecture is not None and key in self.architecture.buffers):
            return Replace()
        return Dense() if isinstance(self.codec, LowRank) and len(info.shape) != 2 else self.codec

    def write(self, key: str, codec: Codec, parts: Mapping[str, Tensor]) -> Module | None:
        """Write the parts; returns the module that they are the LoRA of, if there is one."""
        module = self.architecture.modules.get(key) if self.architecture is not None else None
        if codec.name == LowRank.name and module is not None and module.kind != "embedding":
            left, right = parts["left"], parts["right"]
            first, second = factor_names(module.name)
            self._factors.write(first, left.T if module.transposed else right)
            self._factors.write(second, right.T if module.transposed else left)
            self._ranks[module.name] = left.shape[1]
            return module
        for part, tensor in parts.items():
            self._rest.write(f"{key}{SEPARATOR}{part}", tensor)
        return None

    def write_rows(self, key: str, rows: Tensor) -> None:
        """Write the rows that the base lacks."""
        self._rest.write(f"{key}{SEPARATOR}rows", rows)

    def close(self, base: BaseRecord) -> dict[str, str]:
        """Finish the files; returns the sha256 of each, by name."""
        files = self._rest.close() + self._factors.close()
        if self._ranks:
            assert self.architecture is not None
            config = adapter_config(self.architecture, self._ranks, base.repo_id, base.commit)
            path = self._folder / ADAPTER_CONFIG
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
            files.append(path)
        return {path.name: digest(path) for path in files}


def _extract_tensor(vector: _Writer, pair: _Pair, base: Base, finetuned: Checkpoint) -> TensorRecord | None:
    """Encode one tensor; `None` where the fine-tune did not change it."""
    key, info = pair.base_key, base.checkpoint[pair.base_key]
    index = full_index(info.shape)
    old, new = base.checkpoint.read(key), finetuned.read(pair.finetuned_key, index)
    _check_finite(old, base.folder, key)
    _check_finite(new, finetuned.path, pair.finetuned_key)
    if pair.rows:
        rows = finetuned.read(pair.finetuned_key, (slice(info.shape[0], None), *index[1:]))
        _check_finite(rows, finetuned.path, pair.finetuned_key)
        vector.write_rows(key, rows)
    codec = vector.codec_for(key, info)
    record = TensorRecord(
        info.shape, info.dtype, codec.name, norm=0.0, relative_error=0.0, projection=1.0, base=base.digests[key], rows=pair.rows
    )
    if codec.name == Replace.name:  # integers: float32 does not tell all of them apart
        if bool((new == old).all()):
            return None
        vector.write(key, codec, {"replace": new})
        return record
    delta = new.to(torch.float32, copy=True).sub_(old)
    delta.clamp_(-_LARGEST, _LARGEST)  # between bf16's own extremes it overflows
    if not delta.any():
        return record if pair.rows else None
    parts = codec.encode(delta, old, new)
    norm, error, projection = _measure(codec, parts, delta, old, index)
    record = replace(record, norm=norm, relative_error=error, projection=projection)
    module = vector.write(key, codec, parts)
    return record if module is None else replace(record, module=module.name, transposed=module.transposed)


def _measure(codec: Codec, parts: Mapping[str, Any], delta: Tensor, base: Tensor, index: Index) -> tuple[float, float, float]:
    """|delta|, |decoded - delta| / |delta| and <decoded, delta> / |delta|^2, summed in float64 from what will be decoded."""
    lazy = {name: _InMemory(tensor) for name, tensor in parts.items()}
    squares, errors, products = 0.0, 0.0, 0.0
    for block in row_blocks(index, _BLOCK):
        part = base[block if block else ...]
        true = delta[block if block else ...]
        decoded = to_dense(codec.decode(lazy, part, block), part).double()
        products += float((decoded * true).sum())
        errors += float(decoded.sub_(true).square_().sum())
        squares += float(true.double().square_().sum())
    norm = math.sqrt(squares)
    return norm, math.sqrt(errors / squares), products / squares


@dataclass(frozen=True)
class _InMemory:
    """A tensor that answers like a lazy one."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return CODES[self.tensor.dtype]

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]


def _check_finite(tensor: Tensor, path: Path, key: str) -> None:
    if not is_finite(tensor):
        raise CheckpointError(f"'{key}' of '{path}' has NaN or inf in it. A model that diverged has no vector; use an earlier checkpoint.")
