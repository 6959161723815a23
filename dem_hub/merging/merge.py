"""base + sum of coefficient * delta, lazily, slice by slice.

    merged[name] = round(base[name] + sum_i coefficient[i] * delta_i[name])

The sum is that of float64 on the device asked for, made in blocks of rows, and rounded once, so that this rounding is all the error
there is; of float32, where a delta nearly cancels a weight, what is left would be the error of the sum. Vectors are summed in the order of
their contents' hashes, whatever order they were named in. Whole models added one after the other, as the usual scripts do, round as
often as there are models.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs import add_deltas
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import Delta, combine_factors
from dem_hub.defaults import Rounding
from dem_hub.errors import BaseMismatchError, CheckpointError, CoefficientError, refuse
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.groups import take_apart
from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.kernels import add_scaled
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.norms import is_finite
from dem_hub.numerics.rounding import is_compiled, round_into
from dem_hub.numerics.slices import Index, full_index, index_shape, row_blocks
from dem_hub.numerics.threads import one_core
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.vector import DistributionVector

BLOCK = 1 << 21  # elements decoded at a time on the CPU
_SUMMED = 1 << 17  # of those, elements summed and rounded at a time: what stays in a core's cache
FACTORED_BLOCK = (
    1 << 23
)  # where the deltas are factors, of which nothing is made in full, and which each block reads anew
DEVICE_BLOCK = 1 << 24  # on an accelerator


@dataclass(frozen=True)
class Term:
    """One vector of a sum: its name, its coefficient, and its deltas, unread."""

    name: str
    sha256: str
    coefficient: float
    deltas: Mapping[str, StoredDelta]


@dataclass(frozen=True)
class Merge:
    """A weighted sum over one base, of which any slice of any tensor can be had on any device in any dtype."""

    base: Checkpoint
    terms: tuple[Term, ...]
    rounding: Rounding = "stochastic"
    seed: int = 0
    twins: Mapping[str, str] = field(default_factory=dict)  # see `Base.twins`; they round alike, and so stay tied

    @classmethod
    def of(
        cls,
        base: Base,
        vectors: Sequence[tuple[DistributionVector, Coefficient]],
        *,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        allow_base_mismatch: bool = False,
    ) -> "Merge":
        """Check that the vectors belong on the base and put them in order.

        Raises:
            `CoefficientError`: a coefficient that is not finite; groups that leave out a tensor which their vector changes.
            `BaseMismatchError`, `AdapterError`: see [`DistributionVector.deltas`]; buffers that two vectors disagree on.
        """
        terms = []
        found = all_deltas([vector for vector, _ in vectors], base, allow_base_mismatch=allow_base_mismatch)
        for (vector, coefficient), deltas in zip(vectors, found, strict=True):
            for name, number, part in _parts(vector.name, coefficient, deltas, base):
                if not math.isfinite(number):
                    raise CoefficientError(f"Vector '{name}' has coefficient {number}; it must be a finite number.")
                terms.append(Term(name, vector.sha256, float(number), part))
        terms.sort(key=lambda term: (term.sha256, term.name))
        merge = cls(base.checkpoint, tuple(terms), rounding, seed, base.twins if terms else {})
        merge._check_replacements()
        return merge

    def active(self, name: str) -> list[tuple[float, StoredDelta]]:
        """The terms that change this tensor; a coefficient of 0 is skipped, not multiplied."""
        return [
            (term.coefficient, term.deltas[name])
            for term in self.terms
            if term.coefficient != 0 and name in term.deltas
        ]

    def coefficients(self, name: str) -> list[tuple[str, float]]:
        """By which vectors, told by their hashes, this tensor is changed, and how much."""
        return [(term.sha256, term.coefficient) for term in self.terms if term.coefficient != 0 and name in term.deltas]

    def shape(self, name: str) -> tuple[int, ...]:
        """The merged shape: the base's, with the rows that vectors of a grown vocabulary add."""
        shape = self.base[name].shape
        added = max(
            (stored.rows.get_shape()[0] for _, stored in self.active(name) if stored.rows is not None), default=0
        )
        return (shape[0] + added, *shape[1:]) if added else shape

    def dtype(self, name: str, wanted: torch.dtype | None) -> torch.dtype:
        """The merged dtype: what is wanted of float tensors, and else the base's own."""
        own = self.base[name].torch_dtype
        return wanted if wanted is not None and own.is_floating_point else own

    @property
    def vocabulary(self) -> int | None:
        """The rows of the grown embeddings, where vectors have more than the base."""
        return max(
            (self.shape(name)[0] for name in self.base if self.shape(name) != self.base[name].shape), default=None
        )

    def tensor(self, name: str, index: Index, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A slice of a merged tensor.

        Args:
            name (`str`): the tensor's name on disk.
            index (`tuple[slice, ...]`): which part of it.
            device (`torch.device`): where the sum is made, and stays.
            dtype (`torch.dtype`, *optional*): to round to; the base's own by default.

        Raises:
            `CheckpointError`: NaN or inf, in the base or after the merge.
        """
        target = self.dtype(name, dtype)
        if (source := self._unsummed(name)) is not None:
            values = source[index if index else ...]
            return self._checked(name, values, values.to(device=device, dtype=target))
        result = torch.empty(index_shape(index), dtype=target, device=device)
        with one_core() if device.type == "cpu" else nullcontext():
            for part in self.parts(name, index, device):
                place = result[slice(part[0].start - index[0].start, part[0].stop - index[0].start)] if part else result
                if part and part[0].start >= self.base[name].shape[0]:
                    added = self._new_rows(name, part)
                    self._checked(name, added, place.copy_(added))
                else:
                    self._sum(name, part, place)
        return result

    def parts(self, name: str, index: Index, device: torch.device) -> list[Index]:
        """A slice as consecutive blocks of rows, which [`Merge.tensor`] can be asked for one by one, in any order."""
        if not index:
            return [index]
        rows = self.base[name].shape[0]
        known = (slice(index[0].start, min(index[0].stop, rows)), *index[1:])
        factored = all(stored.is_factored for _, stored in self.active(name))
        parts = list(row_blocks(known, DEVICE_BLOCK if device.type != "cpu" else FACTORED_BLOCK if factored else BLOCK))
        if index[0].stop > rows:
            parts.append((slice(max(index[0].start, rows), index[0].stop), *index[1:]))
        return parts or [index]

    def _unsummed(self, name: str) -> LazyTensor | None:
        """What the merged tensor is where it is no sum: the base's, or a buffer's replacement."""
        active = self.active(name)
        if not active:
            return self.base.lazy(name)
        return next((stored.replacement for _, stored in active if stored.replacement is not None), None)

    def summands(self, name: str, index: Index, device: torch.device) -> list[tuple[float, Delta]]:
        """The deltas of a slice, decoded on a device, each with what it is to be multiplied by."""
        lazy = self.base.lazy(name)
        return [
            (coefficient * scale, delta)
            for coefficient, stored in self.active(name)
            for scale, delta in stored.decode(lazy, index, device)
        ]

    def _sum(self, name: str, index: Index, result: Tensor) -> None:
        """Sum and round one part into the memory for it."""
        device = result.device
        part = self.base.read(name, index).to(device)
        wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        factors, dense = combine_factors(self.summands(name, index, device), wide)
        noise = None
        if self.rounding == "stochastic":
            noise = Noise.of(self.seed, self.twins.get(name, name), index, self.base[name].shape, device)
        straight = noise is not None and not dense and is_compiled(part.dtype, result.dtype, device)
        at_once = _SUMMED if device.type == "cpu" and not straight else max(1, part.numel())
        for rows in row_blocks(full_index(part.shape), at_once):
            total = part[rows]
            if not straight:
                total = scratch("total", tuple(total.shape), wide, device).copy_(total)
                _add(total, [(coefficient, delta.rows(rows[:1])) for coefficient, delta in dense])
            product = (factors[0][rows[0]], factors[1]) if factors is not None else None
            if not round_into(result[rows], total, product, noise and noise.part(rows, tuple(part.shape))):
                raise self._not_finite(name, part)

    def _new_rows(self, name: str, index: Index) -> Tensor:
        """Rows that the base lacks: the mean of the vectors that have them, weighted by their coefficients."""
        known = self.base[name].shape[0]
        index = (slice(index[0].start - known, index[0].stop - known), *index[1:])
        total = torch.zeros(index_shape(index), dtype=torch.float64)
        weight = torch.zeros(total.shape[0], dtype=torch.float64)
        for coefficient, stored in self.active(name):
            if stored.rows is not None:
                stop = min(index[0].stop, stored.rows.get_shape()[0])
                have = max(0, stop - index[0].start)
                if have:
                    rows = stored.rows[(slice(index[0].start, stop), *index[1:])].double()
                    total[:have] += coefficient * rows
                    weight[:have] += coefficient
        if not weight.all():
            raise CoefficientError(
                f"The coefficients of the vectors with new rows of '{name}' sum to 0, so their mean is undefined. Change one."
            )
        return total / weight.reshape(-1, *(1 for _ in index[1:]))

    def _checked(self, name: str, source: Tensor, values: Tensor) -> Tensor:
        """What a source was copied or cast to, once it is known to be finite."""
        if not is_finite(values):
            raise self._not_finite(name, source)
        return values

    def _not_finite(self, name: str, source: Tensor) -> CheckpointError:
        terms = "".join(
            f" + {term.coefficient} * '{term.name}'"
            for term in self.terms
            if term.coefficient != 0 and name in term.deltas
        )
        where = f"'{name}' of '{self.base.path}'{terms}"
        if not is_finite(source):
            return CheckpointError(f"{where} has NaN or inf in it. Use a base and vectors that did not diverge.")
        return CheckpointError(
            f"{where} is not finite, or beyond the range of the target dtype. Use smaller coefficients or a wider dtype."
        )

    def _check_replacements(self) -> None:
        faults = []
        for name in sorted({name for term in self.terms for name in term.deltas}):
            owners = [
                (term.name, term.deltas[name].replacement)
                for term in self.terms
                if term.coefficient != 0 and name in term.deltas
            ]
            found = [(owner, value) for owner, value in owners if value is not None]
            for owner, value in found[1:]:
                if not torch.equal(value[...], found[0][1][...]):
                    faults.append(f"'{name}' differs between '{found[0][0]}' and '{owner}'")
            if found:
                faults += [
                    f"'{name}' is replaced by '{found[0][0]}' and changed by '{owner}'"
                    for owner, value in owners
                    if value is None
                ]
        if faults:
            refuse(
                BaseMismatchError,
                "Buffers and integers are replaced, not scaled, and these vectors disagree on them.",
                faults,
                "Give all but one of them the coefficient 0, or extract them from fine-tunes that share these tensors.",
            )


def _add(total: Tensor, dense: Sequence[tuple[float, Delta]]) -> None:
    """What [`add_deltas`] does; of a whole vector in float32 on the CPU in one pass, where that makes two, as extraction has no numba."""
    for coefficient, delta in dense:
        if (
            delta.dense is not None
            and delta.dense.dtype == torch.float32
            and delta.rest is None
            and total.device.type == "cpu"
        ):
            add_scaled(total.view(-1).numpy(), delta.dense.contiguous().view(-1).numpy(), coefficient)
        else:
            add_deltas(total, [(coefficient, delta)])


def _parts(
    name: str, coefficient: Coefficient, deltas: Mapping[str, StoredDelta], base: Base
) -> list[tuple[str, float, Mapping[str, StoredDelta]]]:
    """A vector as the terms that it is: one, or one for each group with a coefficient of its own."""
    if not isinstance(coefficient, Mapping):
        return [(name, coefficient, deltas)]
    taken = take_apart(deltas, tuple(coefficient), base, name)
    return [(f"{name} [{group}]", number, taken[group]) for group, number in coefficient.items()]
