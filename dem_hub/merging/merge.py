"""The merge: base + sum of coefficient * delta, for any slice of any tensor.

    merged[name] = round(base[name] + sum_i coefficient[i] * delta_i[name])

Each block of rows is accumulated in float64 on the target device and rounded once, so the final rounding is the only
error. A float32 accumulator is not enough: where a delta nearly cancels a weight, its error would dominate the
result. Vectors are added in the order of their content hashes, so the result does not depend on the order in which
they were given. Scripts that add whole models one after another round once per model.

Nothing is read before a slice is asked for. Slices may be asked for in any order and from several threads.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.checkpoints.reader import Tensors
from dem_hub.codecs import add_deltas
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import Delta, Scaled, combine_factors
from dem_hub.defaults import Rounding
from dem_hub.errors import CheckpointError
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.dequantized_base import DequantizedTensors
from dem_hub.merging.new_rows import new_rows
from dem_hub.merging.terms import Term, active_terms, check_replacements, terms_of
from dem_hub.merging.token_rows import TokenRows, are_known, split_rows
from dem_hub.numerics.buffers import new_memory, reusing_memory, scratch
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.norms import is_finite
from dem_hub.numerics.passes import kernels, note_work
from dem_hub.numerics.precision import to_device, widest
from dem_hub.numerics.products import Product
from dem_hub.numerics.rounding import is_compiled, round_into
from dem_hub.numerics.slices import Index, full_index, index_shape, row_blocks
from dem_hub.numerics.threads import one_core
from dem_hub.vectors.deltas import all_deltas
from dem_hub.vectors.tokens import tokens_of
from dem_hub.vectors.vector import DistributionVector

# Elements of one block on the CPU, which one thread decodes, sums and rounds. Dense deltas are decoded in full: a
# block of one of them takes 8 MiB in float32. Chosen by hand, not measured.
BLOCK = 1 << 21

# The same where all deltas are low-rank factors. They are never multiplied out in full, so a block takes less memory;
# but each block reads all of the factors again, so that larger blocks read less. Chosen by hand, not measured.
FACTORED_BLOCK = 1 << 23

# The same on an accelerator, which is idle while the next small operation is started. Chosen by hand, not measured.
DEVICE_BLOCK = 1 << 24

# Elements of a block that are summed and rounded at a time on the CPU: the accumulator takes 2 MiB and stays in a
# core's cache. With such chunks, and a thread for each block, a merge of three dense vectors went from 60 ns an
# element on two cores to 8.5 ns on one. Smaller ones wait longer for Python: with half of it, a merge of SmolLM2-135M
# and three vectors on two threads took 1.63 s of CPU time instead of 1.53 s (by hand).
_CHUNK = 1 << 18

# Bytes an element of a block with dense deltas: a decoded delta and the result, each in float32 at most.
_DENSE_BYTES = 8


@dataclass(frozen=True)
class Merge:
    """A weighted sum over one base, any slice of which can be computed on any device and in any dtype.

    `tokens` are the rows of tokens that the base's tokenizer lacks. `twins` are copies of one tensor under several
    names (see `Base.twins`). They share their random bits, so tied weights stay tied. `origin` are the tensors that the
    vectors were taken from, where `base` is a quantized and dequantized form of these.
    """

    base: Tensors
    terms: tuple[Term, ...]
    rounding: Rounding = "stochastic"
    seed: int = 0
    twins: Mapping[str, str] = field(default_factory=dict)
    tokens: TokenRows = field(default_factory=TokenRows)
    origin: Tensors | None = None

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
        """Check that the vectors fit the base, and put them in order.

        Args:
            base ([`Base`]): The base.
            vectors (`Sequence[tuple[DistributionVector, Coefficient]]`): Each vector with its coefficient, in any
                order.
            rounding (`str`, *optional*, defaults to `"stochastic"`): How a sum becomes bfloat16 or float16; or
                `"nearest"`.
            seed (`int`, *optional*, defaults to 0): Seed of the stochastic rounding.
            allow_base_mismatch (`bool`, *optional*, defaults to `False`): Accept a base that the vectors were not
                taken from, if names and shapes agree.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If a coefficient is not finite, or the groups of a coefficient leave
                out a tensor that the vector changes.
            [`~dem_hub.errors.BaseMismatchError`]: If a vector does not fit the base, or two vectors disagree on a
                buffer, or it is not known what their new rows stand for.
            [`~dem_hub.errors.AdapterError`]: If a LoRA adapter does not fit the base.
        """
        deltas = all_deltas([vector for vector, _ in vectors], base, allow_base_mismatch=allow_base_mismatch)
        tokens = [(tokens_of(vector, base), coefficient) for vector, coefficient in vectors]
        terms: list[Term] = []
        for (vector, coefficient), vector_deltas, (its_tokens, _) in zip(vectors, deltas, tokens, strict=True):
            terms += terms_of(vector, coefficient, vector_deltas, base, its_tokens)
        terms.sort(key=lambda term: (term.sha256, term.name))
        # To find twins, all tensors of the base are hashed. Without a term nothing is rounded, and the names do not
        # matter.
        twins = base.twins if terms else {}
        check_replacements(terms)
        rows = TokenRows.of(base, tokens, deltas) if are_known(terms) else TokenRows()
        return cls(base.checkpoint, tuple(terms), rounding, seed, twins, rows)

    def active(self, name: str) -> list[tuple[float, StoredDelta]]:
        """Return the coefficient and the stored delta of each term that changes this tensor.

        A term with coefficient 0 is skipped, not multiplied, so its delta is not read.
        """
        return [(term.coefficient, term.deltas[name]) for term in self._active_terms(name)]

    def coefficients(self, name: str) -> list[tuple[str, float]]:
        """Return (sha256, coefficient) of every vector that changes this tensor, or has tokens in it."""
        terms = self._active_terms(name)
        if name in self.tokens.keys:
            terms = [term for term in self.terms if term.coefficient and (term.tokens or name in term.deltas)]
        return [(term.sha256, term.coefficient) for term in terms]

    def is_changed(self, name: str) -> bool:
        """Check whether a merged tensor can differ from the base's."""
        if isinstance(self.base, DequantizedTensors) and name in self.base.layers.is_transposed:
            return True
        return bool(self.active(name) or self.moved(name)) or self.shape(name) != self.base[name].shape

    def changed_elements(self) -> int:
        """Return the number of elements of all merged tensors that can differ from the base's."""
        return sum(math.prod(self.shape(name)) for name in self.base if self.is_changed(name))

    def moved(self, name: str) -> frozenset[int]:
        """Return the rows of a tensor that are summed by token, because a vector has another token there."""
        return self.tokens.moved(name, self.terms)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the merged shape: the base's, plus the rows that vectors with a larger vocabulary add."""
        base_shape = self.base[name].shape
        added = [stored.rows.get_shape()[0] for _, stored in self.active(name) if stored.rows is not None]
        rows = self.tokens.rows(name)
        if not added and not rows:
            return base_shape
        return (max(rows, base_shape[0] + max(added, default=0)), *base_shape[1:])

    def dtype(self, name: str, wanted: torch.dtype | None) -> torch.dtype:
        """Return the merged dtype: `wanted` for a float tensor, if it is given; else the base's own."""
        base_dtype = self.base[name].torch_dtype
        if wanted is None or not base_dtype.is_floating_point:
            return base_dtype
        return wanted

    @property
    def vocabulary(self) -> int | None:
        """The number of rows of the merged embeddings; `None` if no vector adds rows to the base's."""
        grown = [self.shape(name)[0] for name in self.base if self.shape(name) != self.base[name].shape]
        return max(grown, default=None)

    def tensor(self, name: str, index: Index, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Return a slice of a merged tensor.

        Args:
            name (`str`): Name of the tensor in the base's checkpoint.
            index (`tuple[slice, ...]`): One slice with start and stop for each dimension; see
                [`dem_hub.numerics.slices`].
            device (`torch.device`): Where the sum is computed, and stays.
            dtype (`torch.dtype`, *optional*): What to round to. Defaults to the base's own dtype.

        Returns:
            `Tensor`: The merged slice. If nothing changes the tensor, it may share memory with the base's file.

        Raises:
            [`~dem_hub.errors.CheckpointError`]: If the base or the result has NaN or inf.
        """
        target = self.dtype(name, dtype)
        source = self._unsummed(name)
        if source is not None:
            values = source[index if index else ...]
            return self._checked(name, values, values.to(device=device, dtype=target))
        result = new_memory(index_shape(index), target, device)
        self._fill(name, index, result)
        return result

    def write(self, name: str, index: Index, target: Tensor) -> None:
        """Write a slice of a merged tensor over another tensor; after an error, what is there is undefined.

        Args:
            name (`str`): Name of the tensor in the base's checkpoint.
            index (`tuple[slice, ...]`): As in [`Merge.tensor`].
            target (`Tensor`): Of the slice's shape. The sum is computed on its device, and rounded to its dtype.

        Raises:
            [`~dem_hub.errors.CheckpointError`]: If the base or the result has NaN or inf.
        """
        if target.is_contiguous() and self._unsummed(name) is None:
            self._fill(name, index, target)
        else:
            target.copy_(self.tensor(name, index, target.device, target.dtype))
        # autograd does not see what the compiled passes write: a backward pass of the old values would be wrong.
        torch.autograd.graph.increment_version(target)

    def blocks(self, name: str, index: Index, device: torch.device) -> list[Index]:
        """Divide a slice into consecutive blocks of rows, each of which [`Merge.tensor`] can compute on its own.

        Rows that the base has and rows that vectors add are never in one block, and a row that is summed by its token
        is a block of its own.
        """
        if not index:
            return [index]
        base_rows = self.base[name].shape[0]
        in_base = (slice(index[0].start, min(index[0].stop, base_rows)), *index[1:])
        blocks: list[Index] = []
        for part in split_rows(in_base, self.moved(name)):
            blocks += row_blocks(part, self._block_size(name, device))
        if index[0].stop > base_rows:
            blocks.append((slice(max(index[0].start, base_rows), index[0].stop), *index[1:]))
        return blocks or [index]

    def summands(self, name: str, index: Index, device: torch.device) -> list[tuple[float, Delta]]:
        """Return the deltas of a slice, decoded on a device, each with the number to multiply it by."""
        base = (self.origin or self.base).lazy(name)
        if index and index[0].start in self.moved(name):
            return self.tokens.summands(name, base, self.terms, index, device, widest(device))
        summands: list[Scaled] = []
        for coefficient, stored in self.active(name):
            for scale, delta in stored.decode(base, index, device):
                summands.append((coefficient * scale, delta))
        return summands

    def _active_terms(self, name: str) -> list[Term]:
        return active_terms(self.terms, name)

    def _block_size(self, name: str, device: torch.device) -> int:
        if device.type != "cpu":
            return DEVICE_BLOCK
        if all(stored.is_factored for _, stored in self.active(name)):
            return FACTORED_BLOCK
        return BLOCK

    def _unsummed(self, name: str) -> LazyTensor | None:
        """Return the tensor that is taken as it is: an unchanged one of the base, or the replacement of a buffer."""
        if not self.is_changed(name):
            return self.base.lazy(name)
        for _, stored in self.active(name):
            if stored.replacement is not None:
                return stored.replacement
        return None

    def _fill(self, name: str, index: Index, result: Tensor) -> None:
        """Compute a slice into `result`, which has its shape and is contiguous."""
        device = result.device
        with one_core() if device.type == "cpu" else nullcontext():
            for block in self.blocks(name, index, device):
                out = result
                if block:  # a scalar has no rows
                    first_row = index[0].start
                    out = result[block[0].start - first_row : block[0].stop - first_row]
                self._compute(name, block, out)

    def _compute(self, name: str, block: Index, out: Tensor) -> None:
        """Compute one block of rows into `out`: the sum, or rows that only the vectors have."""
        if not block or block[0].start < self.base[name].shape[0]:
            self._sum(name, block, out)
            return
        values = new_rows(name, block, self.base.lazy(name), self.active(name), self.terms, self.tokens)
        self._checked(name, values, out.copy_(values))

    @reusing_memory()
    def _sum(self, name: str, index: Index, out: Tensor) -> None:
        """Sum and round one block of rows into `out`, which has the shape of the block and is contiguous."""
        device = out.device
        if device.type == "cpu":
            note_work(out.numel())
        base = to_device(self.base.read(name, index), device)
        factors, dense = combine_factors(self.summands(name, index, device), widest(device))
        noise = self._noise(name, index, device)
        # A compiled kernel reads a 16-bit base as it is and adds the product of the factors. Everything else needs a
        # wide copy to add to.
        in_one_pass = noise is not None and not dense and is_compiled(base.dtype, out.dtype, device)
        chunk_size = _CHUNK
        if in_one_pass or device.type != "cpu":
            chunk_size = max(1, base.numel())
        product = None
        if factors is not None:
            product = Product.of(*factors)
        for rows in row_blocks(full_index(base.shape), chunk_size):
            total = base[rows]
            if not in_one_pass:
                total = _accumulate(total, dense, rows)
            chunk_product = None
            if product is not None:
                chunk_product = product.rows(rows[0])
            chunk_noise = None
            if noise is not None:
                chunk_noise = noise.part(rows, tuple(base.shape))
            if not round_into(out[rows], total, chunk_product, chunk_noise):
                raise self._not_finite(name, base)

    def _noise(self, name: str, index: Index, device: torch.device) -> Noise | None:
        """Return the random bits of a slice; `None` if it is rounded to nearest."""
        if self.rounding != "stochastic":
            return None
        return Noise.of(self.seed, self.twins.get(name, name), index, self.base[name].shape, device)

    def _checked(self, name: str, source: Tensor, values: Tensor) -> Tensor:
        """Return `values`, which `source` was copied or cast to, if all of them are finite."""
        if not is_finite(values):
            raise self._not_finite(name, source)
        return values

    def _not_finite(self, name: str, source: Tensor) -> CheckpointError:
        terms = "".join(f" + {term.coefficient} * '{term.name}'" for term in self._active_terms(name))
        where = f"'{name}' of '{self.base.path}'{terms}"
        if not is_finite(source):
            return CheckpointError(f"{where} has NaN or inf in it. Use a base and vectors that did not diverge.")
        return CheckpointError(
            f"{where} is not finite, or beyond the range of the target dtype. Use smaller coefficients or a wider "
            "dtype."
        )


def block_memory(itemsize: int) -> int:
    """Return the most bytes that a block takes on the CPU, if it is merged into a dtype of `itemsize` bytes.

    Low-rank deltas are multiplied out a few rows at a time, so their blocks take little more than the result.
    """
    return max(_DENSE_BYTES * BLOCK, itemsize * FACTORED_BLOCK)


def _accumulate(base: Tensor, dense: Sequence[tuple[float, Delta]], rows: Index) -> Tensor:
    """Return rows of the base plus the same rows of the dense deltas, in the accumulator's dtype.

    On the CPU the memory is this thread's buffer, and is valid until the next call.
    """
    total = scratch("total", tuple(base.shape), widest(base.device), base.device).copy_(base)
    for coefficient, delta in dense:
        _add_dense(total, coefficient, delta.rows(rows[:1]))
    return total


def _add_dense(total: Tensor, coefficient: float, delta: Delta) -> None:
    """Add a dense delta as [`add_deltas`] does, but a float32 one on the CPU with one compiled pass.

    [`add_deltas`] makes two passes, because extraction uses it too and must not wait for numba's import.
    """
    dense = delta.dense
    is_float32 = dense is not None and dense.dtype == torch.float32 and delta.rest is None
    compiled = kernels() if is_float32 and total.device.type == "cpu" else None
    if compiled is not None and dense is not None:
        compiled.add_scaled(total.view(-1).numpy(), dense.contiguous().view(-1).numpy(), coefficient)
    else:
        add_deltas(total, [(coefficient, delta)])
