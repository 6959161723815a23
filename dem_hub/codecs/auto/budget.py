"""The budget of `codec="auto"`, in bytes or in error, divided among the tensors of a vector after a first look at all
of them.

Three kinds of tensors are told apart. Vectors (norms, biases) cost next to nothing and are kept whole. Matrices with
a row for each token move most in a fine-tune and matter least: their leading directions matter, and noise on them,
which reaches every logit, harms. All other matrices share the rest of the budget evenly. The size of the error
decides nothing, because the codec with the smallest error at a size is a biased one, and worse in a sum.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from dem_hub.codecs.codec import Codec
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.first_look import Glance
from dem_hub.codecs.integer import Int4, Int8
from dem_hub.codecs.layout import layout_bytes
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.nf4 import NF4
from dem_hub.codecs.options import Options
from dem_hub.codecs.packing import packed_size
from dem_hub.codecs.sign import Sign, code_bits
from dem_hub.errors import CodecError
from dem_hub.files.sizes import parse_size

# Share of the delta in bf16. At 9 %, which has room for 64 directions in a matrix of SmolLM2-135M, vectors of full
# fine-tunes keep 99.9 % and more of the improvement; at 3 %, 99.5 % and more (benchmarks/README.md, `codecs.py`).
DEFAULT_SHARE = 0.09

# Elements of a matrix that is kept whole, as norms are. Chosen by hand, not measured: 32 KiB in bf16.
SMALL = 1 << 14

# Bits an element that a matrix can use: signs, and 64 directions beside them in a matrix of 576 rows (SmolLM2-135M's
# width).
_MOST_BITS = 2.0

# Bits an element from which the factors of embeddings are stored in 8 bits instead of 4. Of SmolLM2-135M's long
# fine-tune, 64 directions of the embedding kept 99.3 % of the improvement in 4 bits and 100.1 % unquantized. Where in
# between the step lies was chosen by hand.
_AMPLE_BITS = 0.8

# Columns of a tensor below which `nf4` is taken: in narrower ones (convolutions) the scales would take more space
# than the values.
_NARROW = 64

# Directions of an embedding: this many for each bit an element, rounded to a power of two from 8 to 64. Chosen by
# hand, not measured: 64 directions from 1.13 bits on, and so at the default of 9 % (1.44 bits).
_DIRECTIONS_PER_BIT = 40
_FEWEST_DIRECTIONS = 8
_MOST_DIRECTIONS = 64

# Bytes that a part takes in the header of a safetensors file: an upper bound for names of usual length.
_HEADER_BYTES = 200


@dataclass(frozen=True)
class Auto(Options):
    """Choose a codec for each tensor within a budget: `max_bytes` of tensor files, or the largest `max_error` of a
    tensor.

    `max_bytes` is a number of bytes, a text like `"20MB"`, or a share like `"3%"` of the delta in bf16. The error is
    |decoded - delta| / |delta|.
    """

    name: ClassVar[str] = "auto"
    max_bytes: int | str | None = field(
        default=None,
        metadata={
            "help": "size of the tensor files: bytes, or a text like 20MB, or 3% of the delta in bf16; 9% by default"
        },
    )
    max_error: float | None = field(
        default=None, metadata={"help": "instead of `max_bytes`: largest relative error of a tensor"}
    )

    def __post_init__(self) -> None:
        """Refuse both at once, and values out of range."""
        if self.max_bytes is not None and self.max_error is not None:
            raise CodecError(
                f"codec 'auto' takes max_bytes or max_error, not both ({self.max_bytes!r} and {self.max_error!r})."
            )
        if self.max_error is not None and not self.max_error > 0:
            raise CodecError(
                f"codec 'auto' has max_error={self.max_error!r}; it must be above 0. "
                "codec='exact' and 'dense' have none."
            )
        if self.max_bytes is not None and (type(self.max_bytes) not in (int, str) or self.budget(1 << 40) <= 0):
            raise CodecError(
                f"codec 'auto' has max_bytes={self.max_bytes!r}; give a whole number above 0, "
                "or a text like '20MB' or '3%'."
            )

    def budget(self, elements: int) -> int:
        """Return the bytes that the deltas of so many elements may take."""
        bytes_in_bf16 = 2 * elements
        if self.max_bytes is None:
            return int(DEFAULT_SHARE * bytes_in_bf16)
        if isinstance(self.max_bytes, str) and self.max_bytes.strip().endswith("%"):
            try:
                return int(float(self.max_bytes.strip()[:-1]) / 100 * bytes_in_bf16)
            except (ValueError, OverflowError) as error:
                raise CodecError(
                    f"codec 'auto' has max_bytes={self.max_bytes!r}; a share is written like '3%'."
                ) from error
        return parse_size(self.max_bytes)


@dataclass
class Budget:
    """Bytes that may be spent. `left` is below 0 if more than the `total` was spent."""

    total: int
    left: int = field(init=False)

    def __post_init__(self) -> None:
        """Begin with the total."""
        self.left = self.total

    def spend(self, nbytes: int) -> None:
        """Take bytes from what is left."""
        self.left -= nbytes


@dataclass(frozen=True)
class Plan:
    """The share of each tensor of a vector, by the tensor's name.

    `codecs` has the tensors that the first look settled. Each other tensor gets what fits in its `bits` an element,
    or within `max_error`. `is_adapter` says that nothing but matrices changed, as LoRA training leaves it.
    `is_explicit` says that the user named the bytes.
    """

    codecs: Mapping[str, Codec]
    bits: Mapping[str, float]
    max_error: float | None
    is_adapter: bool
    is_explicit: bool


def make_plan(auto: Auto, glances: Mapping[str, Glance], reserved: int = 0) -> Plan:
    """Divide a budget among tensors.

    Args:
        auto ([`Auto`]): the budget.
        glances (`Mapping[str, Glance]`): a first look at every tensor that changed and is a delta.
        reserved (`int`): bytes of what is stored as it is: new rows and replaced tensors.

    Raises:
        `CodecError`: the coarsest codecs take more bytes than the budget; says how many.

    Example:

    ```python
    >>> from dem_hub.codecs.auto.budget import Auto, make_plan
    >>> from dem_hub.codecs.first_look import Glance
    >>> glances = {"up.weight": Glance((64, 4096), 1e-4, 0.02, False), "norm.weight": Glance((64,), 1e-4, 1.0, False)}
    >>> plan = make_plan(Auto(max_bytes="5%"), glances)
    >>> plan.codecs, round(plan.bits["up.weight"], 2)
    ({'norm.weight': Dense(dtype='bfloat16')}, 0.79)

    ```
    """
    matrices = {key: glance for key, glance in glances.items() if len(glance.shape) > 1 and glance.elements >= SMALL}
    small = [key for key in glances if key not in matrices]
    is_explicit = auto.max_bytes is not None
    is_adapter = all(len(glance.shape) == 2 and not glance.is_vocabulary for glance in glances.values())
    if auto.max_error is not None:
        return Plan(dict.fromkeys(small, Dense()), {}, auto.max_error, is_adapter, is_explicit)

    elements = sum(glance.elements for glance in glances.values())
    budget = Budget(auto.budget(elements))
    codecs: dict[str, Codec] = dict.fromkeys(small, Dense("bfloat16"))
    for key, glance in matrices.items():
        if glance.shape[-1] < _NARROW:
            codecs[key] = NF4()
        elif glance.is_vocabulary:
            codecs[key] = _choose_vocabulary_codec(8 * budget.total / elements, glance.shape)
    sizes = {key: stored_bytes(codec, glances[key].shape) for key, codec in codecs.items()}
    for key, size in sizes.items():
        # Without a budget of the user's, small tensors are not counted: in a small model they would take a large part
        # of it.
        if is_explicit or key in matrices:
            budget.spend(size)
    if is_explicit:
        budget.spend(reserved)

    shared = {key: glance for key, glance in matrices.items() if key not in codecs}
    fewest_bytes = {key: stored_bytes(most_signs(glance.shape, 0), glance.shape) for key, glance in shared.items()}
    if budget.left < sum(fewest_bytes.values()) and is_explicit:
        needed = budget.total - budget.left + sum(fewest_bytes.values())
        raise CodecError(
            f"max_bytes allows {budget.total} bytes, and this vector takes {needed} at the least. Allow it that."
        )
    bits = _share_bits(budget.left, shared, fewest_bytes)
    for key, glance in shared.items():
        sizes[key] = int(bits[key] * glance.elements / 8)
        budget.spend(sizes[key])
    return Plan(codecs | _choose_finer_codecs(budget, sizes, matrices), bits, None, is_adapter, is_explicit)


def _choose_vocabulary_codec(bits: float, shape: tuple[int, ...]) -> LowRank:
    """Return the codec of an embedding, by the bits an element of the whole vector."""
    directions = 2 ** round(math.log2(max(_DIRECTIONS_PER_BIT * bits, 1)))
    rank = min(_MOST_DIRECTIONS, max(_FEWEST_DIRECTIONS, directions))
    return LowRank(rank=min(rank, *shape), dtype="int8" if bits >= _AMPLE_BITS else "int4")


def _share_bits(nbytes: int, matrices: Mapping[str, Glance], fewest_bytes: Mapping[str, int]) -> dict[str, float]:
    """Return the bits an element of each matrix, such that all matrices take about `nbytes`.

    They are in proportion to the matrices' weights, at most what signs and factors can use, and at least what
    `fewest_bytes` are.
    """
    fewest = {key: 8 * fewest_bytes[key] / glance.elements for key, glance in matrices.items()}

    def bits_at(scale: float) -> dict[str, float]:
        return {key: max(min(scale * glance.weight, _MOST_BITS), fewest[key]) for key, glance in matrices.items()}

    # Bisect the scale. At the upper bound every matrix has the most bits; 60 halvings are more than the digits of a
    # float.
    bits = fewest
    low = 0.0
    high = 64.0 / min([1.0, *(glance.weight for glance in matrices.values())])
    for _ in range(60):
        middle = (low + high) / 2
        trial = bits_at(middle)
        if sum(trial[key] * glance.elements / 8 for key, glance in matrices.items()) <= nbytes:
            bits = trial
            low = middle
        else:
            high = middle
    return bits


def _choose_finer_codecs(budget: Budget, sizes: Mapping[str, int], matrices: Mapping[str, Glance]) -> dict[str, Codec]:
    """Spend what is left of a budget on finer codecs, first for those matrices that need them most.

    Args:
        budget ([`Budget`]): the bytes that are left after `sizes` were spent.
        sizes (`Mapping[str, int]`): the bytes that each matrix has so far.
        matrices (`Mapping[str, Glance]`): the matrices of the vector.

    Returns:
        `dict[str, Codec]`: the matrices that get a finer codec.
    """
    sizes = dict(sizes)
    codecs: dict[str, Codec] = {}

    # Embeddings come last. Of the others, those whose change is largest against their weights come first.
    def need(key: str) -> tuple[bool, float, str]:
        return matrices[key].is_vocabulary, -matrices[key].weight, key

    for codec in (Int4(), Int8(), Dense("bfloat16"), Dense()):
        for key in sorted(matrices, key=need):
            more = stored_bytes(codec, matrices[key].shape) - sizes[key]
            if 0 < more <= budget.left:
                codecs[key] = codec
                sizes[key] += more
                budget.spend(more)
    return codecs


def stored_bytes(codec: Codec, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor in a file, with its lines in the header."""
    layout = codec.layout(shape)
    return layout_bytes(layout) + _HEADER_BYTES * len(layout)


def most_signs(shape: tuple[int, ...], bits: float, rank: int = 0) -> Sign | LRSign:
    """Return the codec that keeps the most signs, beside factors of a rank, in so many bits an element.

    It keeps at least the largest of every 128 elements, however few the bits are.
    """
    codec: Sign | LRSign = LRSign(rank=rank) if rank else Sign()
    rows = math.prod(shape[:-1])
    columns = shape[-1]
    fixed_bytes = stored_bytes(codec, shape) - rows * packed_size(columns, 1)
    bits_per_row = 8 * int((bits * math.prod(shape) / 8 - fixed_bytes) // max(rows, 1))
    for group, bits_per_group in _GROUPS.items():
        if -(-columns // group) * bits_per_group <= bits_per_row:
            return replace(codec, group=group)
    return replace(codec, group=max(_GROUPS))


def _find_groups() -> dict[int, int]:
    """Return the groups of signs, up to 128, that take fewer bits an element than any smaller group, each with the
    bits of its code.
    """
    groups: dict[int, int] = {}
    for size in range(1, 129):
        bits = code_bits(size)
        if all(bits * smaller < smaller_bits * size for smaller, smaller_bits in groups.items()):
            groups[size] = bits
    return groups


_GROUPS = _find_groups()
