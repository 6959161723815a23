"""`exact`: the fine-tune bit for bit at coefficient 1, its exact delta at others, in a fraction of its bytes."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs import add_deltas
from dem_hub.codecs.exact import Exact
from dem_hub.errors import BaseMismatchError, CheckpointError, CodecError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.lazy import merged_tensor
from dem_hub.merging.merge import Merge
from tests.support.tiny_models import DTYPES, FAMILIES, Models, Zoo, load_tensors


def integers(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fine_tune_bit_for_bit(zoo: Zoo, family: str, dtype: str, tmp_path: Path) -> None:
    models = zoo.models(family, dtype)
    vector = DistributionVector.extract(models.base, models.full, codec="exact")
    base = Base(resolve(VectorSource(str(models.base)), MODEL_FILES))
    merge = Merge.of(base, [(vector, 1.0)])
    for name, expected in load_tensors(models.full).items():
        assert torch.equal(integers(merged_tensor(merge, name)), integers(expected)), name


def through(base: Tensor, finetuned: Tensor) -> Tensor:
    codec = Exact()
    parts = {
        name: InMemory(part) for name, part in codec.encode(finetuned.float() - base.float(), base, finetuned).items()
    }
    delta = codec.decode(parts, tuple(base.shape), (slice(0, len(base)),), InMemory(base))
    return add_deltas(base.double(), [(1.0, delta)]).to(finetuned.dtype)


@pytest.mark.parametrize(
    "kinds",
    [
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
    ],
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_pair_comes_back(kinds: tuple[str, str], data: st.DataObject) -> None:
    """All finite values of both, the smallest and the largest too."""
    sides = []
    for kind in kinds:
        dtype = getattr(torch, kind)
        width = dtype.itemsize * 8
        bits = data.draw(st.lists(st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1), min_size=20, max_size=20))
        values = torch.tensor(bits, dtype=torch.int64).to(integers(torch.zeros(1, dtype=dtype)).dtype).view(dtype)
        sides.append(torch.where(values.isfinite(), values, 0))
    base, finetuned = sides
    if base.dtype == torch.float32 and finetuned.dtype == torch.bfloat16:
        base = torch.where(base.abs() < 1e38, base, 0)  # what bfloat16 has room for
    back = through(base, finetuned)
    assert bool(((integers(back) == integers(finetuned)) | (finetuned == 0)).all())  # 0 and -0 have no difference


def test_a_fraction_of_the_bytes() -> None:
    """A short fine-tune moves half of bf16's values, and those by a step or two."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(512, 512, generator=generator) * 0.1).bfloat16()
    finetuned = (base.float() + 2e-4 * torch.randn(512, 512, generator=generator)).bfloat16()
    parts = Exact().encode(finetuned.float() - base.float(), base, finetuned)
    assert sum(part.nbytes for part in parts.values()) < 0.2 * finetuned.nbytes


def test_needs_its_own_base(llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    """Steps on another base's grid mean nothing, whatever a caller allows."""
    DistributionVector.extract(llama.base, llama.full, codec="exact").save_pretrained(tmp_path / "vector")
    with pytest.raises(BaseMismatchError, match="codec 'exact' has only steps from its own base"):
        DEMModel.from_pretrained(llama.low, vectors={str(tmp_path / "vector"): 1.0}, allow_base_mismatch=True)


def test_no_float64() -> None:
    value = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(CodecError, match=r"has no torch.float64; use 'dense'"):
        Exact().encode(value.float(), value, value)


@pytest.mark.parametrize("damage", ["cut", "bomb", "bitmap", "ends", "frames"])
def test_frames_that_lie(damage: str) -> None:
    import zstandard

    base = torch.zeros(4, 8, dtype=torch.bfloat16)
    parts = Exact().encode(torch.ones(4, 8), base, torch.ones(4, 8, dtype=torch.bfloat16))
    ends = [0, *parts["ends"].tolist()]
    frames = [bytes(parts["zstd"][start:stop].tolist()) for start, stop in pairwise(ends)]
    assert len(frames) == 3  # a bitmap, and two bytes of each step
    if damage == "cut":
        frames[2] = frames[2][:-3]
    elif damage == "bomb":  # a few bytes that unpack to a gigabyte
        frames[0] = zstandard.compress(bytes(1 << 30))
    elif damage == "bitmap":
        frames[0] = zstandard.compress(b"\xff\xff\xff\x0f")
    elif damage == "frames":
        frames.append(b"")
    ends = torch.tensor([len(frame) for frame in frames]).cumsum(0) + (damage == "ends")
    parts |= {"zstd": torch.frombuffer(bytearray(b"".join(frames)), dtype=torch.uint8), "ends": ends}
    lazy = {name: InMemory(part) for name, part in parts.items()}
    with pytest.raises(CheckpointError, match="codec 'exact'"):
        Exact().decode(lazy, (4, 8), (slice(0, 4), slice(0, 8)), InMemory(base))


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is read from the blocks that it lies in, and from no other."""
    from dem_hub.codecs import exact

    monkeypatch.setattr(exact, "_BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 16, generator=generator).bfloat16()
    finetuned = (base.float() + 0.01 * torch.randn(40, 16, generator=generator)).bfloat16()
    parts = Exact().encode(finetuned.float() - base.float(), base, finetuned)
    assert parts["ends"].shape == (30,)  # ten blocks of one run of three planes
    parts["zstd"][: int(parts["ends"][11])] = 0  # blocks 0 to 3 are gone
    lazy = {name: InMemory(part) for name, part in parts.items()}
    index = (slice(17, 33), slice(3, 9))
    delta = Exact().decode(lazy, (40, 16), index, InMemory(base)).dense
    assert torch.equal((base[index].double() + delta).bfloat16(), finetuned[index])
