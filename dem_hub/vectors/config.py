"""`vector_config.json`: what a distribution vector is, as frozen records that are checked when they are made.

A config is sorted, so that the same vector always has the same bytes, and has a checksum, so that a change by hand
is found. An unknown key is an error: for weights, a key that is dropped is a silently different number. Nothing
here imports torch, so that a config can be read quickly.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.tokenizer import Token
from dem_hub.errors import ConfigError
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.names import VECTOR_FILE
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import (
    FORMAT_VERSION,
    as_mapping,
    check_version,
    dump_json,
    parse_json,
    read_json,
    read_record,
)
from dem_hub.hub.references import BaseRecord

# Stands between a checkpoint key and the name of a part, in the names of the tensors of `vector_model.safetensors`.
SEPARATOR = "::"

# Elements of a dimension, exclusive. No tensor comes near it, and products of a few such sizes stay exact in Python.
_LARGEST_SIZE = 1 << 48


@dataclass(frozen=True)
class TensorRecord:
    """The record of one tensor: how its delta is stored, and how close that is to the true delta.

    Attributes:
        shape (`tuple[int, ...]`), dtype (`str`): Shape and dtype of the base's tensor.
        codec (`str`): Name of the codec.
        norm (`float`): Frobenius norm of the delta.
        relative_error (`float`): |decoded - delta| / |delta|.
        projection (`float`): <decoded, delta> / |delta|^2, which is 1 for an unbiased codec.
        base (`str`): Digest of the base's tensor, from which another base is recognized.
        rows (`int`): Number of rows that the base lacks (a vocabulary that fine-tuning extended).
        module (`str`): The module whose LoRA in the PEFT adapter holds the delta; empty if the adapter does not
            hold it.
        transposed (`bool`): The checkpoint holds the transpose of that LoRA's B @ A.
        options (`Mapping[str, Any]`): Options of the codec.
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
        """Refuse values that no tensor has."""
        # `type(...) is int`, since True and False are ints for isinstance.
        sizes = (*self.shape, self.rows)
        if not all(type(size) is int and 0 <= size < _LARGEST_SIZE for size in sizes):
            raise ConfigError(f"shape {list(self.shape)} with {self.rows!r} more rows is no shape of a tensor.")
        numbers = (self.norm, self.relative_error, self.projection)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ConfigError(f"norm, relative_error and projection are {numbers}; they must be finite numbers.")
        if self.rows and self.codec == "replace":
            raise ConfigError(
                f"a tensor that is replaced has {self.rows} more rows than the base's; it must have its shape."
            )
        texts = (self.dtype, self.codec, self.base, self.module)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.options, Mapping):
            raise ConfigError("dtype, codec, base and module must be texts, and options a JSON object.")

    @property
    def is_stored(self) -> bool:
        """True if the files hold a delta of the base's rows. They hold none if fine-tuning added rows to this tensor
        and changed none of the base's.
        """
        return self.norm > 0 or not self.rows


@dataclass(frozen=True)
class VectorConfig:
    """The content of `vector_config.json`: what a distribution vector is, without its tensors.

    Attributes:
        base ([`BaseRecord`]): The base, with its fingerprint.
        codec (`str`): Name of the codec that the user asked for. The codec of each tensor is in `tensors`.
        codec_options (`Mapping[str, Any]`): Options of that codec.
        tensors (`Mapping[str, TensorRecord]`): How each tensor is stored, by the base's checkpoint key.
        files (`Mapping[str, str]`): The sha256 of each file, by name.
        finetuned (`str`, *optional*): Name of the fine-tune: a Hub id or a folder.
        choice (`str`): What `codec="auto"` chose and why, in one line.
        tokens (`Mapping[str, Token]`, *optional*): The tokens that the base's tokenizer lacks, by their texts. `None`
            if it is not known what tokens the fine-tune has.
        training (`Mapping[str, Any]`): Training facts, if they are known.
        libraries (`Mapping[str, str]`): Versions of the libraries that made the vector.
        transformation (`Mapping[str, Any]`): For a vector that was computed from others (RegMean, TIES, DARE): how, and
            from which. Not written if it is empty.
    """

    base: BaseRecord
    codec: str
    codec_options: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, str]
    finetuned: str | None = None
    choice: str = ""
    tokens: Mapping[str, Token] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    transformation: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text of the file: sorted, so that the same vector has the same bytes, and with a checksum of
        the rest.
        """
        data = asdict(self)
        if self.tokens is None:
            del data["tokens"]
        if not self.transformation:
            del data["transformation"]
        return dump_json({**data, "checksum": _checksum(data)}, foreign=True)

    @property
    def sha256(self) -> str:
        """The vector's identity, 64 hex digits: the hash of its files' hashes, of how its tensors are stored, and of its
        new tokens.

        Names, paths and training facts are no part of it.
        """
        tensors = {name: asdict(record) for name, record in self.tensors.items()}
        identity: dict[str, Any] = {"files": dict(self.files), "tensors": tensors}
        if self.tokens:
            identity["tokens"] = {text: asdict(token) for text, token in self.tokens.items()}
        return _checksum(identity)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "VectorConfig":
        """Read the text of a `vector_config.json`.

        Args:
            text (`str` or `bytes`): The text of the file.
            where (`str`): Name of the file, for error messages.

        Raises:
            `ConfigError`: If a key is unknown or missing, if the format version is newer than this library, or if
                the text was changed.
        """
        return cls._from_data(parse_json(text, where), where)

    @classmethod
    def read(cls, path: Path) -> "VectorConfig":
        """Read a `vector_config.json`.

        Raises:
            `ConfigError`: As [`VectorConfig.from_json`] raises it, or if the file is larger than any config.
        """
        return cls._from_data(read_json(path), str(path))

    @classmethod
    def _from_data(cls, written: dict[str, Any], where: str) -> "VectorConfig":
        check_version(written, where)
        checksum = written.pop("checksum", None)
        base = read_record(BaseRecord, written.get("base"), f"{where}: base")
        tensors = {}
        for name, entry in as_mapping(written.get("tensors"), f"{where}: tensors").items():
            tensors[name] = _tensor_record(entry, f"{where}: tensor '{name}'")
        values = {**written, "base": base, "tensors": tensors}
        if "tokens" in written:
            values["tokens"] = read_tokens(written["tokens"], f"{where}: tokens")
        config = read_record(cls, values, where)
        for name, value in as_mapping(config.files, f"{where}: files").items():
            check_inside(name, f"file named in {where}")
            if not VECTOR_FILE.fullmatch(name):
                raise ConfigError(
                    f"{where} names the file '{name}', and no vector has a file of that name. Do not use this folder."
                )
            if not isinstance(value, str):
                raise ConfigError(f"{where} has {value!r} for the sha256 of '{name}'.")
        as_mapping(config.codec_options, f"{where}: codec_options")
        if config.base.fingerprint is None:
            raise ConfigError(
                f"{where} does not say which base it is for: base.fingerprint is missing. Extract the vector anew."
            )
        if checksum != _checksum(written):
            raise ConfigError(
                f"{where} was changed after it was written: its checksum is not that of the rest. Fetch it again, "
                "or extract anew."
            )
        return config


def codec_name(config: VectorConfig | None) -> str:
    """Return the name of a vector's codec, as recipes and stores record it; `"lora"` for a PEFT adapter (no config)."""
    return config.codec if config is not None else "lora"


def contents_sha256(files: Mapping[str, str]) -> str:
    """Return the identity of a PEFT adapter, 64 hex digits: the sha256 of the names and hashes of its files.

    Args:
        files (`Mapping[str, str]`): The sha256 of each file, by name.
    """
    lines = "".join(f"{name} {value}\n" for name, value in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_tokens(data: object, where: str) -> dict[str, Token]:
    """Read the records of tokens by their texts, from JSON data.

    Raises:
        `ConfigError`: If they are not records of tokens, or two have one id.
    """
    tokens = {}
    for text, entry in as_mapping(data, where).items():
        token = read_record(Token, entry, f"{where}: {shown(text)}")
        if not text or not 0 <= token.id < _LARGEST_SIZE:
            raise ConfigError(f"{where} has {shown(text)} with the id {token.id}, which is no token.")
        tokens[text] = token
    if len({token.id for token in tokens.values()}) < len(tokens):
        raise ConfigError(f"{where} has two tokens with one id.")
    return tokens


def _checksum(data: Mapping[str, Any]) -> str:
    """Return the sha256 of JSON data, 64 hex digits. The order of keys and the spacing of the file do not matter."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_record(data: object, where: str) -> TensorRecord:
    entry = as_mapping(data, where)
    shape = entry.get("shape", ())
    if not isinstance(shape, list | tuple):
        raise ConfigError(f"{where} has shape {shape!r}, which is no list of sizes.")
    return read_record(TensorRecord, {**entry, "shape": tuple(shape)}, where)
