"""`vector_config.json`: what a distribution vector is, as frozen records, checked when made.

Nothing here imports torch, so that a config can be read and checked at once.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dem_hub.errors import ConfigError
from dem_hub.files.strict_json import (
    FORMAT_VERSION,
    as_mapping,
    check_inside,
    check_version,
    dump_json,
    parse_json,
    read_record,
)
from dem_hub.hub.references import BaseRecord

SEPARATOR = "::"  # between a checkpoint key and the name of a part


@dataclass(frozen=True)
class TensorRecord:
    """How one tensor's delta is stored, and how true it is.

    `shape` and `dtype` are the base's; `rows` counts the rows the base lacks (a grown vocabulary); `norm` is the Frobenius norm
    of the delta, `relative_error` = |decoded - delta| / |delta|, `projection` = <decoded, delta> / |delta|^2 (1 where unbiased);
    `base` is the digest of the base's tensor, by which a wrong base is found out; `module` is the module whose LoRA in the PEFT
    adapter holds the delta (`transposed` where the checkpoint has B @ A the other way round), empty where it is not there; `options`
    are the codec's.
    """

    shape: tuple[int, ...]
    dtype: str
    codec: str
    norm: float
    relative_error: float
    projection: float
    base: str
    rows: int = 0
    module: str = ""
    transposed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no tensor is."""
        sizes = (*self.shape, self.rows)
        if not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
            raise ConfigError(f"shape {list(self.shape)} with {self.rows!r} more rows is no shape of a tensor.")
        numbers = (self.norm, self.relative_error, self.projection)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ConfigError(f"norm, relative_error and projection are {numbers}; they must be finite numbers.")
        if self.rows and self.codec == "replace":
            raise ConfigError(
                f"a tensor that is replaced has {self.rows} more rows than the base's; it must have its shape."
            )
        if not all(
            isinstance(text, str) for text in (self.dtype, self.codec, self.base, self.module)
        ) or not isinstance(self.options, Mapping):
            raise ConfigError("dtype, codec, base and module must be texts, and options a JSON object.")

    @property
    def is_stored(self) -> bool:
        """Whether there is a delta in the files; where only new rows were learned there is none."""
        return self.norm > 0 or not self.rows


@dataclass(frozen=True)
class VectorConfig:
    """`vector_config.json`: what a distribution vector is, without its tensors.

    `choice` says in a line what `codec="auto"` chose, and why.
    """

    base: BaseRecord
    codec: str
    codec_options: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, str]
    finetuned: str | None = None
    choice: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The file's text: sorted, so that the same vector is the same bytes, with a checksum of the rest of it."""
        data = asdict(self)
        return dump_json({**data, "checksum": _checksum(data)})

    @property
    def sha256(self) -> str:
        """What the vector is, whatever it is called: the hash of its files' hashes and of how its tensors are stored, 64 hex digits."""
        return _checksum(
            {"files": dict(self.files), "tensors": {name: asdict(record) for name, record in self.tensors.items()}}
        )

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "VectorConfig":
        """Read the file's text.

        Raises:
            `ConfigError`: a key that this format version does not have, one that is missing, a newer version, or a text that was changed.
        """
        written = parse_json(text, where)
        check_version(written, where)
        checksum = written.pop("checksum", None)
        data = dict(
            written,
            base=read_record(BaseRecord, written.get("base"), f"{where}: base"),
            tensors={
                name: _tensor_record(entry, f"{where}: tensor '{name}'")
                for name, entry in as_mapping(written.get("tensors"), f"{where}: tensors").items()
            },
        )
        config = read_record(cls, data, where)
        for name, value in as_mapping(config.files, f"{where}: files").items():
            check_inside(name, f"file named in {where}")
            if not isinstance(value, str):
                raise ConfigError(f"{where} has {value!r} for the sha256 of '{name}'.")
        as_mapping(config.codec_options, f"{where}: codec_options")
        if config.base.fingerprint is None:
            raise ConfigError(
                f"{where} does not say which base it is for: base.fingerprint is missing. Extract the vector anew."
            )
        if checksum != _checksum(written):
            raise ConfigError(
                f"{where} was changed after it was written: its checksum is not that of the rest. Fetch it again, or extract anew."
            )
        return config


def codec_name(config: VectorConfig | None) -> str:
    """Return the name of a vector's codec, as recipes and stores record it; `"lora"` for a PEFT adapter (no config)."""
    return config.codec if config is not None else "lora"


def contents_sha256(files: Mapping[str, str]) -> str:
    """What a PEFT adapter is, whatever it is called: the sha256 of the names and hashes of its files, 64 hex digits."""
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in sorted(files.items())).encode()).hexdigest()


def _checksum(data: Mapping[str, Any]) -> str:
    """The sha256 of JSON data, 64 hex digits, however it is spaced."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tensor_record(data: object, where: str) -> TensorRecord:
    entry = as_mapping(data, where)
    shape = entry.get("shape", ())
    if not isinstance(shape, list | tuple):
        raise ConfigError(f"{where} has shape {shape!r}, which is no list of sizes.")
    return read_record(TensorRecord, {**entry, "shape": tuple(shape)}, where)
