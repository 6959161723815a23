"""What every codec must satisfy, over dtypes and shapes: its layout, its bound, and that any slice decodes as that slice of the whole."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs import CODECS, Codec, get_codec, to_dense
from dem_hub.codecs.delta import Delta, add_deltas, inner
from dem_hub.codecs.layout import check_parts, layout_bytes
from dem_hub.codecs.listing import OFFERED
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, full_index

SHAPES = [
    (12, 7),
    (5, 40),
    (6, 200),
    (1, 9),
    (9, 1),
    (33,),
    (130,),
    (3, 4, 5),
    (4, 3, 2, 2),
    (2, 3, 70),
    (1,),
    (1, 1),
    (),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {}, "dense-bfloat16": {"dtype": "bfloat16"}, "lowrank": {"rank": 3}, "lowrank-energy": {"energy": 0.9},
    "lowrank-bfloat16": {"rank": 3, "dtype": "bfloat16"}, "lowrank-int4": {"rank": 3, "dtype": "int4"}, "lowrank-int8": {"rank": 3, "dtype": "int8"}, "full": {}, "replace": {},
    "sign": {}, "sign-grouped": {"group": 6}, "lrsign": {"rank": 2}, "lrsign-grouped": {"rank": 2, "group": 16},
    "random": {"density": 0.4}, "random-8": {"density": 0.7, "bits": 8}, "random-whole": {"density": 1.0, "bits": 8},
    "int4": {}, "int8": {}, "nf4": {}, "exact": {},
}  # fmt: skip
# The largest |decoded - delta| / |delta| of a Gaussian delta; what drops elements at random has no bound but the one of
# its law.
BOUNDS = {"dense": 1e-7, "dense-bfloat16": 2**-8, "exact": 1e-7, "full": 1e-7, "replace": 1e-7, "int8": 0.012, "int4": 0.2,
          "nf4": 0.2, "random-whole": 0.012, "sign": 0.9, "lowrank-energy": 0.1**0.5 + 1e-6}  # fmt: skip


def codec_of(variant: str) -> Codec:
    return CODECS[variant.split("-")[0]](**VARIANTS[variant])


def pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(shape, generator=generator) * 0.05).to(dtype)
    finetuned = (base.float() + torch.randn(shape, generator=generator) * 0.01).to(dtype)
    if base.numel() > 3:
        base.view(-1)[3], finetuned.view(-1)[3] = 0.02, 6e-8  # a difference that float32 does not hold
    return base, finetuned


def encode(variant: str, base: Tensor, finetuned: Tensor) -> Mapping[str, InMemory]:
    parts = codec_of(variant).encode(finetuned.float() - base.float(), base, finetuned)
    return {name: InMemory(part) for name, part in parts.items()}


def decode(variant: str, parts: Mapping[str, Any], base: Tensor, index: Index | None = None) -> Tensor:
    """The slice of the delta, float32; `base` is the whole tensor."""
    index = full_index(base.shape) if index is None else index
    part = base[index] if index else base
    return to_dense(codec_of(variant).decode(parts, tuple(base.shape), index, InMemory(base)), part)


def slices(shape: tuple[int, ...]) -> list[Index]:
    if not shape:
        return [()]
    middle = tuple(slice(size // 3, max(size // 3 + 1, size - size // 4)) for size in shape)
    rows = (slice(shape[0] // 2, shape[0]), *full_index(shape[1:]))
    columns = (*full_index(shape[:-1]), slice(shape[-1] // 2, shape[-1]))
    none = (slice(0, 0), *full_index(shape[1:]))
    return [full_index(shape), middle, rows, columns, none]


def takes(variant: str, shape: tuple[int, ...]) -> bool:
    """`lowrank` is for matrices; extraction gives it no other tensors."""
    return len(shape) == 2 or not variant.startswith("lowrank")


CASES = [
    pytest.param(variant, shape, id=f"{variant}-{'x'.join(map(str, shape)) or 'scalar'}")
    for variant in VARIANTS
    for shape in SHAPES
    if takes(variant, shape)
]


def every_case(check: Callable[[str, tuple[int, ...], torch.dtype], None]) -> Callable[[str, tuple[int, ...]], None]:
    """Make a check a test of each variant and shape, over all dtypes: one test for each would take longer than the check."""

    @pytest.mark.parametrize(("variant", "shape"), CASES)
    def test(variant: str, shape: tuple[int, ...]) -> None:
        for dtype in DTYPES:
            try:
                check(variant, shape, dtype)
            except Exception as error:
                error.add_note(f"with {dtype}")
                raise

    return test


def test_every_codec_is_tried() -> None:
    assert {variant.split("-")[0] for variant in VARIANTS} == set(CODECS)


def assert_same(variant: str, decoded: Tensor, expected: Tensor) -> None:
    if variant.startswith(("lowrank", "lrsign")):  # a product of other shapes adds in another order
        torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-8)
    else:
        assert torch.equal(decoded, expected)


@every_case
def test_a_slice_decodes_as_the_whole(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    parts = encode(variant, base, finetuned)
    whole = decode(variant, parts, base)
    for index in slices(shape):
        assert_same(variant, decode(variant, parts, base, index), whole[index] if index else whole)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), variant=st.sampled_from(list(VARIANTS)))
def test_any_slice_of_any_shape(data: st.DataObject, variant: str) -> None:
    dimensions = 2 if variant.startswith("lowrank") else data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, 200 if i == dimensions - 1 else 5)) for i in range(dimensions))
    starts = [data.draw(st.integers(0, size)) for size in shape]
    index = tuple(slice(start, data.draw(st.integers(start, size))) for start, size in zip(starts, shape, strict=True))
    base, finetuned = pair(shape, torch.bfloat16)
    parts = encode(variant, base, finetuned)
    assert_same(variant, decode(variant, parts, base, index), decode(variant, parts, base)[index])


@every_case
def test_parts_are_as_the_layout_says(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    parts, layout = encode(variant, base, finetuned), codec_of(variant).layout(shape)
    assert check_parts("w", parts, layout) == []
    if variant not in ("exact", "lowrank-energy", "full", "replace", "dense"):  # the data decides
        assert sum(part.tensor.nbytes for part in parts.values()) == layout_bytes(layout)


@every_case
def test_within_the_bound(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    delta = finetuned.double() - base.double()
    decoded = decode(variant, encode(variant, base, finetuned), base).double()
    if variant in BOUNDS:
        assert (decoded - delta).norm() <= BOUNDS[variant] * delta.norm() + 1e-9 * delta.norm()


UNBIASED = (
    "sign",
    "sign-grouped",
    "lrsign",
    "lrsign-grouped",
    "random",
    "random-8",
    "random-whole",
    "int4",
    "int8",
    "nf4",
)


@pytest.mark.parametrize("variant", UNBIASED)
def test_unbiased_along_the_delta(variant: str) -> None:
    """<decoded, delta> = |delta|^2, within what sampling and bfloat16 scales leave of 200,000 elements."""
    base, finetuned = pair((400, 500), torch.float32)
    delta = finetuned.double() - base.double()
    decoded = decode(variant, encode(variant, base, finetuned), base).double()
    assert float((decoded * delta).sum() / delta.square().sum()) == pytest.approx(
        1, abs=0.02 if "random" in variant else 2e-3
    )


def test_unbiased_in_the_mean_over_seeds() -> None:
    """The mean over many draws is the delta, and the noise averages out as its law says."""
    base, finetuned = pair((20, 60), torch.float32)
    delta = finetuned.float() - base.float()
    total = torch.zeros_like(delta)
    for seed in range(300):
        codec = get_codec("random", {"density": 0.4, "bits": 8, "seed": seed})
        parts = {part: InMemory(tensor) for part, tensor in codec.encode(delta, base, finetuned).items()}
        total += to_dense(codec.decode(parts, (20, 60), full_index((20, 60)), InMemory(base)), base)
    assert (total / 300 - delta).norm() < 0.12 * delta.norm()  # sqrt((1 / 0.4 - 1) / 300) = 0.07, and 8 bits


@every_case
def test_encoding_is_deterministic(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    first, second = encode(variant, base, finetuned), encode(variant, base, finetuned)
    assert list(first) == list(second)
    assert all(torch.equal(first[name].tensor, second[name].tensor) for name in first)


@every_case
def test_inputs_stay_as_they_are(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    delta = finetuned.float() - base.float()
    copies = [tensor.clone() for tensor in (delta, base, finetuned)]
    parts = {name: InMemory(part) for name, part in codec_of(variant).encode(delta, base, finetuned).items()}
    add_deltas(base.double(), [(0.5, codec_of(variant).decode(parts, shape, full_index(shape), InMemory(base)))])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((delta, base, finetuned), copies, strict=True))


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if takes(variant, (8, 72))])
def test_not_contiguous(variant: str) -> None:
    base, finetuned = (tensor.T for tensor in pair((72, 8), torch.bfloat16))
    assert not base.is_contiguous()
    expected = decode(variant, encode(variant, base.contiguous(), finetuned.contiguous()), base)
    assert_same(variant, decode(variant, encode(variant, base, finetuned), base), expected)


@every_case
def test_nothing_changed_decodes_to_nothing(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, _ = pair(shape, dtype)
    assert torch.equal(decode(variant, encode(variant, base, base), base), torch.zeros(shape))


@every_case
def test_adding_is_decoding_and_adding(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    parts = encode(variant, base, finetuned)
    delta = codec_of(variant).decode(parts, shape, full_index(shape), InMemory(base))
    total = add_deltas(base.double(), [(0.3, delta)])
    torch.testing.assert_close(total, base.double() + 0.3 * decode(variant, parts, base).double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e3, 1e30])
@pytest.mark.parametrize("variant", UNBIASED)
def test_any_magnitude(variant: str, scale: float) -> None:
    """Scales have float32's range: deltas of 1e-30 neither vanish nor become NaN."""
    base, finetuned = pair((10, 100), torch.float32)
    delta = (finetuned - base) * scale
    codec = codec_of(variant)
    parts = {name: InMemory(part) for name, part in codec.encode(delta, base, finetuned).items()}
    decoded = to_dense(codec.decode(parts, (10, 100), full_index((10, 100)), InMemory(base)), base)
    assert decoded.isfinite().all()
    assert float((decoded.double() * delta).sum() / delta.double().square().sum()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("name", ["full", "replace", "zip"])
def test_only_some_are_offered(name: str) -> None:
    with pytest.raises(CodecError, match=f"no codec '{name}'; choose one of auto, lrsign, sign, random"):
        get_codec(name, {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lowrank", {"rank": 0}, "rank=0; it must be a whole number from 1"),
        ("lowrank", {"rank": 2.5}, "rank=2.5; it must be a whole number"),
        ("lowrank", {"energy": 0}, "energy=0; it must be above 0 and at most 1"),
        ("lowrank", {"energy": 1.5}, "energy=1.5"),
        ("lowrank", {"energy": float("nan")}, "energy=nan"),
        ("lowrank", {"rank": 4, "energy": 0.5}, "rank or energy, not both"),
        ("lowrank", {"dtype": "float16"}, "no dtype 'float16'; choose float32 or bfloat16 or int8 or int4"),
        ("dense", {"dtype": "int8"}, "no dtype 'int8'; choose float32 or bfloat16"),
        ("dense", {"rank": 4, "bits": 3}, "no option 'bits', 'rank'; it has dtype"),
        ("sign", {"group": 0}, "group=0; it must be a whole number from 1 to 4096"),
        ("sign", {"group": "many"}, "group='many'; it must be a whole number"),
        ("lrsign", {"group": 1.5}, "group=1.5"),
        ("lrsign", {"rank": -3}, "rank=-3; it must be a whole number from 1"),
        ("random", {"bits": 5}, "bits=5; choose 4 or 8, or the codec 'sign' for 1 and less"),
        ("random", {"density": 0}, "density=0; it must be above 0 and at most 1"),
        ("random", {"density": "much"}, "cannot take the options {'density': 'much'}"),
        ("random", {"seed": 1.5}, "seed=1.5; it must be a whole number"),
        ("random", {"seed": 1 << 64}, "seed=a number of 65 bits; it must be a whole number of at most 64 bits"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        get_codec(name, options)


def test_options_are_the_fields() -> None:
    assert {name: [item.name for item in fields(CODECS[name])] for name in OFFERED} == {
        "lrsign": ["rank", "group"],
        "sign": ["group"],
        "random": ["density", "bits", "seed"],
        "int4": [],
        "int8": [],
        "nf4": [],
        "lowrank": ["rank", "energy", "dtype"],
        "exact": [],
        "dense": ["dtype"],
    }


def deltas() -> dict[str, Delta]:
    generator = torch.Generator().manual_seed(1)
    left, right, dense = (torch.randn(shape, generator=generator) for shape in ((6, 2), (2, 5), (6, 5)))
    return {
        "factors": Delta(left=left, right=right),
        "dense": Delta(dense=dense),
        "short": Delta(left=left.bfloat16(), right=right.bfloat16()),
        "nothing": Delta(),
    }


def in_float64(delta: Delta) -> Tensor:
    total = torch.zeros(6, 5, dtype=torch.float64)
    if delta.left is not None and delta.right is not None:
        total += delta.left.double() @ delta.right.double()
    return total if delta.dense is None else total + delta.dense.double()


def test_add_deltas_is_the_sum() -> None:
    terms = list(zip((0.5, -2.0, 0.25, 3.0), deltas().values(), strict=True))
    total = torch.ones(6, 5)
    expected = torch.ones(6, 5, dtype=torch.float64) + sum(c * in_float64(delta) for c, delta in terms)
    result = add_deltas(total, terms)
    assert result is total
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("first", deltas())
@pytest.mark.parametrize("second", deltas())
def test_inner(first: str, second: str) -> None:
    expected = float((in_float64(deltas()[first]) * in_float64(deltas()[second])).sum())
    assert inner(deltas()[first], deltas()[second]) == pytest.approx(expected, rel=1e-5, abs=1e-9)
