"""Extraction of a distribution vector: two checkpoints are read tensor by tensor, and no model is built.

    delta = finetuned - base        in float32, whatever the checkpoints' dtypes

Memory is that of a few tensors, whatever the size of the model. Everything that does not fit is found from the
headers and reported in one error, before a byte is written.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from dem_hub.codecs.auto.budget import SMALL
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.encoder import Encoder, TensorEncoder
from dem_hub.codecs.first_look import FirstLook, Glance
from dem_hub.codecs.measure import measure
from dem_hub.codecs.whole import Replace
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.errors import CheckpointError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import SAFETENSORS, VECTOR_CONFIG
from dem_hub.hub.download import Resolved
from dem_hub.numerics.norms import is_finite, squared_norm
from dem_hub.numerics.precision import device_with_float64
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.threads import in_order
from dem_hub.vectors.config import TensorRecord, VectorConfig
from dem_hub.vectors.inputs import refuse_what_is_no_model, warn_of_modules
from dem_hub.vectors.matching import Pair, match_tensors, vocabulary_size
from dem_hub.vectors.writer import EncodedTensor, VectorWriter

logger = logging.getLogger(__name__)

# Elements of all tensors that are encoded at once on the CPU: 512 MiB, at about 32 bytes an element with all
# temporaries.
_ENCODED_AT_ONCE = 1 << 24

# Norm of the delta, relative to that of the weights it changes, from which a warning says that the two are hardly
# base and fine-tune. Fine-tunes change a few hundredths (0.2 % of SmolLM2's matrices, 1.2 % from Qwen2.5-7B to its
# Instruct model).
_UNLIKE = 0.5

# The first look reads every 8th row of a large tensor. Chosen by hand: the reading is an eighth, and root mean
# squares need no more rows.
_GLANCE_STEP = 8

_LARGEST = torch.finfo(torch.float32).max


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
        `CheckpointError`: one side is a vector or an adapter, or the fine-tune a recipe; a checkpoint is quantized or pickled; tensors
            differ in shape, or are missing on one side, or have NaN or inf.
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
    sides = _Sides(base, tensors, device_with_float64(device))
    pairs = match_tensors(base, tensors)

    def first_look() -> FirstLook:
        glances = _glance(pairs, sides)
        _warn_if_unlike(glances, base, finetuned)
        return FirstLook(glances, _count_reserved_bytes(pairs, sides))

    tensor_encoder = encoder.prepare(first_look)
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
class _Sides:
    """The two checkpoints, and the device on which their tensors are compared."""

    base: Base
    finetuned: TensorSource
    device: torch.device

    def is_replaced(self, key: str) -> bool:
        """Return whether a tensor is no delta that can be scaled: a buffer, or whole numbers."""
        if not self.base.checkpoint[key].torch_dtype.is_floating_point:
            return True
        architecture = self.base.architecture
        return architecture is not None and key in architecture.buffers

    def shape(self, pair: Pair) -> tuple[int, ...]:
        """Return the shape of the base's tensor."""
        return self.base.checkpoint[pair.base_key].shape

    def read(self, pair: Pair, step: int = 1) -> tuple[Tensor, Tensor]:
        """Return the base's tensor, and the fine-tune's without its new rows; only every `step`th row of both."""
        old = self.base.checkpoint.read(pair.base_key)
        new = self.finetuned.read(pair.finetuned_key, full_index(self.shape(pair)))
        if old.ndim:
            old = old[::step]
            new = new[::step]
        return old.to(self.device), new.to(self.device)

    def check_finite(self, pair: Pair, old: Tensor, new: Tensor) -> None:
        """Refuse a base or a fine-tune that diverged."""
        _check_finite(old, self.base.checkpoint.path, pair.base_key)
        _check_finite(new, self.finetuned.path, pair.finetuned_key)

    def read_new_rows(self, pair: Pair) -> Tensor | None:
        """Return the rows that the base lacks, or `None` if there are none."""
        if not pair.rows:
            return None
        rows, *others = self.shape(pair)
        new_rows = self.finetuned.read(pair.finetuned_key, (slice(rows, None), *full_index(others)))
        _check_finite(new_rows, self.finetuned.path, pair.finetuned_key)
        return new_rows


@dataclass(frozen=True)
class _ReadPair:
    """A tensor that was read on both sides, with the rows that only the fine-tune has."""

    pair: Pair
    old: Tensor
    new: Tensor
    new_rows: Tensor | None


def _subtract(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return finetuned - base in float32, without a copy of the base."""
    delta = finetuned.to(torch.float32, copy=True).sub_(base)
    # The difference of two extreme values of bfloat16 overflows.
    return delta.clamp_(-_LARGEST, _LARGEST)


def _glance(pairs: Sequence[Pair], sides: _Sides) -> dict[str, Glance]:
    """Return a first look at every tensor that changed and is a delta, by the base's key."""
    vocabulary = vocabulary_size(sides.base.folder)
    glances = {}
    for pair in _progress(pairs, "Comparing"):
        if sides.is_replaced(pair.base_key):
            continue
        shape = sides.shape(pair)
        steps = (_GLANCE_STEP, 1) if math.prod(shape) > SMALL else (1,)
        for step in steps:
            old, new = sides.read(pair, step)
            sides.check_finite(pair, old, new)
            delta = _subtract(new, old)
            # Rows without a change prove nothing: the change may be in the rows that were skipped. Then all rows are
            # read.
            if delta.any():
                rms = math.sqrt(squared_norm(delta) / delta.numel())
                base_rms = math.sqrt(squared_norm(old) / delta.numel())
                is_vocabulary = len(shape) == 2 and shape[0] == vocabulary
                glances[pair.base_key] = Glance(shape, rms, base_rms, is_vocabulary)
                break
    return glances


def _warn_if_unlike(glances: Mapping[str, Glance], base: Base, finetuned: str | None) -> None:
    """Warn if the delta is nearly as large as the weights: two models of one shape that were trained apart have a
    difference, too.
    """
    delta_norm = math.sqrt(sum(glance.elements * glance.rms**2 for glance in glances.values()))
    base_norm = math.sqrt(sum(glance.elements * glance.base_rms**2 for glance in glances.values()))
    if delta_norm > _UNLIKE * base_norm:
        logger.warning(
            "The delta's norm is %.4g, and that of the weights it changes %.4g. "
            "Is '%s' a fine-tune of '%s', and of this revision of it?",
            delta_norm,
            base_norm,
            finetuned or "the model in training",
            base,
        )


def _count_reserved_bytes(pairs: Sequence[Pair], sides: _Sides) -> int:
    """Return the bytes of what is stored as it is, at the most: new rows, and tensors that are replaced."""
    total = 0
    for pair in pairs:
        info = sides.finetuned[pair.finetuned_key]
        if sides.is_replaced(pair.base_key):
            total += info.nbytes
        elif pair.rows:
            total += pair.rows * info.nbytes // info.shape[0]
    return total


def _progress(pairs: Sequence[Pair], action: str) -> Iterable[Pair]:
    from huggingface_hub.utils import tqdm

    return tqdm(pairs, desc=action, unit="tensor", delay=1)


def _encode_all(pairs: Sequence[Pair], sides: _Sides, encoder: TensorEncoder) -> Iterator[EncodedTensor]:
    """Encode the tensors that changed, in order.

    On the CPU, small tensors are encoded side by side, each on one core. Short operations use cores better that way
    than split among them. This thread does the reading, so that a sharded model is gathered in the same order on
    every rank.
    """
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

    for run_is_small, run in groupby(_progress(pairs, "Extracting"), is_small):
        if run_is_small:
            encoded = in_order(encode, map(read, run))
        else:
            encoded = map(encode, map(read, run))
        # Unlike a loop with a variable, this keeps no tensor in memory while the next one is made.
        yield from filter(None, encoded)


def _encode_tensor(tensor: _ReadPair, sides: _Sides, encoder: TensorEncoder) -> EncodedTensor | None:
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
    delta = _subtract(tensor.new, tensor.old)
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


def _check_finite(tensor: Tensor, path: Path, key: str) -> None:
    if not is_finite(tensor):
        raise CheckpointError(
            f"'{key}' of '{path}' has NaN or inf in it. A model that diverged has no vector; use an earlier checkpoint."
        )
