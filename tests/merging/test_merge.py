"""The merge against base + sum of coefficient * delta in float64, for every architecture, dtype, codec and sharding."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DistributionVector, VectorSource
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import BaseMismatchError, CheckpointError, CoefficientError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.merging.lazy import lazy_state_dict, merged_tensor
from dem_hub.merging.merge import Merge
from dem_hub.numerics.slices import full_index
from tests.support.tiny_models import (
    DTYPES,
    FAMILIES,
    Models,
    Zoo,
    adapter_deltas,
    add_tokens,
    assert_around,
    edit_json,
    load_tensors,
    read_deltas,
    reference,
    reshard,
)

CPU = torch.device("cpu")


def opened(folder: Path) -> Base:
    return Base(resolve(VectorSource(str(folder)), MODEL_FILES))


def merge_of(base: Path, *terms: tuple[Path | DistributionVector, float], **options: Any) -> Merge:
    vectors = [(v if isinstance(v, DistributionVector) else DistributionVector.from_pretrained(v), c) for v, c in terms]
    return Merge.of(opened(base), vectors, **options)


def merged(merge: Merge, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {name: merged_tensor(merge, name, dtype) for name in merge.base}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


MIXES = {
    "one lowrank": {"lossy": 0.7},
    "one short": {"short": -0.4},
    "dense and lowrank": {"dense": 0.3, "lowrank": 0.45},
    "all": {"dense": 0.3, "short": 0.2, "lowrank": -0.5, "lossy": 1.25, "adapter": 0.6},
}


def mixed(
    zoo: Zoo, family: str, dtype: str, mix: dict[str, float]
) -> tuple[list[tuple[Path, float]], dict[str, Tensor]]:
    """The vectors of a mix, and what they sum to."""
    models = zoo.models(family, dtype)
    paths, terms = [], []
    for kind, coefficient in mix.items():
        folder = zoo.adapter(family, dtype) if kind == "adapter" else zoo.vector(family, dtype, kind)
        paths.append((folder, coefficient))
        deltas = adapter_deltas(folder, load_tensors(models.base), 2.0) if kind == "adapter" else read_deltas(folder)
        terms.append((deltas, coefficient))
    return paths, reference(models.base, terms)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_around_the_exact_sum(zoo: Zoo, family: str, dtype: str, mix: dict[str, float]) -> None:
    paths, exact = mixed(zoo, family, dtype, mix)
    for name, tensor in merged(merge_of(zoo.models(family, dtype).base, *paths)).items():
        assert tensor.dtype == getattr(torch, dtype)
        assert_around(tensor, exact[name])


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_into_another_dtype(zoo: Zoo, dtype: str, target: str) -> None:
    paths, exact = mixed(zoo, "gpt2", dtype, MIXES["all"])
    for name, tensor in merged(merge_of(zoo.models("gpt2", dtype).base, *paths), getattr(torch, target)).items():
        assert_around(tensor, exact[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_is_the_nearest(zoo: Zoo, dtype: str) -> None:
    paths, exact = mixed(zoo, "llama-untied", dtype, MIXES["all"])
    merge = merge_of(zoo.models("llama-untied", dtype).base, *paths, rounding="nearest")
    for name, tensor in merged(merge).items():
        assert_around(tensor, exact[name])
        expected = exact[name].to(tensor.dtype)
        assert (
            int((tensor != expected).sum()) <= 1e-3 * tensor.numel() + 1
        )  # sums in float32 fall on the other side of a tie now and then


@pytest.mark.parametrize("shards", [2, 5])
def test_sharding_makes_no_difference(zoo: Zoo, tmp_path: Path, shards: int) -> None:
    paths, _ = mixed(zoo, "llama-tied", "bfloat16", MIXES["all"])
    base = zoo.models("llama-tied").base
    assert same(merged(merge_of(base, *paths)), merged(merge_of(reshard(base, tmp_path / "base", shards), *paths)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_gives_the_same_bits(zoo: Zoo, dtype: str) -> None:
    paths, _ = mixed(zoo, "llama-tied", dtype, {"dense": 0.3, "lossy": 1.25, "adapter": 0.6})
    base = zoo.models("llama-tied", dtype).base
    first, *others = (merged(merge_of(base, *order)) for order in permutations(paths))
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_coefficient_zero_is_the_base(zoo: Zoo, family: str, dtype: str) -> None:
    paths, _ = mixed(zoo, family, dtype, dict.fromkeys(MIXES["all"], 0.0))
    base = zoo.models(family, dtype).base
    assert same(merged(merge_of(base, *paths)), load_tensors(base))


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_coefficient_one_is_the_fine_tune(zoo: Zoo, family: str, dtype: str, rounding: str) -> None:
    models = zoo.models(family, dtype)
    found = merged(merge_of(models.base, (zoo.vector(family, dtype, "dense"), 1.0), rounding=rounding))
    expected = load_tensors(models.full)
    if dtype == "float32":
        for name in expected:
            assert_around(found[name], expected[name].double())
    else:
        assert same(found, expected)


def test_seed_draws_other_bits(zoo: Zoo) -> None:
    paths, _ = mixed(zoo, "llama-tied", "bfloat16", {"dense": 0.3})
    base = zoo.models("llama-tied").base
    default, same_seed, other = (merged(merge_of(base, *paths, **seed)) for seed in ({}, {"seed": 0}, {"seed": 1}))
    assert same(default, same_seed)
    assert not same(default, other)


def test_stochastic_rounding_keeps_the_mean(zoo: Zoo) -> None:
    paths, exact = mixed(zoo, "llama-tied", "bfloat16", {"dense": 0.1})
    base = zoo.models("llama-tied").base
    name = "model.layers.0.mlp.up_proj.weight"
    draws = torch.stack([merged_tensor(merge_of(base, *paths, seed=seed), name).double() for seed in range(200)])
    step = (draws.max(0).values - draws.min(0).values).max()
    assert float((draws.mean(0) - exact[name]).abs().mean()) < 0.05 * float(step)


INDICES = {
    "rows": lambda r, c: (slice(3, r - 2), slice(0, c)),
    "columns": lambda r, c: (slice(0, r), slice(5, c - 3)),
    "both": lambda r, c: (slice(1, r // 2), slice(c // 3, c)),
    "one column": lambda r, c: (slice(0, r), slice(3, 4)),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_the_merge(zoo: Zoo, dtype: str, index: Callable[[int, int], tuple[slice, slice]]) -> None:
    paths, _ = mixed(zoo, "gpt2", dtype, MIXES["all"])
    merge = merge_of(zoo.models("gpt2", dtype).base, *paths)
    different = elements = 0
    for name, info in merge.base.items():
        place = index(*info.shape) if len(info.shape) == 2 else (slice(1, info.shape[0] - 1),)
        part = lazy_state_dict(merge)[name][place].to(dtype=getattr(torch, dtype))
        different += int((part != merged_tensor(merge, name)[place]).sum())
        elements += part.numel()
    # sums of another shape may differ in float32's last bits, and rarely fall on the other side
    assert different <= (1e-4 if dtype != "float32" else 1e-2) * elements + 1


@pytest.mark.parametrize("kind", ["dense", "short"])
def test_slices_of_dense_vectors_are_the_same_bits(zoo: Zoo, kind: str) -> None:
    merge = merge_of(zoo.models("gpt2").base, (zoo.vector("gpt2", "bfloat16", kind), 0.3))
    for name, info in merge.base.items():
        places = (
            [index(*info.shape) for index in INDICES.values()]
            if len(info.shape) == 2
            else [(slice(1, info.shape[0] - 1),)]
        )
        for place in places:
            assert torch.equal(merge.tensor(name, place, CPU), merged_tensor(merge, name)[place])


@pytest.mark.parametrize("kinds", [("dense", "short"), ("adapter",)], ids="+".join)
def test_blocks_make_no_difference(zoo: Zoo, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = mixed(zoo, "gpt2", "bfloat16", dict(zip(kinds, (0.3, 0.2), strict=False)))
    base = zoo.models("gpt2").base
    whole = merged(merge_of(base, *paths))
    for size in ("BLOCK", "FACTORED_BLOCK"):
        monkeypatch.setattr(f"dem_hub.merging.merge.{size}", 100)
    assert same(merged(merge_of(base, *paths)), whole)


def test_lazy_tensors_look_like_safetensors_slices(zoo: Zoo) -> None:
    merge = merge_of(zoo.models("llama-tied").base, (zoo.vector("llama-tied"), 0.5))
    lazy = lazy_state_dict(merge)["model.norm.weight"]
    assert (lazy.get_shape(), lazy.get_dtype()) == ([32], "BF16")
    assert torch.equal(lazy[...].to(), merged_tensor(merge, "model.norm.weight"))
    assert lazy[...].to(device="cpu", dtype=torch.float32).dtype == torch.float32


def grown(zoo: Zoo, folder: Path, family: str, rows: dict[str, Tensor], name: str) -> tuple[Path, DistributionVector]:
    """A fine-tune with more vocabulary, and its vector."""
    models = zoo.models(family, "float32")

    def grow(tensors: dict[str, Tensor]) -> None:
        for key, values in rows.items():
            tensors[key] = torch.cat([tensors[key], values])

    finetuned = reshard(models.full, folder / name, change=grow)
    count = 64 + len(next(iter(rows.values())))
    edit_json(finetuned / "config.json", vocab_size=count)
    add_tokens(models.base, finetuned, [f"<{number}>" for number in range(64, count)])
    return finetuned, DistributionVector.extract(models.base, finetuned, codec="dense")


@pytest.mark.parametrize("coefficients", [(0.3, 0.6), (1.0, 0.0), (0.0, 0.2), (-0.5, 1.5)], ids=str)
def test_grown_vocabulary_is_the_weighted_mean(zoo: Zoo, tmp_path: Path, coefficients: tuple[float, float]) -> None:
    key = "model.embed_tokens.weight"
    torch.manual_seed(0)
    rows = torch.randn(3, 32), torch.randn(5, 32)
    vectors = [grown(zoo, tmp_path, "llama-tied", {key: new}, str(number))[1] for number, new in enumerate(rows)]
    merge = merge_of(zoo.models("llama-tied", "float32").base, *zip(vectors, coefficients, strict=True))
    count = max(len(new) for new, c in zip(rows, coefficients, strict=True) if c)
    sums, weights = torch.zeros(count, 32, dtype=torch.float64), torch.zeros(count, 1, dtype=torch.float64)
    for new, coefficient in zip(rows, coefficients, strict=True):
        if coefficient:
            sums[: len(new)] += abs(coefficient) * new.double()
            weights[: len(new)] += abs(coefficient)
    found = merged_tensor(merge, key)
    assert merge.vocabulary == 64 + count == found.shape[0]
    torch.testing.assert_close(found[64:], (sums / weights).float())
    # a slice across the border, and one beyond it
    for part in (slice(60, 66), slice(65, 64 + count)):
        assert torch.equal(merge.tensor(key, (part, slice(3, 20)), CPU), found[part, 3:20])


@pytest.mark.parametrize("coefficients", [(0.5, -0.3), (0.5, -0.49), (0.5, -0.4999999), (-0.7, 0.7001)], ids=str)
def test_new_rows_lie_between_those_of_the_vectors(zoo: Zoo, tmp_path: Path, coefficients: tuple[float, float]) -> None:
    """Coefficients of both signs almost cancel, and do not blow up the mean."""
    key = "model.embed_tokens.weight"
    torch.manual_seed(0)
    rows = torch.randn(2, 32), torch.randn(2, 32)
    vectors = [grown(zoo, tmp_path, "llama-tied", {key: new}, str(number))[1] for number, new in enumerate(rows)]
    merge = merge_of(zoo.models("llama-tied", "float32").base, *zip(vectors, coefficients, strict=True))
    found = merged_tensor(merge, key)[64:]
    assert bool((found >= torch.minimum(*rows) - 1e-6).all())
    assert bool((found <= torch.maximum(*rows) + 1e-6).all())


def test_new_rows_whose_coefficients_cancel(zoo: Zoo, tmp_path: Path) -> None:
    key = "model.embed_tokens.weight"
    vectors = [grown(zoo, tmp_path, "llama-tied", {key: torch.full((2, 32), float(n))}, str(n))[1] for n in (1, 2)]
    merge = merge_of(zoo.models("llama-tied", "float32").base, (vectors[0], 0.5), (vectors[1], -0.5))
    with pytest.raises(CoefficientError, match="sum to 0, so their mean is undefined. Change one"):
        merged_tensor(merge, key)


def counted(models: Models, folder: Path, value: int) -> DistributionVector:
    base = reshard(models.base, folder / "base", change=lambda tensors: tensors.update(steps=torch.tensor([0])))
    finetuned = reshard(
        models.full, folder / f"finetuned-{value}", change=lambda tensors: tensors.update(steps=torch.tensor([value]))
    )
    return DistributionVector.extract(base, finetuned, codec="dense")


def test_integers_are_replaced_whatever_the_coefficient(llama: Models, tmp_path: Path) -> None:
    merge = merge_of(llama.base, allow_base_mismatch=True)
    vector = counted(llama, tmp_path, 7)
    merge = merge_of(tmp_path / "base", (vector, 0.1))
    assert merged_tensor(merge, "steps").tolist() == [7]
    assert merged_tensor(merge, "steps", torch.bfloat16).dtype == torch.int64
    assert merged_tensor(merge_of(tmp_path / "base", (vector, 0.0)), "steps").tolist() == [0]


def test_integers_that_disagree(llama: Models, tmp_path: Path) -> None:
    vectors = [counted(llama, tmp_path, value) for value in (7, 8)]
    with pytest.raises(BaseMismatchError, match=r"(?s)'steps' differs between .*the coefficient 0"):
        merge_of(tmp_path / "base", *((vector, 0.5) for vector in vectors))
    assert merged_tensor(merge_of(tmp_path / "base", (vectors[0], 0.5), (vectors[1], 0.0)), "steps").tolist() == [7]
    merge_of(tmp_path / "base", (vectors[0], 0.5), (vectors[0], 0.5))


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf")])
def test_coefficients_are_finite(zoo: Zoo, coefficient: float) -> None:
    with pytest.raises(CoefficientError, match="must be a finite number"):
        merge_of(zoo.models("llama-tied").base, (zoo.vector("llama-tied"), coefficient))


def test_unchanged_tensors_beyond_the_target(zoo: Zoo, tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"][0] = 1e6

    base = reshard(zoo.models("llama-tied", "bfloat16").base, tmp_path / "base", change=enlarge)
    with pytest.raises(CheckpointError, match="'model.norm.weight' .*beyond the range"):
        merged_tensor(merge_of(base), "model.norm.weight", torch.float16)


def test_new_rows_beyond_the_target(zoo: Zoo, tmp_path: Path) -> None:
    key = "model.embed_tokens.weight"
    _, vector = grown(zoo, tmp_path, "llama-tied", {key: torch.full((2, 32), 1e6)}, "large")
    with pytest.raises(CheckpointError, match=f"'{key}' .*beyond the range"):
        merged_tensor(merge_of(zoo.models("llama-tied", "float32").base, (vector, 0.5)), key, torch.float16)


def test_full_index_is_the_whole(zoo: Zoo) -> None:
    merge = merge_of(zoo.models("gpt2").base, (zoo.vector("gpt2"), 0.5))
    name = "transformer.wte.weight"
    assert torch.equal(merge.tensor(name, full_index(merge.shape(name)), CPU), merged_tensor(merge, name))
