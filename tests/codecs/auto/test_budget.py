"""`codec="auto"`: the budget is kept, divided as it should be, and what is chosen does what was asked."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dem_hub import DistributionVector
from dem_hub.checkpoints.writer import write_file
from dem_hub.codecs.auto.budget import Auto, make_plan, most_signs, stored_bytes
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.first_look import Glance
from dem_hub.codecs.integer import Int4, Int8
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import CodecError
from dem_hub.vectors.config import TensorRecord

MODEL = {  # about the shapes of a small language model
    "embed": Glance((8000, 256), 1e-3, 0.05, is_vocabulary=True),
    **{f"layer.{i}.{name}": Glance(shape, 2e-4, 0.05, is_vocabulary=False)
       for i in range(4) for name, shape in {"q": (256, 256), "k": (64, 256), "up": (700, 256), "down": (256, 700)}.items()},
    "norm": Glance((256,), 1e-3, 1.0, is_vocabulary=False),
}  # fmt: skip
ELEMENTS = sum(glance.elements for glance in MODEL.values())


def taken(plan_codecs: dict[str, object], bits: dict[str, float]) -> int:
    """Bytes of what a plan settles, and at the most of what it leaves open."""
    settled = sum(stored_bytes(codec, MODEL[key].shape) for key, codec in plan_codecs.items())  # type: ignore[arg-type]
    return settled + sum(
        int(bits[key] * glance.elements / 8) for key, glance in MODEL.items() if key not in plan_codecs
    )


@pytest.mark.parametrize("share", ["1.5%", "3%", "5%", "9%", "20%", "40%", "60%", "120%", "250%"])
def test_within_the_budget(share: str) -> None:
    plan = make_plan(Auto(max_bytes=share), MODEL)
    total = taken(dict(plan.codecs), dict(plan.bits))
    assert total <= Auto(max_bytes=share).budget(ELEMENTS)
    if float(share[:-1]) > 8:
        assert total > 0.7 * min(Auto(max_bytes=share).budget(ELEMENTS), 4 * ELEMENTS), "and it is used"


@settings(max_examples=80, deadline=None, derandomize=True)
@given(share=st.floats(1.5, 300), seed=st.integers(0, 100))
def test_any_budget_is_kept(share: float, seed: int) -> None:
    plan = make_plan(Auto(max_bytes=int(share / 100 * 2 * ELEMENTS)), MODEL)
    assert taken(dict(plan.codecs), dict(plan.bits)) <= share / 100 * 2 * ELEMENTS


def test_more_bytes_finer_codecs() -> None:
    kinds = [
        set(map(type, make_plan(Auto(max_bytes=share), MODEL).codecs.values()))
        for share in ("3%", "33%", "60%", "110%", "220%")
    ]
    assert kinds[0] == {Dense, LowRank}  # the norm, and the embedding; the rest is signs
    assert Int4 in kinds[1]
    assert Int8 in kinds[2]
    assert kinds[3] == kinds[4] == {Dense}
    assert all(
        codec == Dense() for key, codec in make_plan(Auto(max_bytes="220%"), MODEL).codecs.items() if key != "norm"
    )


def test_bits_go_where_noise_would_count() -> None:
    """A matrix whose weights are half as large has twice the share; one that moved half as much has half."""
    glances = {
        "plain": Glance((512, 512), 1e-5, 0.05, is_vocabulary=False),
        "small weights": Glance((512, 512), 1e-5, 0.025, is_vocabulary=False),
        "moved less": Glance((512, 512), 0.5e-5, 0.05, is_vocabulary=False),
    }
    bits = make_plan(Auto(max_bytes="2%"), glances).bits
    assert bits["small weights"] == pytest.approx(2 * bits["plain"], rel=0.01)
    assert bits["moved less"] == pytest.approx(0.5 * bits["plain"], rel=0.01)


def test_too_little() -> None:
    with pytest.raises(
        CodecError, match=r"max_bytes allows 1000 bytes, and this vector takes \d+ at the least. Allow it that"
    ):
        make_plan(Auto(max_bytes=1000), MODEL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": "3%", "max_error": 0.1}, "max_bytes or max_error, not both"),
        ({"max_bytes": "much"}, "'much' is not a size"),
        ({"max_bytes": "x%"}, "a share is written like '3%'"),
        ({"max_bytes": 0}, "max_bytes=0; give a whole number above 0"),
        ({"max_bytes": "-3%"}, "give a whole number above 0"),
        ({"max_bytes": 0.03}, "max_bytes=0.03; give a whole number"),
        ({"max_bytes": "inf%"}, "a share is written like"),
        ({"max_error": 0}, "max_error=0; it must be above 0. codec='exact' and 'dense' have none"),
        ({"rank": 16}, "Codec 'auto' has no option 'rank'; name the codec that it is for: lrsign, lowrank"),
        ({"color": 16}, "Codec 'auto' has no option 'color'; it has max_bytes, max_error"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder_from_name("auto", options)


def test_sizes_are_bytes_units_or_shares() -> None:
    assert [Auto(max_bytes=size).budget(1000) for size in (60, "60", "2kB", "3%")] == [60, 60, 2000, 60]
    assert Auto().budget(1000) == 180


def extract_pair(
    folder: Path, base: dict[str, Tensor], finetuned: dict[str, Tensor], **options: object
) -> DistributionVector:
    """A vector of two checkpoints without a config."""
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        (folder / name).mkdir(parents=True)
        write_file(folder / name / "model.safetensors", tensors)
    return DistributionVector.extract(folder / "base", folder / "finetuned", **options)


def records(vector: DistributionVector) -> dict[str, TensorRecord]:
    assert vector.config is not None
    return dict(vector.config.tensors)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"w{number}": torch.randn(256, 384, generator=generator) * 0.05 for number in range(3)}


def full(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A full-rank change with a few strong directions, and a norm's."""
    generator = torch.Generator().manual_seed(1)
    changed = {}
    for name, tensor in weights.items():
        strong = torch.randn(256, 6, generator=generator) @ torch.randn(6, 384, generator=generator)
        changed[name] = tensor + 2e-4 * (torch.randn(tensor.shape, generator=generator) + strong / 3)
    return changed | {"norm": torch.full((384,), 1.001)}


@pytest.mark.parametrize("share", [3, 5, 7, 8, 9, 10, 12, 20, 40])
def test_files_keep_the_budget(weights: dict[str, Tensor], tmp_path: Path, share: int) -> None:
    vector = extract_pair(tmp_path, weights | {"norm": torch.ones(384)}, full(weights), max_bytes=f"{share}%")
    elements = sum(tensor.numel() for tensor in weights.values()) + 384
    assert vector.nbytes <= share / 100 * 2 * elements
    assert share > 8 or all(
        record.codec in ("lrsign", "sign") for name, record in records(vector).items() if name != "norm"
    )
    assert all(record.projection == pytest.approx(1, abs=0.05) for record in records(vector).values())


@pytest.mark.parametrize("error", [0.9, 0.3, 0.05, 0.01, 1e-3])
def test_error_budget(weights: dict[str, Tensor], tmp_path: Path, error: float) -> None:
    vector = extract_pair(tmp_path, weights | {"norm": torch.ones(384)}, full(weights), max_error=error)
    assert all(record.relative_error <= error for record in records(vector).values())
    assert vector.config is not None
    assert vector.config.choice.startswith(f"the shortest codecs within an error of {error:g}: ")


def test_noise_that_may_show_is_avoided_or_named(
    weights: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A change as large as a tenth of the weights: by itself `auto` takes finer codecs; a budget wins, and says which tensors pay."""
    generator = torch.Generator().manual_seed(2)
    moved = {name: tensor + 0.005 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    moved["norm"] = torch.full((384,), 1.001)
    careful = extract_pair(tmp_path / "a", weights | {"norm": torch.ones(384)}, moved)
    assert {record.codec for name, record in records(careful).items() if name != "norm"} == {"int4"}
    assert not caplog.records
    told = extract_pair(tmp_path / "b", weights | {"norm": torch.ones(384)}, moved, max_bytes="4%")
    assert {record.codec for name, record in records(told).items() if name != "norm"} <= {"sign", "lrsign"}
    assert [record.args[0] for record in caplog.records] == sorted(weights)  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_a_merged_lora_is_found_out(weights: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    base = {name: tensor.to(dtype) for name, tensor in weights.items()}
    deltas = {}
    for name, tensor in weights.items():
        factors = torch.randn(256, rank, generator=generator), torch.randn(rank, 384, generator=generator)
        deltas[name] = 0.003 * factors[0] @ factors[1] / rank**0.5
        assert tensor.shape == deltas[name].shape
    finetuned = {name: (tensor.float() + deltas[name]).to(dtype) for name, tensor in base.items()}
    vector = extract_pair(tmp_path, base, finetuned)
    found = records(vector)
    assert {record.codec for record in found.values()} == {"lowrank"}
    assert all(rank <= record.options["rank"] <= rank + 2 for record in found.values())
    assert vector.config is not None
    assert vector.config.choice.startswith("only matrices moved, in ")
    size = 4 if dtype == torch.float32 else 2
    assert vector.nbytes <= 1.3 * size * rank * (256 + 384) * len(weights) + 2000
    for name in weights:  # nearer to the LoRA than the rounded checkpoint is
        assert (vector.decode(name, tmp_path / "base") - deltas[name]).norm() <= (
            finetuned[name].float() - base[name].float() - deltas[name]
        ).norm() * 1.01


def test_a_full_fine_tune_is_no_lora(weights: dict[str, Tensor], tmp_path: Path) -> None:
    moved = full(weights)
    moved.pop("norm")  # nothing but matrices moved
    found = records(extract_pair(tmp_path, weights, moved))
    assert {record.codec for record in found.values()} <= {"sign", "lrsign"}


@pytest.mark.parametrize(("share", "said"), [(0.1, False), (1.0, True)])
def test_a_delta_as_large_as_its_base(
    weights: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float, said: bool
) -> None:
    """Two models of one shape that have nothing to do with one another."""
    others = {name: tensor + share * tensor.roll(1, 0) for name, tensor in weights.items()}
    extract_pair(tmp_path, weights, others)
    assert (f"Is '{tmp_path / 'finetuned'}' a fine-tune of '{tmp_path / 'base'}'" in caplog.text) is said


def test_unchanged_tensors_are_not_stored(weights: dict[str, Tensor], tmp_path: Path) -> None:
    moved = full(weights) | {"w1": weights["w1"]}
    assert set(records(extract_pair(tmp_path, weights | {"norm": torch.ones(384)}, moved))) == {"w0", "w2", "norm"}


def test_most_signs_fit() -> None:
    for bits in (0.1, 0.3, 0.8, 1.0, 1.4):
        for rank in (0, 4, 16):
            codec = most_signs((576, 1536), bits, rank)
            assert isinstance(codec, LRSign) == bool(rank)
            if codec.group < 128:
                assert stored_bytes(codec, (576, 1536)) <= bits * 576 * 1536 / 8


def test_exactly_low_rank_beside_a_norm(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """What is left of it is nothing, or a little less in floating point."""
    generator = torch.Generator().manual_seed(3)
    moved: dict[str, Tensor] = {"norm": torch.full((384,), 1.001)}
    for name, tensor in weights.items():
        moved[name] = tensor + 0.01 * torch.randn(256, 4, generator=generator) @ torch.randn(
            4, 384, generator=generator
        )
    for number, options in enumerate(({}, {"max_bytes": "10%"})):
        found = records(extract_pair(tmp_path / str(number), weights | {"norm": torch.ones(384)}, moved, **options))
        assert all(record.projection == pytest.approx(1, abs=0.02) for record in found.values())


def test_a_base_of_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved = {"w": torch.randn(256, 256, generator=torch.Generator().manual_seed(0)), "norm": torch.ones(9)}
    base = {"w": torch.zeros(256, 256), "norm": torch.zeros(9)}
    assert records(extract_pair(tmp_path, base, moved, max_bytes="8%"))["w"].codec in ("sign", "lrsign")
    assert "noise of more than its weights, which are 0" in caplog.text


def test_few_elements_that_moved_are_stored_as_they_are(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """As reinforcement learning leaves them: signs of all elements would be nine parts of noise."""
    generator = torch.Generator().manual_seed(4)
    base = {name: tensor.bfloat16() for name, tensor in weights.items()}
    moved = {}
    for name, tensor in base.items():
        steps = (
            0.01
            * torch.randn(tensor.shape, generator=generator)
            * (torch.rand(tensor.shape, generator=generator) < 0.02)
        )
        moved[name] = (tensor.float() + steps).bfloat16()
    vector = extract_pair(tmp_path, base | {"norm": torch.ones(9)}, moved | {"norm": torch.full((9,), 1.1)})
    assert {record.codec for name, record in records(vector).items() if name != "norm"} == {"exact"}
    assert vector.nbytes < 0.08 * sum(2 * tensor.numel() for tensor in base.values())


def test_narrow_tensors(tmp_path: Path) -> None:
    """Convolutions: a scale for each row of three columns would weigh more than the row."""
    generator = torch.Generator().manual_seed(5)
    base = {"conv": torch.randn(64, 64, 3, 3, generator=generator) * 0.05}
    moved = {"conv": base["conv"] + 1e-4 * torch.randn(64, 64, 3, 3, generator=generator)}
    vector = extract_pair(tmp_path, base, moved)
    assert records(vector)["conv"].codec == "nf4"
    assert vector.config is not None
    assert vector.config.choice.endswith(
        "nf4 for 1 of 1 tensors; 28.4% of the delta in bf16, as small or narrow tensors and those that moved much are kept finer"
    )


def test_new_rows_count(weights: dict[str, Tensor], tmp_path: Path) -> None:
    moved = full(weights)
    moved["w0"] = torch.cat([moved["w0"], torch.ones(20, 384)])
    vector = extract_pair(tmp_path / "a", weights | {"norm": torch.ones(384)}, moved, max_bytes="12%")
    assert vector.nbytes <= 0.12 * 2 * (3 * 256 * 384 + 384)
    with pytest.raises(CodecError, match="takes .* at the least"):
        extract_pair(tmp_path / "b", weights | {"norm": torch.ones(384)}, moved, max_bytes="5%")


def test_nothing_changed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    vector = extract_pair(tmp_path, weights, weights)
    assert vector.config is not None
    assert (vector.config.choice, vector.nbytes) == ("nothing changed", 0)
