"""The protocol of a transformation, and how its results become vectors.

A transformation changes the deltas of one tensor at a time. The results are encoded like those of an extraction, one
tensor after the other, so that memory is that of a few tensors. A delta that stays a product of two factors is stored
as such, and is a PEFT adapter again.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import CODES
from dem_hub.checkpoints.reader import TensorInfo
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import Delta, Factors, Scaled, to_dense
from dem_hub.codecs.encoder import Encoded, Encoder, StoredTensor, TensorEncoder
from dem_hub.codecs.factors import encode_factors
from dem_hub.codecs.first_look import FirstLook
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.options import Options
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.files.atomic import write_text
from dem_hub.files.names import VECTOR_CONFIG
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.numerics.slices import Index, full_index
from dem_hub.transformations.vector_names import check_vector_names
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.extraction import extract_tensors
from dem_hub.vectors.tokens import tokens_of
from dem_hub.vectors.vector import DistributionVector


class Transformation(Protocol):
    """A change of the deltas of several vectors, tensor by tensor."""

    @property
    def name(self) -> str:
        """The name, as it is recorded in the vectors."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that the result depends on besides the vectors, to record."""

    def delta(self, place: int, deltas: "TensorDeltas") -> Delta:
        """Return the new delta of one tensor of one vector.

        Args:
            place (`int`): Which of the vectors.
            deltas ([`TensorDeltas`]): The deltas of all vectors, each read when it is asked for.
        """


@dataclass(frozen=True)
class TensorDeltas:
    """The deltas of one tensor, of all vectors, unread."""

    base: Base
    key: str
    stored: tuple[StoredDelta | None, ...]
    hashes: tuple[str, ...]  # of the vectors
    device: torch.device

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, place: int) -> Delta:
        """Return the whole delta of one vector, factors and the rest, in float32; an empty one if it has none."""
        stored = self.stored[place]
        if stored is None:
            return Delta()
        lazy = self.base.checkpoint.lazy(self.key)
        return _joined(stored.decode(lazy, full_index(lazy.get_shape()), self.device))

    def read_dense(self, place: int) -> Tensor:
        """Return the whole delta of one vector, multiplied out in float32; zeros if it has none."""
        shape = self.base.checkpoint[self.key].shape
        return to_dense(self.read(place), torch.empty(shape, dtype=torch.float32, device=self.device))


def transform(
    base: Base,
    vectors: Sequence[DistributionVector],
    transformation: Transformation,
    encoder: Encoder,
    device: torch.device,
    *,
    allow_base_mismatch: bool = False,
) -> list[DistributionVector]:
    """Return the transformed vectors, in the order of the vectors. Their files are temporary until they are saved.

    Args:
        base ([`Base`]): The base that all of them are for.
        vectors (`Sequence[DistributionVector]`): The vectors.
        transformation ([`Transformation`]): What changes their deltas.
        encoder ([`Encoder`]): How deltas are stored that are no product of two factors.
        device (`torch.device`): Where it is computed.
        allow_base_mismatch (`bool`, *optional*, defaults to `False`): Accept another base with the same names and
            shapes.

    Raises:
        `BaseMismatchError`, `AdapterError`: If a vector does not fit the base.
        `CheckpointError`: If a file of the base or of a vector changes meanwhile.
    """
    stored = all_deltas(vectors, base, allow_base_mismatch=allow_base_mismatch)
    record = {
        "name": transformation.name,
        "vectors": [_record(vector) for vector in vectors],
        **transformation.settings,
    }
    hashes = tuple(vector.sha256 for vector in vectors)
    transformed = []
    for place, vector in enumerate(vectors):
        source = _Transformed(base, stored, hashes, place, transformation, device)
        facts: dict[str, Any] = {"transformation": {**record, "place": place}, "tokens": tokens_of(vector, base)}
        if vector.config is not None:
            facts["training"] = dict(vector.config.training)
        write = partial(_write, base=base, source=source, encoder=encoder, name=vector.name, facts=facts)
        transformed.append(DistributionVector.written_by(write))
    for vector in vectors:
        vector.check_unchanged()
    return transformed


def _record(vector: DistributionVector) -> dict[str, str]:
    """Return what to record of a vector: its hash, and its name on the Hub. A folder is a matter of this machine."""
    record = {"sha256": vector.sha256}
    if vector.commit is not None:
        record["name"] = vector.name
    return record


def transform_named(
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str | VectorSource],
    transformation: Transformation,
    codec: str,
    device: str | torch.device | None,
) -> dict[str, DistributionVector]:
    """Open a base and vectors, and return the transformed vectors by their names; see [`transform`].

    Args:
        base, vectors: Hub ids or folders.
        transformation ([`Transformation`]): What changes the deltas.
        codec (`str`): How to store deltas that are no product of two factors.
        device (`str` or `torch.device`, *optional*): Where it is computed; the CPU by default.

    Raises:
        `ConfigError`: If there are no vectors, or one is named twice.
    """
    check_vector_names(vectors)
    encoder = encoder_from_name(codec, {})
    opened = open_base_and_vectors(VectorSource.parse(base), dict.fromkeys(vectors, 1.0))
    transformed = transform(opened.base, opened.vectors, transformation, encoder, torch.device(device or "cpu"))
    return dict(zip(map(str, vectors), transformed, strict=True))


def _write(
    folder: Path, base: Base, source: "_Transformed", encoder: Encoder, name: str, facts: Mapping[str, Any]
) -> None:
    """Write one transformed vector into an empty folder, with facts of how it came about in its config."""
    config = extract_tensors(folder, base, source, _FactorsFirst(source, encoder), finetuned=name)
    write_text(folder / VECTOR_CONFIG, replace(config, **facts).to_json())


class _Transformed:
    """The base with one transformed vector, with the interface of a checkpoint: tensors are computed when they are
    read.
    """

    path = Path("the transformed vector")

    def __init__(
        self,
        base: Base,
        stored: Sequence[Mapping[str, StoredDelta]],
        hashes: tuple[str, ...],
        place: int,
        transformation: Transformation,
        device: torch.device,
    ) -> None:
        self.factors: dict[str, Factors] = {}  # of tensors that were read and not encoded yet
        self._base = base
        self._stored = stored
        self._hashes = hashes
        self._place = place
        self._transformation = transformation
        self._device = device

    def __iter__(self) -> Iterator[str]:
        return iter(self._base.checkpoint)

    def __contains__(self, name: object, /) -> bool:
        return name in self._base.checkpoint

    def __getitem__(self, name: str, /) -> TensorInfo:
        info = self._base.checkpoint[name]
        stored = self._own(name)
        if stored is None or stored.replacement is not None:
            return info
        shape = info.shape
        if stored.rows is not None:
            shape = (shape[0] + stored.rows.get_shape()[0], *shape[1:])
        return replace(info, dtype=CODES[torch.float32], shape=shape)

    def read(self, name: str, index: Index | None = None) -> Tensor:
        """Return a slice of a tensor: the base's, or the base plus the new delta in float32."""
        stored = self._own(name)
        part: Any = ... if index is None else index
        if stored is None:
            return self._base.checkpoint.read(name, index)
        if stored.replacement is not None:
            return stored.replacement[part]
        old = self._base.checkpoint.read(name).to(self._device, torch.float32)
        rows = old.shape[0] if old.ndim else 0
        if index and stored.rows is not None and index[0].start == rows:
            return stored.rows[...]
        deltas = TensorDeltas(self._base, name, tuple(of.get(name) for of in self._stored), self._hashes, self._device)
        delta = self._transformation.delta(self._place, deltas)
        if delta.dense is None and delta.left is not None and delta.right is not None:
            self.factors[name] = (delta.left, delta.right)
        new = old + to_dense(delta, old)
        return new[part]

    def is_copy(self, name: str, other: str) -> bool:
        """Return whether two tensors are one, as they are in the base."""
        return self._base.checkpoint.is_copy(name, other) and self._own(name) is None and self._own(other) is None

    def _own(self, name: str) -> StoredDelta | None:
        return self._stored[self._place].get(name)


@dataclass(frozen=True)
class _FactorsFirst:
    """An encoder that stores a delta as the factors it was computed as, and leaves the others to another encoder."""

    source: _Transformed
    encoder: Encoder

    @property
    def options(self) -> Options:
        return self.encoder.options

    def prepare(self, first_look: Callable[[], FirstLook]) -> "_FactorsFirstTensors":
        """Let the other encoder look at the tensors that are its own."""

        def look_at_others() -> FirstLook:
            look = first_look()
            glances = {key: glance for key, glance in look.glances.items() if key not in self.source.factors}
            return FirstLook(glances, look.reserved)

        return _FactorsFirstTensors(self.source, self.encoder.prepare(look_at_others))


@dataclass(frozen=True)
class _FactorsFirstTensors:
    """The same, ready to encode."""

    source: _Transformed
    encoder: TensorEncoder

    def encode(self, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
        """Return the factors of a delta, or what the other encoder makes of it."""
        factors = self.source.factors.pop(key, None)
        if factors is None:
            return self.encoder.encode(key, delta, base, finetuned)
        left, right = factors
        codec = LowRank(rank=right.shape[0], dtype="float32")
        return codec, encode_factors(left.float(), right.float(), codec.dtype)

    def explain(self, records: Mapping[str, StoredTensor], nbytes: int) -> str:
        """Return the other encoder's line."""
        return self.encoder.explain(records, nbytes)


def _joined(deltas: Sequence[Scaled]) -> Delta:
    """Return a sum of deltas as one: factors side by side in float32, and the dense ones added up."""
    lefts = []
    rights = []
    dense = None
    for scale, delta in deltas:
        if delta.left is not None and delta.right is not None:
            lefts.append(delta.left.float())
            rights.append(delta.right.float() * scale)
        for part in (delta.dense, delta.rest):
            if part is not None:
                wide = part.float() * scale
                dense = wide if dense is None else dense + wide
    if not lefts:
        return Delta(dense=dense)
    return Delta(left=torch.cat(lefts, dim=1), right=torch.cat(rights), dense=dense)
