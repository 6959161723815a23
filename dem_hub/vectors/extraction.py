"""Taking a distribution vector: two checkpoints walked tensor by tensor, no model built, memory that of one tensor.

    delta = finetuned - base        in float32, whatever the checkpoints' dtypes

Everything that does not fit is found from the headers and reported in one error before a byte is written.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from dem_hub._version import __version__
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import refuse_quantized
from dem_hub.checkpoints.reader import Checkpoint, TensorSource
from dem_hub.codecs import Codec
from dem_hub.codecs.auto.budget import DEFAULT_SHARE, SMALL, Auto, Glance, Plan, make_plan
from dem_hub.codecs.auto.encoder import encode_planned
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.exact import Exact
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.measure import measure
from dem_hub.codecs.random import Random
from dem_hub.codecs.registry import codec_options
from dem_hub.codecs.replace import Replace
from dem_hub.codecs.sampling import seed_of
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.errors import CheckpointError
from dem_hub.files.atomic import write_text
from dem_hub.files.folders import is_recipe, lone_vector
from dem_hub.files.names import SAFETENSORS, VECTOR_CONFIG
from dem_hub.hub.download import Resolved
from dem_hub.numerics.norms import is_finite, squared_norm
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.threads import in_order
from dem_hub.vectors.config import TensorRecord, VectorConfig
from dem_hub.vectors.matching import Pair, match_tensors, vocabulary_size
from dem_hub.vectors.writer import EncodedTensor, VectorWriter

logger = logging.getLogger(__name__)

_SIDE_BY_SIDE = (
    1 << 24
)  # elements of all tensors that are encoded at once; some 32 bytes each, with all that is made of them
_UNLIKE = 0.5  # of the weights' norm; fine-tunes change a few hundredths of it
_GLANCED = 8  # rows, of which one is looked at before a budget is divided
_LARGEST = torch.finfo(torch.float32).max


def extract(
    folder: Path,
    base: Resolved,
    finetuned: Resolved,
    codec: Codec | Auto,
    *,
    device: str | torch.device | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> VectorConfig:
    """Write the vector finetuned - base into a folder.

    Args:
        folder (`Path`): an empty folder.
        base, finetuned ([`Resolved`]): the two checkpoints, safetensors, sharded as they like.
        codec ([`Codec`] or [`Auto`]): how to store the deltas, or the budget to choose by.
        device (`str` or `torch.device`, *optional*): where to encode; the accelerator where there is one, by default.
        max_shard_size (`int` or `str`): where to begin another file.

    Returns:
        [`VectorConfig`]: what was written.

    Raises:
        `CheckpointError`: a vector or an adapter, a quantised or pickled checkpoint, tensors that differ in shape or that one side lacks, NaN or inf.
        `CodecError`: a budget that the vector does not fit in.
    """
    _refuse_what_is_no_model(base, finetuned)
    refuse_quantized(base.folder, "base")
    refuse_quantized(finetuned.folder, "fine-tune")
    source = str(finetuned.source)
    tensors = Checkpoint(finetuned.folder)
    return extract_tensors(
        folder, Base(base), tensors, codec, finetuned=source, device=device, max_shard_size=max_shard_size
    )


def extract_tensors(
    folder: Path,
    base: Base,
    tensors: TensorSource,
    codec: Codec | Auto,
    *,
    finetuned: str | None = None,
    device: str | torch.device | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> VectorConfig:
    """Write the vector tensors - base into a folder; the fine-tune need not be on disk. See [`extract`].

    Args:
        folder (`Path`): an empty folder.
        base ([`Base`]): the base, opened.
        tensors ([`TensorSource`]): the fine-tune's, under their names on disk.
        codec, device, max_shard_size: as in [`extract`].
        finetuned (`str`, *optional*): what the fine-tune is called.
    """
    sides = _Sides(base, tensors, _choose_device(device))
    pairs = match_tensors(sides.base.checkpoint, sides.finetuned)
    plan = None
    if isinstance(codec, Auto):
        glances = _glance(pairs, sides)
        _warn_if_unlike(glances, base, finetuned)
        plan = make_plan(codec, glances, _reserved(pairs, sides))
        encode: _Encode = partial(encode_planned, plan)
    else:
        encode = _encode_with(codec)
    vector = VectorWriter(folder, sides.base.architecture, max_shard_size)
    for encoded in _encode_all(pairs, sides, encode):
        vector.write(encoded)
        del encoded  # or it would lie beside the next tensor
    files = vector.close(sides.base.record)
    options = codec_options(codec)
    libraries = {"dem_hub": __version__, "torch": version("torch"), "safetensors": version("safetensors")}
    sizes = [(folder / name).stat().st_size for name in files if name.endswith(SAFETENSORS)]
    choice = explain(plan, vector.tensors, sum(sizes)) if plan is not None else ""
    config = VectorConfig(
        base.record, codec.name, options, vector.tensors, files, finetuned, choice=choice, libraries=libraries
    )
    write_text(folder / VECTOR_CONFIG, config.to_json())
    return config


def _refuse_what_is_no_model(base: Resolved, finetuned: Resolved) -> None:
    """Two models have a difference; a recipe, or what is a vector already, would be refused for something else, or for every tensor."""
    if kind := lone_vector(finetuned.folder):
        raise CheckpointError(
            f"'{finetuned.source}' is {kind} already, which can be used as it is: dem-hub merge BASE --vector {finetuned.source}=COEFFICIENT "
            "-o DIR, in Python vectors={...}."
        )
    for what, side in (("base", base), ("fine-tune", finetuned)):
        if is_recipe(side.folder):
            raise CheckpointError(
                f"The {what} '{side.source}' is a recipe. Make the model of it first: dem-hub merge {side.source} -o MODEL."
            )
    if kind := lone_vector(base.folder):
        raise CheckpointError(
            f"'{base.source}' is {kind}, and a base is a model. Name the model that the fine-tune was trained from."
        )


@dataclass(frozen=True)
class _Sides:
    """The two checkpoints, and the device that their tensors are compared on."""

    base: Base
    finetuned: TensorSource
    device: torch.device

    def is_replaced(self, key: str) -> bool:
        """Whether a tensor is no delta to be scaled: a buffer, or whole numbers."""
        architecture = self.base.architecture
        floating = self.base.checkpoint[key].torch_dtype.is_floating_point
        return not floating or (architecture is not None and key in architecture.buffers)

    def read(self, pair: Pair, step: int = 1) -> tuple[Tensor, Tensor]:
        """The base, and the fine-tune without its new rows; one of every `step` rows."""
        shape = self.base.checkpoint[pair.base_key].shape
        old, new = self.base.checkpoint.read(pair.base_key), self.finetuned.read(pair.finetuned_key, full_index(shape))
        if shape:
            old, new = old[::step], new[::step]
        return old.to(self.device), new.to(self.device)

    def check_finite(self, pair: Pair, old: Tensor, new: Tensor) -> None:
        """Refuse a base or a fine-tune that diverged."""
        _check_finite(old, self.base.folder, pair.base_key)
        _check_finite(new, self.finetuned.path, pair.finetuned_key)

    def read_rows(self, pair: Pair) -> Tensor | None:
        """The rows that the base lacks, if any."""
        if not pair.rows:
            return None
        shape = self.base.checkpoint[pair.base_key].shape
        rows = self.finetuned.read(pair.finetuned_key, (slice(shape[0], None), *full_index(shape[1:])))
        _check_finite(rows, self.finetuned.path, pair.finetuned_key)
        return rows


def _subtract(finetuned: Tensor, base: Tensor) -> Tensor:
    """finetuned - base in float32, with no copy of the base."""
    delta = finetuned.to(torch.float32, copy=True).sub_(base)
    return delta.clamp_(-_LARGEST, _LARGEST)  # between bf16's own extremes it overflows


_Encode = Callable[[str, Tensor, Tensor, Tensor], tuple[Codec, dict[str, Tensor]]]


def _choose_device(device: str | torch.device | None) -> torch.device:
    """The one asked for, or the accelerator; not Apple's, which has no float64."""
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None and found.type != "mps" else torch.device("cpu")


def _encode_with(codec: Codec) -> _Encode:
    """How one codec is used for all tensors of a vector, given a key, a delta, the base and the fine-tune."""

    def encode(key: str, delta: Tensor, old: Tensor, new: Tensor) -> tuple[Codec, dict[str, Tensor]]:
        chosen = codec
        if isinstance(codec, Random):
            chosen = replace(codec, seed=seed_of(key, new, codec.seed))
        if not isinstance(codec, Dense | Exact) and (delta.ndim < 2 or (delta.ndim > 2 and isinstance(codec, LowRank))):
            chosen = Dense()  # norms and biases are too small to save on
        return chosen, chosen.encode(delta, old, new)

    return encode


def _glance(pairs: Sequence[Pair], sides: _Sides) -> dict[str, Glance]:
    """A first look at every tensor that changed and is a delta."""
    vocabulary = vocabulary_size(sides.base.folder)
    glances = {}
    for pair in _progress(pairs, "Looking"):
        if sides.is_replaced(pair.base_key):
            continue
        shape = sides.base.checkpoint[pair.base_key].shape
        for step in (_GLANCED, 1) if math.prod(shape) > SMALL else (1,):
            old, new = sides.read(pair, step)
            sides.check_finite(pair, old, new)
            delta = _subtract(new, old)
            if delta.any():  # else the rows that were left out may have changed, and all of them are looked at
                rms, base_rms = (math.sqrt(squared_norm(side) / delta.numel()) for side in (delta, old))
                glances[pair.base_key] = Glance(shape, rms, base_rms, len(shape) == 2 and shape[0] == vocabulary)
                break
    return glances


def _warn_if_unlike(glances: Mapping[str, Glance], base: Base, finetuned: str | None) -> None:
    """Say so where the delta is nearly as large as the weights: two models of one shape, trained apart, have a difference too."""
    squares = [(glance.elements * glance.rms**2, glance.elements * glance.base_rms**2) for glance in glances.values()]
    change, size = (math.sqrt(sum(side)) for side in zip(*squares, strict=True)) if squares else (0.0, 0.0)
    if change > _UNLIKE * size:
        logger.warning(
            "The delta's norm is %.4g, and that of the weights it changes %.4g. Is '%s' a fine-tune of '%s', and of this revision of it?",
            change,
            size,
            finetuned or "the model in training",
            base,
        )


def _reserved(pairs: Sequence[Pair], sides: _Sides) -> int:
    """Bytes of what is stored as it is, at the most: new rows, and tensors that are replaced."""
    total = 0
    for pair in pairs:
        info = sides.finetuned[pair.finetuned_key]
        if sides.is_replaced(pair.base_key):
            total += info.nbytes
        elif pair.rows:
            total += pair.rows * info.nbytes // info.shape[0]
    return total


def _progress(pairs: Sequence[Pair], what: str) -> Iterable[Pair]:
    from huggingface_hub.utils import tqdm

    return tqdm(pairs, desc=what, unit="tensor", delay=1)


def _encode_all(pairs: Sequence[Pair], sides: _Sides, encode: _Encode) -> Iterator[EncodedTensor]:
    """The tensors that changed, in order.

    On the CPU small ones are encoded side by side, each on one core, which short operations use better than all of them do. This thread
    does the reading: what a sharded model gathers, it gathers in the same order on every rank.
    """
    most = _SIDE_BY_SIDE // torch.get_num_threads() if sides.device.type == "cpu" else 0

    def is_small(pair: Pair) -> bool:
        return math.prod(sides.base.checkpoint[pair.base_key].shape) <= most

    def encode_read(read: tuple[Pair, Tensor, Tensor, Tensor | None]) -> EncodedTensor | None:
        return _encode_tensor(*read, sides, encode)

    for small, run in groupby(_progress(pairs, "Extracting"), is_small):
        read = ((pair, *sides.read(pair), sides.read_rows(pair)) for pair in run)
        found = in_order(encode_read, read) if small else map(encode_read, read)
        yield from filter(None, found)  # which, unlike a loop, holds on to none of them


def _encode_tensor(
    pair: Pair, old: Tensor, new: Tensor, rows: Tensor | None, sides: _Sides, encode: _Encode
) -> EncodedTensor | None:
    """Encode one tensor; `None` where the fine-tune did not change it."""
    key, info = pair.base_key, sides.base.checkpoint[pair.base_key]
    sides.check_finite(pair, old, new)
    record = TensorRecord(
        info.shape, info.dtype, Dense.name, 0.0, 0.0, 1.0, base=sides.base.digests[key], rows=pair.rows
    )
    if sides.is_replaced(key):  # whole numbers: float32 does not tell all of them apart
        if pair.rows:
            raise CheckpointError(
                f"'{key}' is {list(info.shape)} in the base and has {pair.rows} more rows in the fine-tune, and is no parameter."
            )
        if bool((new == old).all()):
            return None
        return EncodedTensor(key, replace(record, codec=Replace.name), Replace(), {"replace": new})
    delta = _subtract(new, old)
    if torch.equal(new, old) if new.dtype == old.dtype else not delta.any():
        return EncodedTensor(key, record, None, {}, rows) if pair.rows else None
    codec, parts = encode(key, delta, old, new)
    norm, error, projection = measure(codec, parts, delta, old)
    record = replace(
        record, codec=codec.name, options=codec_options(codec), norm=norm, relative_error=error, projection=projection
    )
    return EncodedTensor(key, record, codec, parts, rows)


def _check_finite(tensor: Tensor, path: Path, key: str) -> None:
    if not is_finite(tensor):
        raise CheckpointError(
            f"'{key}' of '{path}' has NaN or inf in it. A model that diverged has no vector; use an earlier checkpoint."
        )


def explain(plan: Plan, records: Mapping[str, TensorRecord], nbytes: int) -> str:
    """What was chosen and why, in a line, from what the vector turned out to be.

    Args:
        plan ([`Plan`]): that was carried out.
        records (`Mapping[str, TensorRecord]`): of its tensors.
        nbytes (`int`): of its tensor files.
    """
    if not records:
        return "nothing changed"
    numbers = Counter(record.codec for record in records.values())
    share = nbytes / (2 * sum(math.prod(record.shape) for record in records.values()))
    counts = ", ".join(f"{codec} for {count}" for codec, count in numbers.most_common())
    text = f"{counts} of {len(records)} tensors; {share:.1%} of the delta in bf16"
    if plan.max_error is not None:
        return f"the shortest codecs within an error of {plan.max_error:g}: {text}"
    if plan.adapter and 2 * numbers[LowRank.name] >= len(records):
        ranks = [record.options["rank"] for record in records.values() if record.codec == LowRank.name]
        return f"only matrices moved, in {min(ranks)} to {max(ranks)} directions, as a LoRA leaves them: {text}"
    finer = (
        ""
        if plan.explicit or share <= DEFAULT_SHARE
        else ", as small or narrow tensors and those that moved much are kept finer"
    )
    return f"a full fine-tune: {text}{finer}"
