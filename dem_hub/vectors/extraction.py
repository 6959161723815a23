"""Extraction of a distribution vector: two checkpoints are read tensor by tensor, and no model is built.

    delta = finetuned - base        in float32, whatever the checkpoints' dtypes

Memory is that of a few tensors, whatever the size of the model. Everything that does not fit is found from the
headers and reported in one error, before a byte is written.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from dem_hub._version import __version__
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import refuse_quantized, refuse_quantized_tensors
from dem_hub.checkpoints.opening import open_base
from dem_hub.checkpoints.reader import Checkpoint, TensorSource
from dem_hub.checkpoints.tokenizer import Token, Vocabulary, new_tokens
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.encoder import Encoder, TensorEncoder
from dem_hub.codecs.measure import measure
from dem_hub.codecs.whole import Replace
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.errors import CheckpointError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import SAFETENSORS, VECTOR_CONFIG
from dem_hub.hub.download import Resolved
from dem_hub.numerics.precision import device_with_float64
from dem_hub.numerics.threads import in_order
from dem_hub.vectors.config import TensorRecord, VectorConfig
from dem_hub.vectors.glances import look_over
from dem_hub.vectors.inputs import refuse_what_is_no_model, warn_of_modules
from dem_hub.vectors.matching import Pair, match_tensors
from dem_hub.vectors.sides import Sides, subtract
from dem_hub.vectors.writer import EncodedTensor, VectorWriter

# Elements of all tensors that are encoded at once on the CPU: 512 MiB, at about 32 bytes an element with all
# temporaries.
_ENCODED_AT_ONCE = 1 << 24


def extract(
    folder: Path,
    base: Resolved,
    finetuned: Resolved,
    encoder: Encoder,
    *,
    device: str | torch.device | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> VectorConfig:
    """Write the vector finetuned - base into a folder.

    Args:
        folder (`Path`): an empty folder.
        base, finetuned ([`Resolved`]): the two checkpoints, in safetensors files, sharded in any way. The base may be a
            recipe.
        encoder ([`Encoder`]): what chooses a codec for each tensor; see [`encoder_from_name`].
        device (`str` or `torch.device`, *optional*): the device that encodes; by default the accelerator, if there is
            one.
        max_shard_size (`int` or `str`): the size from which another file is begun.

    Returns:
        [`VectorConfig`]: what was written.

    Raises:
        `CheckpointError`: one side is a vector or an adapter, or the fine-tune a recipe; a checkpoint is quantized or
            pickled; tensors differ in shape, or are missing on one side, or have NaN or inf.
        `CodecError`: the vector does not fit in the budget.
        `ConfigError`: the device has no float64.
    """
    refuse_what_is_no_model(base, finetuned)
    refuse_quantized(base.folder, "base")
    refuse_quantized(finetuned.folder, "fine-tune")
    opened = open_base(base)
    tensors = Checkpoint(finetuned.folder)
    refuse_quantized_tensors(opened.checkpoint, base.folder, "base")
    refuse_quantized_tensors(tensors, finetuned.folder, "fine-tune", base=opened.checkpoint)
    warn_of_modules(opened, finetuned)
    return extract_tensors(
        folder,
        opened,
        tensors,
        encoder,
        finetuned=str(finetuned.source.absolute),
        vocabulary=Vocabulary.read(finetuned.folder),
        device=device,
        max_shard_size=max_shard_size,
    )


def extract_tensors(  # noqa: PLR0913  the fine-tune is its tensors, its name and its tokens
    folder: Path,
    base: Base,
    tensors: TensorSource,
    encoder: Encoder,
    *,
    finetuned: str | None = None,
    vocabulary: Vocabulary | None = None,
    device: str | torch.device | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> VectorConfig:
    """Write the vector tensors - base into a folder. The fine-tune need not be on disk. See [`extract`].

    Args:
        folder (`Path`): an empty folder.
        base ([`Base`]): the base, opened.
        tensors ([`TensorSource`]): the fine-tune's tensors, under the names that they have on disk.
        encoder, device, max_shard_size: as in [`extract`].
        finetuned (`str`, *optional*): the name of the fine-tune, for messages and for the vector's config.
        vocabulary ([`Vocabulary`], *optional*): the tokens of the fine-tune's tokenizer.
    """
    sides = Sides(base, tensors, device_with_float64(device))
    pairs = match_tensors(base, tensors)
    tensor_encoder = encoder.prepare(partial(look_over, pairs, sides, finetuned))
    writer = VectorWriter(folder, base.architecture, max_shard_size)
    for encoded in _encode_all(pairs, sides, tensor_encoder):
        writer.write(encoded)
        del encoded  # otherwise it would stay in memory next to the following tensor
    files = writer.close(base.record, is_for_size=encoder.options.is_for_size)
    base.checkpoint.check_unchanged()
    if isinstance(tensors, Checkpoint):
        tensors.check_unchanged()
    nbytes = sum((folder / name).stat().st_size for name in files if name.endswith(SAFETENSORS))
    config = VectorConfig(
        base=base.record,
        codec=encoder.options.name,
        codec_options=encoder.options.to_dict(),
        tensors=writer.tensors,
        files=files,
        finetuned=finetuned,
        choice=tensor_encoder.explain(writer.tensors, nbytes),
        tokens=_new_tokens(vocabulary, base, pairs),
        libraries={"dem_hub": __version__, "torch": version("torch"), "safetensors": version("safetensors")},
    )
    write_text(folder / VECTOR_CONFIG, config.to_json())
    return config


def _new_tokens(vocabulary: Vocabulary | None, base: Base, pairs: Sequence[Pair]) -> dict[str, Token] | None:
    """Return the tokens that the fine-tune has and the base lacks."""
    if vocabulary is None:
        return None
    grown = [pair for pair in pairs if pair.rows]
    base_rows = max([base.vocabulary_rows, *(base.checkpoint[pair.base_key].shape[0] for pair in grown)])
    rows = base_rows + max((pair.rows for pair in grown), default=0)
    return new_tokens(vocabulary, base.vocabulary, rows=rows, base_rows=base_rows)


@dataclass(frozen=True)
class _ReadPair:
    """A tensor that was read on both sides, with the rows that only the fine-tune has."""

    pair: Pair
    old: Tensor
    new: Tensor
    new_rows: Tensor | None


def _encode_all(pairs: Sequence[Pair], sides: Sides, encoder: TensorEncoder) -> Iterator[EncodedTensor]:
    """Encode the tensors that changed, in order.

    On the CPU, small tensors are encoded side by side, each on one core. Short operations use cores better that way
    than split among them. This thread does the reading, so that a sharded model is gathered in the same order on
    every rank.
    """
    from huggingface_hub.utils import tqdm

    largest_small = 0
    if sides.device.type == "cpu":
        largest_small = _ENCODED_AT_ONCE // torch.get_num_threads()

    def is_small(pair: Pair) -> bool:
        return math.prod(sides.shape(pair)) <= largest_small

    def read(pair: Pair) -> _ReadPair:
        old, new = sides.read(pair)
        return _ReadPair(pair, old, new, sides.read_new_rows(pair))

    def encode(tensor: _ReadPair) -> EncodedTensor | None:
        return _encode_tensor(tensor, sides, encoder)

    for run_is_small, run in groupby(tqdm(pairs, desc="Extracting", unit="tensor", delay=1), is_small):
        if run_is_small:
            encoded = in_order(encode, map(read, run))
        else:
            encoded = map(encode, map(read, run))
        # Unlike a loop with a variable, this keeps no tensor in memory while the next one is made.
        yield from filter(None, encoded)


def _encode_tensor(tensor: _ReadPair, sides: Sides, encoder: TensorEncoder) -> EncodedTensor | None:
    """Encode one tensor, or return `None` if the fine-tune did not change it."""
    pair = tensor.pair
    key = pair.base_key
    info = sides.base.checkpoint[key]
    sides.check_finite(pair, tensor.old, tensor.new)
    # The record of a tensor that did not change but for new rows.
    record = TensorRecord(
        shape=info.shape,
        dtype=info.dtype,
        codec=Dense.name,
        norm=0.0,
        relative_error=0.0,
        projection=1.0,
        base=sides.base.digests[key],
        rows=pair.rows,
    )
    if sides.is_replaced(key):
        return _encode_replaced(tensor, record)
    delta = subtract(tensor.new, tensor.old)
    if _is_unchanged(tensor, delta):
        return EncodedTensor(key, record, None, {}, tensor.new_rows) if pair.rows else None
    codec, parts = encoder.encode(key, delta, tensor.old, tensor.new)
    accuracy = measure(codec, parts, delta, tensor.old)
    record = replace(
        record,
        codec=codec.name,
        options=codec.to_dict(),
        norm=accuracy.norm,
        relative_error=accuracy.error,
        projection=accuracy.projection,
    )
    return EncodedTensor(key, record, codec, parts, tensor.new_rows)


def _is_unchanged(tensor: _ReadPair, delta: Tensor) -> bool:
    if tensor.new.dtype == tensor.old.dtype:
        return torch.equal(tensor.new, tensor.old)
    return not delta.any()


def _encode_replaced(tensor: _ReadPair, record: TensorRecord) -> EncodedTensor | None:
    """Encode a buffer or whole numbers.

    They are compared as they are, because float32 does not tell all whole numbers apart.
    """
    key = tensor.pair.base_key
    if tensor.pair.rows:
        raise CheckpointError(
            f"'{key}' is {list(record.shape)} in the base and has {tensor.pair.rows} more rows in the fine-tune, "
            "and is no parameter."
        )
    if bool((tensor.new == tensor.old).all()):
        return None
    codec = Replace()
    return EncodedTensor(key, replace(record, codec=codec.name), codec, {"replace": tensor.new})
