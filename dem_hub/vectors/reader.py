"""What lies in a vector's folder: the parts of each tensor, unread, once every header is what the config says.

A file from the Hub is somebody else's word. Names, dtypes and shapes are compared with the codec's layout before anything is decoded,
and all that does not fit is listed in one error.
"""

from collections.abc import Mapping
from pathlib import Path

from dem_hub.checkpoints.lazy import LazyTensor, Transposed
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs import CODECS, Codec
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.codecs.layout import FLOATS, Layout, Part, check_parts
from dem_hub.codecs.registry import make_codec
from dem_hub.errors import CheckpointError, CodecError, refuse
from dem_hub.files.names import ADAPTER_WEIGHTS, INDEX_SUFFIX, SAFETENSORS, VECTOR_STEM
from dem_hub.vectors.config import SEPARATOR, TensorRecord, VectorConfig
from dem_hub.vectors.lora.writer import factor_names

_ROWS = "rows"  # the part that holds rows which the base lacks


def read_contents(folder: Path, config: VectorConfig) -> dict[str, StoredDelta]:
    """The stored delta of each tensor of a vector, by the base's key.

    Args:
        folder (`Path`): the vector's.
        config ([`VectorConfig`]): its config.

    Raises:
        `CodecError`: a codec, or an option of one, that this version does not have.
        `CheckpointError`: files that lack tensors, have others, or have them in another shape or dtype; lists all of them.
    """
    unknown = sorted({record.codec for record in config.tensors.values()} - set(CODECS))
    if unknown:
        raise CodecError(
            f"The vector '{folder}' has the codec {', '.join(map(repr, unknown))}; this dem_hub has {', '.join(CODECS)}."
        )
    rest, factors = _open(folder, VECTOR_STEM + SAFETENSORS, config), _open(folder, ADAPTER_WEIGHTS, config)
    parts: dict[str, dict[str, LazyTensor]] = {}
    if rest is not None:
        for name in rest:
            key, _, part = name.rpartition(SEPARATOR)
            parts.setdefault(key, {})[part] = rest.lazy(name)
    for key, record in config.tensors.items():
        if record.module and factors is not None:
            parts.setdefault(key, {}).update(_factors(factors, record))
    faults = [f"'{key}' is in the files and not in the config" for key in sorted(set(parts) - set(config.tensors))]
    named = {name for record in config.tensors.values() if record.module for name in factor_names(record.module)}
    faults += [f"'{name}' is in {ADAPTER_WEIGHTS} and not in the config" for name in sorted(set(factors or ()) - named)]
    deltas = {}
    for key, record in config.tensors.items():
        own = parts.get(key, {})
        codec = make_codec(record.codec, record.options)
        faults += check_parts(key, own, _layout(record, codec))
        rows = own.pop(_ROWS, None)
        deltas[key] = StoredDelta((Component(codec, own, record.shape),) if own else (), rows)
    if faults:
        refuse(
            CheckpointError,
            f"The files of the vector '{folder}' are not what its config says.",
            faults,
            "Fetch it again.",
        )
    return deltas


def part_sizes(folder: Path, config: VectorConfig) -> dict[str, int]:
    """Bytes of each part in the files, by its name there; raises what [`read_contents`] raises."""
    read_contents(folder, config)
    found = (_open(folder, VECTOR_STEM + SAFETENSORS, config), _open(folder, ADAPTER_WEIGHTS, config))
    return {name: info.nbytes for file in found if file is not None for name, info in file.items()}


def tensor_sizes(config: VectorConfig, parts: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the parts of each tensor, by the base's key, from the bytes of each part."""
    sizes = dict.fromkeys(config.tensors, 0)
    owners = {
        name: key for key, record in config.tensors.items() if record.module for name in factor_names(record.module)
    }
    for name, nbytes in parts.items():
        sizes[owners.get(name, name.rpartition(SEPARATOR)[0])] += nbytes
    return sizes


def _layout(record: TensorRecord, codec: Codec) -> Layout:
    """The parts that a tensor must have: its codec's, unless nothing but new rows was learned, and those rows."""
    layout = dict(codec.layout(record.shape)) if record.is_stored else {}
    if record.rows:
        layout[_ROWS] = Part(FLOATS, (record.rows, *record.shape[1:]))
    return layout


def _open(folder: Path, name: str, config: VectorConfig) -> Checkpoint | None:
    """A file of tensors, or its shards; one that lies there and is not in the config was never checked, and is refused."""
    there = [file for file in (name, name + INDEX_SUFFIX) if (folder / file).is_file()]
    strange = [f"'{file}'" for file in there if file not in config.files]
    if strange:
        refuse(
            CheckpointError,
            f"'{folder}' has files that its config does not name.",
            strange,
            "Remove them, or fetch the vector again.",
        )
    return Checkpoint(folder, index=name) if there else None


def _factors(adapter: Checkpoint, record: TensorRecord) -> dict[str, LazyTensor]:
    """B and A of an adapter as `left` and `right` in the orientation of the checkpoint; missing ones are left out."""
    first, second = (adapter.lazy(name) if name in adapter else None for name in factor_names(record.module))
    if record.transposed:
        first, second = (Transposed(tensor) if tensor is not None else None for tensor in (second, first))
    return {name: tensor for name, tensor in (("right", first), ("left", second)) if tensor is not None}
