"""`codec="auto"`: a budget of bytes or of error, divided among the tensors of a vector after a first look at all of them.

Three kinds of tensors are told apart. Vectors (norms, biases) cost next to nothing and are kept whole. Matrices with a row for each
token move most in a fine-tune and matter least: their leading directions do, and noise on them, which every logit sees, harms. All
other matrices share the rest of the budget evenly. The error as a number decides nothing: the codec with the smallest error at a size
is a biased one, and worse in a sum.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from dem_hub.codecs.codec import Codec
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.integer import Int4, Int8
from dem_hub.codecs.layout import layout_bytes
from dem_hub.codecs.listing import list_codecs
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.nf4 import NF4
from dem_hub.codecs.packing import packed_size
from dem_hub.codecs.registry import get_codec, with_options
from dem_hub.codecs.sign import Sign, code_bits
from dem_hub.errors import CodecError
from dem_hub.files.sizes import parse_size

DEFAULT_SHARE = 0.09  # of the delta in bf16
SMALL = 1 << 14  # elements of a matrix that is kept whole, as norms are
_MOST_BITS = 2.0  # an element, of signs and a rank of 64 beside them in a matrix of 576 rows
_AMPLE = 0.8  # bits an element, of which embeddings get factors in 8 bits
_NARROW = 64  # columns, below which scales of rows and groups weigh more than what they scale (convolutions)
# Groups of signs that take fewer bits an element than any smaller group does.
_GROUPS = {
    size: code_bits(size)
    for size in range(1, 129)
    if all(code_bits(size) * less < code_bits(less) * size for less in range(1, size))
}
_HEADER = 200  # bytes that a part takes in a safetensors header, at the most


@dataclass(frozen=True)
class Auto:
    """A budget: `max_bytes` of tensor files (a number, `"20MB"`, or `"3%"` of the delta in bf16), or the largest `max_error` of a tensor.

    The error is |decoded - delta| / |delta|.
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

    @classmethod
    def or_codec(cls, name: str, options: Mapping[str, Any]) -> "Auto | Codec":
        """What a user names as `codec`: `"auto"`, or one of the codecs.

        Raises:
            `CodecError`: no such codec, or an option that it does not have.
        """
        if name != cls.name:
            return get_codec(name, options)
        others = [
            codec.name
            for codec in list_codecs()
            if codec.name != cls.name and set(options) <= {option.name for option in codec.options}
        ]
        if options and others:
            given = ", ".join(map(repr, options))
            raise CodecError(f"Codec 'auto' has no option {given}; name the codec that it is for: {', '.join(others)}.")
        return with_options(cls, options)

    def __post_init__(self) -> None:
        """Refuse both at once, and values out of range."""
        if self.max_bytes is not None and self.max_error is not None:
            raise CodecError(
                f"codec 'auto' takes max_bytes or max_error, not both ({self.max_bytes!r} and {self.max_error!r})."
            )
        if self.max_error is not None and not self.max_error > 0:
            raise CodecError(
                f"codec 'auto' has max_error={self.max_error!r}; it must be above 0. codec='exact' and 'dense' have none."
            )
        if self.max_bytes is not None and (type(self.max_bytes) not in (int, str) or self.budget(1 << 40) <= 0):
            raise CodecError(
                f"codec 'auto' has max_bytes={self.max_bytes!r}; give a whole number above 0, or a text like '20MB' or '3%'."
            )

    def budget(self, elements: int) -> int:
        """Bytes that the deltas of so many elements may take."""
        if self.max_bytes is None:
            return int(DEFAULT_SHARE * 2 * elements)
        if isinstance(self.max_bytes, str) and self.max_bytes.strip().endswith("%"):
            try:
                return int(float(self.max_bytes.strip()[:-1]) / 100 * 2 * elements)
            except (ValueError, OverflowError) as error:
                raise CodecError(
                    f"codec 'auto' has max_bytes={self.max_bytes!r}; a share is written like '3%'."
                ) from error
        return parse_size(self.max_bytes)


@dataclass(frozen=True)
class Glance:
    """What a first look shows of a tensor that changed: its shape, how large its changes and its weights are, whether rows are tokens.

    `rms` and `base_rms` are root mean squares of an element.
    """

    shape: tuple[int, ...]
    rms: float
    base_rms: float
    is_vocabulary: bool

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def weight(self) -> float:
        """The share of bits that it should have: noise counts against the weights that it is added to."""
        return self.rms / (self.base_rms + self.rms)


@dataclass(frozen=True)
class Plan:
    """What each tensor gets: a codec where the first look settled it; else what fits in its `bits` an element, or within `max_error`.

    `adapter` says that nothing but matrices changed, as LoRA training leaves it; `explicit` that the user named the bytes.
    """

    codecs: Mapping[str, Codec]
    bits: Mapping[str, float]
    max_error: float | None
    adapter: bool
    explicit: bool


def make_plan(auto: Auto, glances: Mapping[str, Glance], reserved: int = 0) -> Plan:
    """Divide the budget.

    Args:
        auto ([`Auto`]): the budget.
        glances (`Mapping[str, Glance]`): of every tensor that changed and is a delta.
        reserved (`int`): bytes of what is stored as it is: new rows and replaced tensors.

    Raises:
        `CodecError`: fewer bytes than the coarsest codecs take; says how many that is.

    Example:

    ```python
    >>> from dem_hub.codecs.auto.budget import Auto, Glance, make_plan
    >>> glances = {"up.weight": Glance((64, 4096), 1e-4, 0.02, False), "norm.weight": Glance((64,), 1e-4, 1.0, False)}
    >>> plan = make_plan(Auto(max_bytes="5%"), glances)
    >>> plan.codecs, round(plan.bits["up.weight"], 2)
    ({'norm.weight': Dense(dtype='bfloat16')}, 0.79)

    ```
    """
    matrices = {key: glance for key, glance in glances.items() if len(glance.shape) > 1 and glance.elements >= SMALL}
    whole = [key for key in glances if key not in matrices]
    explicit = auto.max_bytes is not None
    adapter = all(len(glance.shape) == 2 and not glance.is_vocabulary for glance in glances.values())
    if auto.max_error is not None:
        return Plan(dict.fromkeys(whole, Dense()), {}, auto.max_error, adapter, explicit)
    elements = sum(glance.elements for glance in glances.values())
    budget = auto.budget(elements)
    codecs: dict[str, Codec] = dict.fromkeys(whole, Dense("bfloat16"))
    for key, glance in matrices.items():
        if glance.shape[-1] < _NARROW:
            codecs[key] = NF4()
        elif glance.is_vocabulary:
            codecs[key] = _vocabulary(8 * budget / elements, glance.shape)
    shared = {key: glance for key, glance in matrices.items() if key not in codecs}
    if not explicit:  # norms would weigh on a small model
        budget += _taken({key: codecs[key] for key in whole}, glances)
    left = budget - _taken(codecs, glances) - (reserved if explicit else 0)
    least = {key: stored_bytes(most_signs(glance.shape, 0), glance.shape) for key, glance in shared.items()}
    if left < sum(least.values()) and explicit:
        taken = budget - left + sum(least.values())
        raise CodecError(f"max_bytes allows {budget} bytes, and this vector takes {taken} at the least. Allow it that.")
    bits = _share(left, shared, least)
    sizes = {key: stored_bytes(codec, glances[key].shape) for key, codec in codecs.items()}
    sizes |= {key: int(bits[key] * glance.elements / 8) for key, glance in shared.items()}
    _spend(left + _taken(codecs, glances) - sum(sizes.values()), sizes, matrices, codecs)
    return Plan(codecs, bits, None, adapter, explicit)


def _taken(codecs: Mapping[str, Codec], glances: Mapping[str, Glance]) -> int:
    """Bytes of some tensors in these codecs."""
    return sum(stored_bytes(codec, glances[key].shape) for key, codec in codecs.items())


def _vocabulary(bits: float, shape: tuple[int, ...]) -> LowRank:
    """8 to 64 directions, the more the more bits there are for an element; in 8 bits, whose noise no logit sees, if those are many."""
    rank = int(2 ** min(6, max(3, round(math.log2(max(40 * bits, 1))))))
    return LowRank(rank=min(rank, *shape), dtype="int8" if bits >= _AMPLE else "int4")


def _share(left: int, matrices: Mapping[str, Glance], least: Mapping[str, int]) -> dict[str, float]:
    """The bits an element of each matrix, in proportion to their weights, no more than signs and factors can use and no less than `least`."""
    fewest = {key: 8 * least[key] / glance.elements for key, glance in matrices.items()}
    bits = fewest
    low, high = 0.0, 64.0 / min([1.0, *(glance.weight for glance in matrices.values())])
    for _ in range(60):
        middle = (low + high) / 2
        tried = {key: max(min(middle * glance.weight, _MOST_BITS), fewest[key]) for key, glance in matrices.items()}
        if sum(tried[key] * glance.elements / 8 for key, glance in matrices.items()) <= left:
            bits, low = tried, middle
        else:
            high = middle
    return bits


def _spend(left: int, sizes: dict[str, int], matrices: Mapping[str, Glance], codecs: dict[str, Codec]) -> None:
    """Give finer codecs to as many matrices as the bytes that are left allow, those that need them most first; `sizes` is what they have."""
    for codec in (Int4(), Int8(), Dense("bfloat16"), Dense()):
        for key, glance in sorted(matrices.items(), key=lambda item: (item[1].is_vocabulary, -item[1].weight, item[0])):
            more = stored_bytes(codec, glance.shape) - sizes[key]
            if 0 < more <= left:
                codecs[key] = codec
                sizes[key] += more
                left -= more


def stored_bytes(codec: Codec, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a file, its lines in the header included."""
    layout = codec.layout(shape)
    return layout_bytes(layout) + _HEADER * len(layout)


def most_signs(shape: tuple[int, ...], bits: float, rank: int = 0) -> Sign | LRSign:
    """The most signs, beside factors of a rank, that fit in so many bits an element; one of each 128 at the least."""
    codec: Sign | LRSign = LRSign(rank=rank) if rank else Sign()
    rows, columns = math.prod(shape[:-1]), shape[-1]
    fixed = stored_bytes(codec, shape) - rows * packed_size(columns, 1)
    allowed = 8 * int((bits * math.prod(shape) / 8 - fixed) // max(rows, 1))  # bits of a row
    return replace(
        codec,
        group=next((group for group, each in _GROUPS.items() if -(-columns // group) * each <= allowed), max(_GROUPS)),
    )
