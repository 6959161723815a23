"""The encoder of `codec="auto"`: each tensor gets the rank that leaves the least noise to signs, or is recognized as
a LoRA.

    noise of signs = |delta - low rank|^2 * (tail * (1 + noise of a group) - 1)
    tail = 2 / pi * n * sum(delta^2) / sum(|delta|)^2

`tail` is 1 for a Gaussian delta, and large if few elements moved. A delta that LoRA training left is of low rank but
for the noise that rounding the merged checkpoint to its dtype added, which is white and small. Its factors are stored
alone.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.codecs.auto.budget import DEFAULT_SHARE, Auto, Plan, make_plan, most_signs, stored_bytes
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.encoder import Encoded, StoredTensor
from dem_hub.codecs.exact import Exact
from dem_hub.codecs.factors import encode_factors
from dem_hub.codecs.first_look import FirstLook
from dem_hub.codecs.integer import Int4, Int8
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.measure import measure
from dem_hub.codecs.sign import Sign, noise
from dem_hub.numerics.norms import squared_norm
from dem_hub.numerics.svd import balance, truncated_svd

logger = logging.getLogger(__name__)

# Ranks that are weighed against more signs. 64 directions in 4 bits are about as many bytes as all signs of
# SmolLM2-135M's matrices.
RANKS = (2, 4, 8, 16, 32, 48, 64)

# Noise of a tensor, relative to its weights, from which it may show. Extrapolated: only fine-tunes with less were
# measured.
LIMIT = 0.01

# The Krylov space that directions are looked for in: the vectors that it begins with, and its steps. With two steps
# it finds all but a thousandth of the energy of the first 32 directions, and all but a few hundredths of 64. Signs
# take up what it misses. Embeddings have no signs and get one step more; what is missed there is small.
_WIDTH = 32
_STEPS = 2
_VOCABULARY_STEPS = 3

# A LoRA has at most this part of the full rank (a quarter). Chosen by hand, not measured.
_ADAPTER_RANKS = 4

# How far the largest direction of noise may stand above its law, which holds for infinite matrices. Chosen by hand,
# not measured.
_WHITE = 1.15


@dataclass(frozen=True)
class AutoEncoder:
    """The encoder of `codec="auto"` with its options."""

    options: Auto

    def prepare(self, first_look: Callable[[], FirstLook]) -> "PlannedEncoder":
        """Look at all tensors, and return an encoder for a plan that divides the budget among them."""
        look = first_look()
        return PlannedEncoder(make_plan(self.options, look.glances, look.reserved))


@dataclass(frozen=True)
class PlannedEncoder:
    """An encoder that carries out a plan."""

    plan: Plan

    def encode(self, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
        """Return the codec and the parts of one tensor; see [`TensorEncoder.encode`]."""
        return encode_planned(self.plan, key, delta, base, finetuned)

    def explain(self, records: Mapping[str, StoredTensor], nbytes: int) -> str:
        """Return in a line what was chosen and why; see [`TensorEncoder.explain`]."""
        return explain(self.plan, records, nbytes)


def encode_planned(plan: Plan, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """Encode one tensor as planned.

    Args:
        plan ([`Plan`]): the plan of the vector.
        key (`str`): the tensor's name.
        delta (`Tensor`): finetuned - base, in float32.
        base, finetuned (`Tensor`): both sides, in their own dtypes.

    Returns:
        `tuple[Codec, dict[str, Tensor]]`: the codec that was chosen, and the parts.
    """
    if plan.is_adapter:
        adapter = _encode_as_adapter(delta, finetuned)
        if adapter is not None and _is_within_plan(plan, key, adapter, delta, base):
            return adapter
    settled = plan.codecs.get(key)
    if isinstance(settled, LowRank):
        assert settled.rank is not None
        left, values, right = truncated_svd(delta, rank=settled.rank, width=_WIDTH, steps=_VOCABULARY_STEPS)
        return settled, encode_factors(*balance(left, values, right), settled.dtype)
    if settled is not None:
        return settled, settled.encode(delta, base, finetuned)
    if plan.max_error is not None:
        return _encode_within_error(plan.max_error, delta, base, finetuned)
    return _encode_with_signs(plan, key, delta, base, finetuned)


def _is_within_plan(plan: Plan, key: str, encoded: Encoded, delta: Tensor, base: Tensor) -> bool:
    """Return whether a tensor's parts take no more bytes than its share, if the user named the bytes, and keep within
    `max_error`.
    """
    codec, parts = encoded
    shape = tuple(delta.shape)
    if plan.is_explicit:
        settled = plan.codecs.get(key)
        if settled is not None:
            allowed: float = stored_bytes(settled, shape)
        else:
            allowed = plan.bits.get(key, 0.0) * delta.numel() / 8
        if stored_bytes(codec, shape) > allowed:
            return False
    return measure(codec, parts, delta, base).error <= (plan.max_error or math.inf)


def _encode_with_signs(plan: Plan, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """Encode a tensor with signs, and a matrix also with the rank that leaves them the least noise, within its bits
    of the plan.
    """
    shape = tuple(delta.shape)
    bits = plan.bits[key]
    squares = squared_norm(delta)
    base_norm = squared_norm(base) ** 0.5
    tail = max(1.0, 2 / math.pi * delta.numel() * squares / float(delta.abs().sum(dtype=torch.float64)) ** 2)
    codec: Sign | LRSign = most_signs(shape, bits)
    factors = None
    least_noise = squares * (tail * (1 + noise(codec.group)) - 1)
    if len(shape) == 2:
        left, values, right = truncated_svd(delta, rank=min(RANKS[-1], *shape), width=_WIDTH, steps=_STEPS)
        energies = values.double().square().cumsum(0)
        for rank in RANKS:
            if rank > len(values):
                break
            candidate = most_signs(shape, bits, rank)
            residual = max(squares - float(energies[rank - 1]), 0.0)
            candidate_noise = residual * (tail * (1 + noise(candidate.group)) - 1)
            if candidate_noise < least_noise and stored_bytes(candidate, shape) <= bits * delta.numel() / 8:
                least_noise = candidate_noise
                codec = candidate
                factors = balance(left[:, :rank], values[:rank], right[:rank])
    if least_noise**0.5 > LIMIT * base_norm:
        if not plan.is_explicit:
            return _encode_finer(delta, base, finetuned)
        _warn_about_noise(key, least_noise**0.5, base_norm)
    if isinstance(codec, LRSign) and factors is not None:
        return codec, codec.encode_with(factors, delta)
    return codec, codec.encode(delta, base, finetuned)


def _warn_about_noise(key: str, noise_norm: float, base_norm: float) -> None:
    share = "more than its weights, which are 0"
    if base_norm:
        share = f"{100 * noise_norm / base_norm:.1f} % of its weights"
    logger.warning("%s: max_bytes leaves it a noise of %s, which may show.", key, share)


def _encode_finer(delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """Encode a tensor that signs are too coarse for: in 4 bits, or exactly if that is shorter, as it is where few
    elements moved.
    """
    candidates: list[Encoded] = [(codec, codec.encode(delta, base, finetuned)) for codec in (Int4(), Exact())]
    return min(candidates, key=_count_bytes)


def _count_bytes(encoded: Encoded) -> int:
    _, parts = encoded
    return sum(part.nbytes for part in parts.values())


def _encode_within_error(max_error: float, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
    """Encode a tensor with the shortest of some codecs whose measured error is small enough."""
    codecs: tuple[Codec, ...] = (LRSign(), Int4(), Int8(), Dense("bfloat16"))
    for codec in codecs:
        parts = codec.encode(delta, base, finetuned)
        if measure(codec, parts, delta, base).error <= max_error:
            return codec, parts
    return Dense(), Dense().encode(delta, base, finetuned)


def _encode_as_adapter(delta: Tensor, finetuned: Tensor) -> Encoded | None:
    """Return the factors of a delta that is of low rank but for white noise no larger than rounding left, or `None`.

    Noise of standard deviation s has no direction above s * (sqrt(R) + sqrt(C)) (Marchenko and Pastur, 1967).
    """
    most = min(delta.shape) // _ADAPTER_RANKS
    left, values, right = truncated_svd(delta, rank=max(most, 1))
    squares = squared_norm(delta)
    rank = _find_adapter_rank(values, squares, tuple(delta.shape), most)
    if rank is None:
        return None
    factors = balance(left[:, :rank], values[:rank], right[:rank])
    residual = squared_norm(torch.addmm(delta, *factors, alpha=-1))
    # Rounding to nearest leaves an error of at most eps / 2 of an element, evenly spread: eps^2 / 12 of its square.
    # The factors themselves are only good to a few units in the last place of float32.
    rounding_noise = torch.finfo(finetuned.dtype).eps ** 2 * squared_norm(finetuned) / 12
    float32_noise = (4 * torch.finfo(torch.float32).eps) ** 2 * squares
    if residual > max(rounding_noise, float32_noise):
        return None
    # bfloat16 has 8 bits: rounding factors to it adds about 2^-16 of the squared norm, which is not more than what is
    # missing anyway.
    dtype = "bfloat16" if 2.0**-16 * squares <= residual else "float32"
    codec = LowRank(rank=rank, dtype=dtype)
    return codec, encode_factors(*factors, codec.dtype)


def _find_adapter_rank(values: Tensor, squares: float, shape: tuple[int, ...], most: int) -> int | None:
    """Return the first rank below `most` after which the next singular value is no larger than white noise has."""
    rows, columns = shape
    residuals = (squares - values.double().square().cumsum(0)).clamp_(min=0)
    edges = _WHITE * (residuals / (rows * columns)).sqrt() * (rows**0.5 + columns**0.5)
    for rank in range(1, most):
        # 1e-6 of the first value, eight times float32's eps, is where rounding in float32 leaves noise of its own.
        # Chosen by hand.
        if values[rank] <= max(float(edges[rank - 1]), 1e-6 * float(values[0])):
            return rank
    return None


def explain(plan: Plan, records: Mapping[str, StoredTensor], nbytes: int) -> str:
    """Return in a line what was chosen and why, from what the vector turned out to be.

    Args:
        plan ([`Plan`]): the plan that was carried out.
        records (`Mapping[str, StoredTensor]`): the tensors of the vector, by their names.
        nbytes (`int`): bytes of its tensor files.
    """
    if not records:
        return "nothing changed"
    numbers = Counter(record.codec for record in records.values())
    share = nbytes / (2 * sum(math.prod(record.shape) for record in records.values()))
    counts = ", ".join(f"{codec} for {count}" for codec, count in numbers.most_common())
    text = f"{counts} of {len(records)} tensors; {share:.1%} of the delta in bf16"
    if plan.max_error is not None:
        return f"the shortest codecs within an error of {plan.max_error:g}: {text}"
    if plan.is_adapter and 2 * numbers[LowRank.name] >= len(records):
        ranks = [record.options["rank"] for record in records.values() if record.codec == LowRank.name]
        directions = " to ".join(map(str, sorted({min(ranks), max(ranks)})))
        return f"only matrices moved, in {directions} directions, as a LoRA leaves them: {text}"
    if not plan.is_explicit and share > DEFAULT_SHARE:
        text += ", as small or narrow tensors and those that moved much are kept finer"
    return f"a full fine-tune: {text}"
