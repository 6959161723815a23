"""`dense` in float32 is exact: base + delta is the fine-tune, bit for bit, for any pair of finite bf16 or fp16 values."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import InMemory
from dem_hub.checkpoints.writer import write_file
from dem_hub.codecs.dense import Dense
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.lazy import merged_tensor
from dem_hub.merging.merge import Merge

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def values_of(bits: list[int], dtype: torch.dtype) -> Tensor:
    """The values with these bits; NaN and inf become 0."""
    values = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(dtype)
    return torch.where(values.isfinite(), values, torch.zeros_like(values))


def through_the_merge(folder: Path, base: Tensor, finetuned: Tensor, **options: object) -> Tensor:
    """Write both, extract, open again, merge at coefficient 1."""
    for name, tensor in (("base", base), ("finetuned", finetuned)):
        (folder / name).mkdir(exist_ok=True)
        write_file(folder / name / "model.safetensors", {"w": tensor})
    vector = DistributionVector.extract(folder / "base", folder / "finetuned", codec="dense")
    opened = Base(resolve(VectorSource(str(folder / "base")), MODEL_FILES))
    return merged_tensor(Merge.of(opened, [(vector, 1.0)], **options), "w")  # type: ignore[arg-type]


def assert_same_values(merged: Tensor, finetuned: Tensor) -> None:
    """The same bits, but for the sign of a zero: -0 and 0 have no difference."""
    assert merged.dtype == finetuned.dtype
    nonzero = finetuned != 0
    integer = torch.int16
    assert torch.equal(merged.view(integer)[nonzero], finetuned.view(integer)[nonzero])
    assert not merged[~nonzero].any()


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs=st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), min_size=1, max_size=64))
def test_any_pair_comes_back(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, pairs: list[tuple[int, int]]
) -> None:
    base, finetuned = (values_of([pair[side] for pair in pairs], HALVES[dtype]) for side in (0, 1))
    merged = through_the_merge(tmp_path_factory.mktemp("pair"), base, finetuned)
    assert_same_values(merged, finetuned)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_a_hundred_thousand_pairs(tmp_path: Path, dtype: str, rounding: str) -> None:
    bits = torch.randint(0, 65536, (2, 300, 400), generator=torch.Generator().manual_seed(0))
    base, finetuned = (values_of(side.flatten().tolist(), HALVES[dtype]).reshape(300, 400) for side in bits)
    assert_same_values(through_the_merge(tmp_path, base, finetuned, rounding=rounding), finetuned)


@pytest.mark.parametrize(
    ("base", "finetuned"),
    [(3.38e38, -3.38e38), (-3.38e38, 3.38e38), (1e-40, 3.38e38), (0.02, 1e-9), (1e-40, -1e-40), (3.38e38, 1e-40)],
    ids=["max to -max", "-max to max", "subnormal to max", "vanishing", "subnormals", "max to subnormal"],
)
def test_extremes_of_bfloat16(tmp_path: Path, base: float, finetuned: float) -> None:
    sides = [torch.full((3, 3), value, dtype=torch.bfloat16) for value in (base, finetuned)]
    assert_same_values(through_the_merge(tmp_path, *sides), sides[1])


def test_only_few_elements_need_a_remainder() -> None:
    base = torch.full((100, 100), 0.02, dtype=torch.bfloat16)
    finetuned = base * 1.01
    assert list(Dense().encode(finetuned.float() - base.float(), base, finetuned)) == ["dense"]
    finetuned[50, 7] = 1e-9
    parts = Dense().encode(finetuned.float() - base.float(), base, finetuned)
    assert parts["index"].tolist() == [5007]


@pytest.mark.parametrize("part", [(0, 5, 0, 7), (2, 4, 0, 7), (0, 5, 1, 6), (3, 3, 0, 7)])
def test_a_slice_has_the_remainders_that_lie_in_it(part: tuple[int, int, int, int]) -> None:
    """Of whole rows, where places are not taken apart, as of others."""
    index = (slice(*part[:2]), slice(*part[2:]), slice(0, 3))
    shape = (5, 7, 3)
    places = torch.arange(0, 105, 4)
    whole = torch.zeros(105)
    whole[places] = places + 1.0
    stored = {"dense": torch.zeros(shape), "index": places, "remainder": places + 1.0}
    parts = {name: InMemory(tensor) for name, tensor in stored.items()}
    found = Dense().decode(parts, shape, index, InMemory(torch.zeros(shape)))
    assert torch.equal(found.rest, whole.reshape(shape)[index])


def test_bfloat16_is_within_half_a_step() -> None:
    delta = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    decoded = Dense("bfloat16").encode(delta, delta, delta)["dense"]
    assert decoded.dtype == torch.bfloat16
    torch.testing.assert_close(decoded.float(), delta, rtol=2**-8, atol=0)
