"""One tensor of `codec="auto"`, fitted to what the plan allows it: the rank that leaves signs the least to do, or the LoRA it was.

    noise of signs = |delta - low rank|^2 * (tail * (1 + noise of a group) - 1),    tail = 2 / pi * n * sum(delta^2) / sum(|delta|)^2

`tail` is 1 where the delta is Gaussian, and large where few elements moved. Of a delta that LoRA training left, the low rank
is all, and the rest is what rounding the merged checkpoint to its dtype added: as white as noise, and as small.
"""

import logging
import math

import torch
from torch import Tensor

from dem_hub.codecs.auto.budget import Plan, most_signs, stored_bytes
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.exact import Exact
from dem_hub.codecs.factors import encode_factors
from dem_hub.codecs.integer import Int4, Int8
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.measure import measure
from dem_hub.codecs.sign import noise
from dem_hub.numerics.norms import squared_norm
from dem_hub.numerics.svd import balance, truncated_svd

logger = logging.getLogger(__name__)

RANKS = (2, 4, 8, 16, 32, 48, 64)  # weighed against more signs
# Of the space that directions are looked for in. It finds all but a thousandth of what the first 32 hold, all but a few hundredths of 64;
# signs take up what it misses, and what embeddings miss is small.
_WIDTH, _STEPS, _VOCABULARY_STEPS = 32, 2, 3
LIMIT = 0.01  # noise, against the weights, from which it may show
_ADAPTER_RANKS = 4  # a LoRA has at most this part of the full rank
_WHITE = 1.15  # how far the largest direction of noise may stand above its law

Encoded = tuple[Codec, dict[str, Tensor]]


def encode_planned(plan: Plan, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """Encode one tensor as planned.

    Args:
        plan ([`Plan`]): of the vector.
        key (`str`): the tensor's name.
        delta (`Tensor`): float32, finetuned - base.
        base, finetuned (`Tensor`): in their own dtypes.

    Returns:
        `tuple[Codec, dict[str, Tensor]]`: the codec that it was, and the parts.
    """
    shape = tuple(delta.shape)
    settled = plan.codecs.get(key)
    found = _as_adapter(delta, finetuned) if plan.adapter else None
    if found is not None:
        allowed = stored_bytes(settled, shape) if settled is not None else plan.bits.get(key, 0.0) * delta.numel() / 8
        fits = stored_bytes(found[0], shape) <= allowed or not plan.explicit
        if fits and measure(*found, delta, base)[1] <= (plan.max_error or math.inf):
            return found
    if isinstance(settled, LowRank):
        assert settled.rank is not None
        factors = balance(*truncated_svd(delta, rank=settled.rank, width=_WIDTH, steps=_VOCABULARY_STEPS))
        return settled, encode_factors(*factors, settled.dtype)
    if settled is not None:
        return settled, settled.encode(delta, base, finetuned)
    if plan.max_error is not None:
        return _within_error(plan.max_error, delta, base, finetuned)
    return _with_signs(plan, key, delta, base, finetuned)


def _with_signs(plan: Plan, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """Signs, and of a matrix the rank that leaves them the least noise, within its bits of the plan."""
    shape = tuple(delta.shape)
    squares, size = squared_norm(delta), squared_norm(base) ** 0.5
    tail = max(1.0, 2 / math.pi * delta.numel() * squares / float(delta.abs().sum(dtype=torch.float64)) ** 2)
    codec, factors = most_signs(shape, plan.bits[key]), None
    least = squares * (tail * (1 + noise(codec.group)) - 1)
    if len(shape) == 2:
        left, values, right = truncated_svd(delta, rank=min(RANKS[-1], *shape), width=_WIDTH, steps=_STEPS)
        held = values.double().square().cumsum(0)
        for rank in [rank for rank in RANKS if rank <= len(values)]:
            candidate = most_signs(shape, plan.bits[key], rank)
            left_over = max(squares - float(held[rank - 1]), 0.0) * (tail * (1 + noise(candidate.group)) - 1)
            if left_over < least and stored_bytes(candidate, shape) <= plan.bits[key] * delta.numel() / 8:
                least, codec = left_over, candidate
                factors = balance(left[:, :rank], values[:rank], right[:rank])
    if least**0.5 > LIMIT * size:
        if not plan.explicit:
            return _finer(delta, base, finetuned)
        share = f"{100 * least**0.5 / size:.1f} % of its weights" if size else "more than its weights, which are 0"
        logger.warning("%s: max_bytes leaves it a noise of %s, which may show.", key, share)
    if isinstance(codec, LRSign) and factors is not None:
        return codec, codec.encode_with(factors, delta)
    return codec, codec.encode(delta, base, finetuned)


def _finer(delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """What signs are too coarse for: in 4 bits, or exact where that is shorter, as of a fine-tune that moved few elements."""
    found: list[Encoded] = [(codec, codec.encode(delta, base, finetuned)) for codec in (Int4(), Exact())]
    return min(found, key=lambda encoded: sum(part.nbytes for part in encoded[1].values()))


def _within_error(max_error: float, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """The shortest of some codecs that keeps within an error, as measured."""
    for codec in (LRSign(), Int4(), Int8(), Dense("bfloat16")):
        encoded = codec, codec.encode(delta, base, finetuned)
        if measure(*encoded, delta, base)[1] <= max_error:
            return encoded
    return Dense(), Dense().encode(delta, base, finetuned)


def _as_adapter(delta: Tensor, finetuned: Tensor) -> Encoded | None:
    """The factors of a delta that is of low rank but for white noise, no larger than rounding the fine-tune left; `None` where it is not.

    Noise of standard deviation s has no direction above s * (sqrt(R) + sqrt(C)) (Marchenko and Pastur, 1967).
    """
    rows, columns = delta.shape
    most = min(rows, columns) // _ADAPTER_RANKS
    left, values, right = truncated_svd(delta, rank=max(most, 1))
    size = squared_norm(delta)
    rest = (size - values.double().square().cumsum(0)).clamp_(min=0)
    edge = _WHITE * (rest / (rows * columns)).sqrt() * (rows**0.5 + columns**0.5)
    rank = next(
        (rank for rank in range(1, most) if values[rank] <= max(float(edge[rank - 1]), 1e-6 * float(values[0]))), None
    )
    if rank is None:
        return None
    factors = balance(left[:, :rank], values[:rank], right[:rank])
    noise = squared_norm(torch.addmm(delta, *factors, alpha=-1))
    rounding = torch.finfo(finetuned.dtype).eps ** 2 * squared_norm(finetuned) / 12  # at the most
    if noise > max(rounding, (4 * torch.finfo(torch.float32).eps) ** 2 * size):
        return None
    codec = LowRank(rank=rank, dtype="bfloat16" if 2.0**-16 * size <= noise else "float32")
    return codec, encode_factors(*factors, codec.dtype)
