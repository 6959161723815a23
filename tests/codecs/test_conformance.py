"""What every codec must satisfy, over dtypes and shapes: any slice of the delta decodes to that slice of the whole."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub.checkpoint import CODES
from dem_hub.codecs import CODECS, OFFERED, Codec, get_codec, to_dense
from dem_hub.codecs.delta import Delta, add_deltas, inner
from dem_hub.errors import CodecError
from dem_hub.index import Index, full_index

SHAPES = [(12, 7), (5, 40), (1, 9), (9, 1), (33,), (3, 4, 5), ()]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {}, "dense-bfloat16": {"dtype": "bfloat16"}, "lowrank": {"rank": 3}, "lowrank-energy": {"energy": 0.9},
    "lowrank-bfloat16": {"rank": 3, "dtype": "bfloat16"}, "full": {}, "replace": {},
}  # fmt: skip


class Lazy:
    """A tensor in memory that answers like a safetensors slice."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return CODES[self.tensor.dtype]

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]


def pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(shape, generator=generator) * 0.05).to(dtype)
    finetuned = (base.float() + torch.randn(shape, generator=generator) * 0.01).to(dtype)
    if base.numel() > 3:
        base.view(-1)[3], finetuned.view(-1)[3] = 0.02, 6e-8  # a difference that float32 does not hold
    return base, finetuned


def encode(variant: str, base: Tensor, finetuned: Tensor) -> Mapping[str, Lazy]:
    codec: Codec = CODECS[variant.split("-")[0]](**VARIANTS[variant])
    return {name: Lazy(part) for name, part in codec.encode(finetuned.float() - base.float(), base, finetuned).items()}


def slices(shape: tuple[int, ...]) -> list[Index]:
    if not shape:
        return [()]
    middle = tuple(slice(size // 3, max(size // 3 + 1, size - size // 4)) for size in shape)
    rows = (slice(shape[0] // 2, shape[0]), *full_index(shape[1:]))
    columns = (*full_index(shape[:-1]), slice(shape[-1] // 2, shape[-1]))
    none = (slice(0, 0), *full_index(shape[1:]))
    return [full_index(shape), middle, rows, columns, none]


CASES = [
    pytest.param(variant, shape, dtype, id=f"{variant}-{'x'.join(map(str, shape)) or 'scalar'}-{str(dtype)[6:]}")
    for variant in VARIANTS
    for shape in SHAPES
    for dtype in DTYPES
    if len(shape) == 2 or not variant.startswith("lowrank")
]
every_case = pytest.mark.parametrize(("variant", "shape", "dtype"), CASES)


def test_every_codec_is_tried() -> None:
    assert {variant.split("-")[0] for variant in VARIANTS} == set(CODECS)


@every_case
def test_a_slice_decodes_as_the_whole(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, finetuned = pair(shape, dtype)
    parts = encode(variant, base, finetuned)
    decode = CODECS[variant.split("-")[0]].decode
    whole = to_dense(decode(parts, base, full_index(shape)), base)  # type: ignore[arg-type]
    for index in slices(shape):
        part = base[index] if index else base
        decoded = to_dense(decode(parts, part, index), part)  # type: ignore[arg-type]
        expected = whole[index] if index else whole
        if variant.startswith("lowrank"):  # a product of other shapes adds in another order
            torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(decoded, expected)


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
    codec = CODECS[variant.split("-")[0]](**VARIANTS[variant])
    parts = {name: Lazy(part) for name, part in codec.encode(delta, base, finetuned).items()}
    add_deltas(base.double(), [(0.5, codec.decode(parts, base, full_index(shape)))])  # type: ignore[arg-type]
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((delta, base, finetuned), copies, strict=True))


@every_case
def test_nothing_changed_decodes_to_nothing(variant: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, _ = pair(shape, dtype)
    parts = encode(variant, base, base)
    decoded = to_dense(CODECS[variant.split("-")[0]].decode(parts, base, full_index(shape)), base)  # type: ignore[arg-type]
    assert torch.equal(decoded, torch.zeros(shape))


@pytest.mark.parametrize("name", ["full", "replace", "zip"])
def test_only_some_are_offered(name: str) -> None:
    with pytest.raises(CodecError, match=f"no codec '{name}'; choose one of lowrank, dense"):
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
        ("lowrank", {"dtype": "float16"}, "no dtype 'float16'; choose float32 or bfloat16"),
        ("dense", {"dtype": "int8"}, "no dtype 'int8'; choose float32 or bfloat16"),
        ("dense", {"rank": 4, "bits": 3}, "no option 'bits', 'rank'; it has dtype"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        get_codec(name, options)


def test_options_are_the_fields() -> None:
    assert {name: [item.name for item in fields(CODECS[name])] for name in OFFERED} == {  # type: ignore[arg-type]
        "lowrank": ["rank", "energy", "dtype"],
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
