"""Read a vector's folder: the stored delta of each tensor, unread, after every header was compared with the config.

A file from the Hub comes from a stranger. Names, dtypes and shapes are compared with the layout of the codec before
anything is decoded, and everything that does not fit is listed in one error. A delta that [`read_contents`] returns
can be decoded without further checks of its form.
"""

from collections.abc import Mapping
from pathlib import Path

from dem_hub.checkpoints.lazy import Columns, LazyTensor, Rows, Transposed
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.codecs.layout import FLOATS, Layout, Part, check_parts
from dem_hub.codecs.registry import CODECS, make_codec
from dem_hub.errors import CheckpointError, CodecError, refuse
from dem_hub.files.names import ADAPTER_WEIGHTS, INDEX_SUFFIX, SAFETENSORS, VECTOR_STEM
from dem_hub.vectors.config import SEPARATOR, TensorRecord, VectorConfig
from dem_hub.vectors.lora.writer import factor_names

_ROWS = "rows"  # name of the part that holds the rows which the base lacks


def read_contents(folder: Path, config: VectorConfig) -> dict[str, StoredDelta]:
    """Return the stored delta of each tensor of a vector.

    Args:
        folder (`Path`): Folder of the vector.
        config ([`VectorConfig`]): Its config.

    Returns:
        `dict[str, StoredDelta]`: The deltas, unread, by the base's checkpoint key.

    Raises:
        `CodecError`: If this version does not have a codec, or an option of one.
        `CheckpointError`: If the files lack tensors, have others, or have them in another shape or dtype. All of
            them are listed.
    """
    _check_codecs(folder, config)
    rest = _open(folder, VECTOR_STEM + SAFETENSORS, config)
    adapter = _open(folder, ADAPTER_WEIGHTS, config)
    parts = _collect_parts(rest, adapter, config)
    faults = _unlisted(parts, adapter, config)
    deltas = {}
    for key, record in config.tensors.items():
        tensor_parts = parts.get(key, {})
        codec = make_codec(record.codec, record.options)
        faults += check_parts(key, tensor_parts, _layout(record, codec))
        rows = tensor_parts.pop(_ROWS, None)
        components: tuple[Component, ...] = ()
        if tensor_parts:
            components = (Component(codec, tensor_parts, record.shape),)
        deltas[key] = StoredDelta(components, rows)
    if faults:
        refuse(
            CheckpointError,
            f"The files of the vector '{folder}' are not what its config says.",
            faults,
            "Fetch it again.",
        )
    return deltas


def part_sizes(folder: Path, config: VectorConfig) -> dict[str, int]:
    """Return the size of each part in bytes, by the name of its tensor in the files.

    Args:
        folder (`Path`): Folder of the vector.
        config ([`VectorConfig`]): Its config.

    Raises:
        `CodecError`, `CheckpointError`: As [`read_contents`] raises them.
    """
    read_contents(folder, config)
    sizes = {}
    for name in (VECTOR_STEM + SAFETENSORS, ADAPTER_WEIGHTS):
        checkpoint = _open(folder, name, config)
        if checkpoint is not None:
            sizes.update({part: info.nbytes for part, info in checkpoint.items()})
    return sizes


def tensor_sizes(config: VectorConfig, parts: Mapping[str, int]) -> dict[str, int]:
    """Return the total size of the parts of each tensor in bytes, by the base's checkpoint key.

    Args:
        config ([`VectorConfig`]): The vector's config.
        parts (`Mapping[str, int]`): The size of each part, from [`part_sizes`].
    """
    keys_of_factors = {}
    for key, record in config.tensors.items():
        for name in _factor_names(record):
            keys_of_factors[name] = key
    sizes = dict.fromkeys(config.tensors, 0)
    for name, nbytes in parts.items():
        key = keys_of_factors.get(name, name.rpartition(SEPARATOR)[0])
        sizes[key] += nbytes
    return sizes


def _check_codecs(folder: Path, config: VectorConfig) -> None:
    unknown = sorted({record.codec for record in config.tensors.values()} - set(CODECS))
    if unknown:
        raise CodecError(
            f"The vector '{folder}' has the codec {', '.join(map(repr, unknown))}; this dem_hub has "
            f"{', '.join(CODECS)}."
        )


def _open(folder: Path, name: str, config: VectorConfig) -> Checkpoint | None:
    """Open a file of tensors, or its shards; `None` if the vector does not have it.

    A file that the config does not name has no sha256 there, so it was never checked: it is refused.
    """
    existing = [file for file in (name, name + INDEX_SUFFIX) if (folder / file).is_file()]
    unnamed = [f"'{file}'" for file in existing if file not in config.files]
    if unnamed:
        refuse(
            CheckpointError,
            f"'{folder}' has files that its config does not name.",
            unnamed,
            "Remove them, or fetch the vector again.",
        )
    if not existing:
        return None
    return Checkpoint(folder, index=name)


def _collect_parts(
    rest: Checkpoint | None, adapter: Checkpoint | None, config: VectorConfig
) -> dict[str, dict[str, LazyTensor]]:
    """Return the parts in both files, by the base's key and the part's name. Nothing is checked yet."""
    parts: dict[str, dict[str, LazyTensor]] = {}
    if rest is not None:
        for name in rest:
            key, _, part = name.rpartition(SEPARATOR)
            parts.setdefault(key, {})[part] = rest.lazy(name)
    if adapter is not None:
        for key, record in config.tensors.items():
            if record.module:
                parts.setdefault(key, {}).update(_factors(adapter, record))
    return parts


def _unlisted(
    parts: Mapping[str, Mapping[str, LazyTensor]], adapter: Checkpoint | None, config: VectorConfig
) -> list[str]:
    """Return one line for each tensor in the files that the config does not have."""
    faults = [f"'{key}' is in the files and not in the config" for key in sorted(set(parts) - set(config.tensors))]
    if adapter is not None:
        listed: set[str] = set()
        for record in config.tensors.values():
            listed.update(_factor_names(record))
        unlisted = sorted(set(adapter) - listed)
        faults += [f"'{name}' is in {ADAPTER_WEIGHTS} and not in the config" for name in unlisted]
    return faults


def _factor_names(record: TensorRecord) -> tuple[str, ...]:
    """Return the names of A and B in the adapter; none if the tensor is not there."""
    if not record.module:
        return ()
    return factor_names(record.module)


def _factors(adapter: Checkpoint, record: TensorRecord) -> dict[str, LazyTensor]:
    """Return B and A of an adapter as `left` and `right` of the checkpoint's tensor. A missing factor is left out.

    Where the config has the rank of the tensor, what was added to it is left out: an adapter has one rank for all
    modules, and lower ranks are padded with zeros.
    """
    factors: dict[str, LazyTensor] = {}
    for part, name in zip(("right", "left"), factor_names(record.module), strict=True):
        if name in adapter:
            factors[part] = adapter.lazy(name)
    rank = record.options.get("rank")
    if isinstance(rank, int):
        rank = min(rank, *record.shape)
        right = factors.get("right")
        left = factors.get("left")
        if right is not None and len(right.get_shape()) == 2 and right.get_shape()[0] > rank:
            factors["right"] = Rows(right, 0, rank)
        if left is not None and len(left.get_shape()) == 2 and left.get_shape()[1] > rank:
            factors["left"] = Columns(left, 0, rank)
    if not record.transposed:
        return factors
    # The checkpoint holds (B @ A)^T = A^T @ B^T: the factors change sides.
    sides = {"right": "left", "left": "right"}
    return {sides[part]: Transposed(factor) for part, factor in factors.items()}


def _layout(record: TensorRecord, codec: Codec) -> Layout:
    """Return the parts that a tensor must have: those of its codec, and the rows that the base lacks."""
    layout: dict[str, Part] = {}
    if record.is_stored:
        layout = dict(codec.layout(record.shape))
    if record.rows:
        layout[_ROWS] = Part(FLOATS, (record.rows, *record.shape[1:]))
    return layout
