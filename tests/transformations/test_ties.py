"""TIES on real vectors, against the formula as mergekit computes it, in float32 on whole stacks of deltas."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import ConfigError
from dem_hub.transformations import ties
from dem_hub.transformations.ties import trim
from tests.mergekit.cases import REFERENCE, RESULTS
from tests.support.tiny_models import Zoo

FAMILY = "llama-untied"


def ties_of_mergekit(deltas: Tensor, density: float, weights: Sequence[float], *, normalize: bool) -> Tensor:
    """Return the merged delta of (N, ...) deltas: mergekit 0.1.5, `magnitude`, then consensus `sum`."""
    trimmed = torch.zeros_like(deltas)
    for delta, kept in zip(deltas, trimmed, strict=True):
        places = torch.argsort(delta.abs().flatten(), descending=True)[: int(density * delta.numel())]
        kept.view(-1)[places] = delta.flatten()[places]
    factors = torch.tensor(weights).reshape(-1, *[1] * (deltas.dim() - 1))
    weighted = trimmed * factors
    majority = (weighted.sum(0) >= 0).float() * 2 - 1
    mask = weighted.sign() == majority
    mixed = (weighted * mask).sum(0)
    divisor = (factors * mask).sum(0)
    divisor[divisor == 0] = 1
    return mixed / divisor if normalize else mixed


@pytest.fixture(scope="module")
def sources(zoo: Zoo) -> list[str]:
    return [str(zoo.vector(FAMILY, "float32")), str(zoo.adapter(FAMILY)), str(zoo.vector(FAMILY, "float32", "lowrank"))]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("density", "weights"), [(0.2, (1.0, 1.0, 1.0)), (0.5, (0.7, -0.3, 1.2)), (1.0, (1.0, 0.5, 0.5))]
)
def test_the_weighted_sum_is_the_merge_of_mergekit(
    zoo: Zoo, sources: list[str], density: float, weights: tuple[float, ...], normalize: bool
) -> None:
    base = zoo.models(FAMILY, "float32").base
    wanted = dict(zip(sources, weights, strict=True))
    new = list(ties(base, wanted, density=density, normalize=normalize, codec="dense").values())
    originals = [DistributionVector.from_pretrained(name) for name in sources]
    for key in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight"):
        deltas = torch.stack([vector.decode(key, base) for vector in originals])
        expected = ties_of_mergekit(deltas, density, weights, normalize=normalize)
        got = sum(weight * vector.decode(key, base) for weight, vector in zip(weights, new, strict=True))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_the_vectors_are_loaded_like_any_others(zoo: Zoo, sources: list[str], tmp_path: Path) -> None:
    base = zoo.models(FAMILY, "float32").base
    saved = {}
    for number, vector in enumerate(ties(base, sources, codec="dense").values()):
        vector.save_pretrained(tmp_path / str(number))
        saved[str(tmp_path / str(number))] = 1.0
    model = DEMModel.from_pretrained(base, vectors=saved)
    key = "model.layers.0.mlp.up_proj.weight"
    deltas = torch.stack([DistributionVector.from_pretrained(name).decode(key, base) for name in sources])
    old = DEMModel.from_pretrained(base, vectors=dict.fromkeys(sources, 0.0)).get_parameter(key)
    expected = old + ties_of_mergekit(deltas, 0.2, (1.0, 1.0, 1.0), normalize=True)
    torch.testing.assert_close(model.get_parameter(key), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("density", "kept"), [(0.001, 1), (0.25, 2), (0.5, 4), (0.99, 7), (1.0, 8)])
def test_trim_keeps_the_largest(density: float, kept: int) -> None:
    delta = torch.tensor([[1.0, -8.0, 3.0, -4.0], [-2.0, 7.0, -6.0, 5.0]])
    threshold = 9 - kept
    torch.testing.assert_close(trim(delta, density), delta * (delta.abs() >= threshold))


@pytest.mark.parametrize("density", [0.1, 0.37, 0.5, 0.9])
def test_of_equal_magnitudes_the_first_are_kept(density: float) -> None:
    """The differences of 16-bit checkpoints are multiples of a step. mergekit's sort keeps any of them."""
    delta = torch.randn(40, 30, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    places = delta.abs().flatten().argsort(descending=True, stable=True)[: int(density * delta.numel())]
    expected = torch.zeros(delta.numel()).index_copy(0, places, delta.flatten()[places]).reshape(delta.shape)
    assert torch.equal(trim(delta, density), expected)


@pytest.mark.parametrize(
    ("case", "weights", "densities", "normalize", "scale"),
    [("ties", (0.6, 0.5), (0.3, 0.7), True, 1.0), ("ties-int8", (1.0, 0.5), (0.5, 0.5), False, 0.5), ("ties-opposed", (0.8, -0.4), (0.5, 0.2), True, 1.0)],
)  # fmt: skip
def test_the_weighted_sum_is_what_mergekit_wrote(
    tmp_path: Path, case: str, weights: Sequence[float], densities: Sequence[float], normalize: bool, scale: float
) -> None:
    """`tests/mergekit/cases.py` has the configs, and wrote mergekit's results."""
    base = REFERENCE / "base"
    names = []
    for name in ("maths", "chat"):
        DistributionVector.extract(base, REFERENCE / name, codec="dense").save_pretrained(tmp_path / name)
        names.append(str(tmp_path / name))
    made = ties(base, dict(zip(names, weights, strict=True)), density=densities, normalize=normalize, codec="dense")
    before = load_file(base / "model.safetensors")
    expected = {
        key.partition("/")[2]: tensor for key, tensor in load_file(RESULTS).items() if key.startswith(f"{case}/")
    }
    assert set(expected) == set(before)
    for key, tensor in expected.items():
        deltas = [
            scale * weight * vector.decode(key, base) for weight, vector in zip(weights, made.values(), strict=True)
        ]
        torch.testing.assert_close(before[key] + sum(deltas), tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_that_keeps_nothing_is_refused(zoo: Zoo, sources: list[str], density: float) -> None:
    with pytest.raises(ConfigError, match="density"):
        ties(zoo.models(FAMILY, "float32").base, sources, density=density)


def test_another_number_of_densities_than_vectors_is_refused(zoo: Zoo, sources: list[str]) -> None:
    with pytest.raises(ConfigError, match="2 densities and 3 weights"):
        ties(zoo.models(FAMILY, "float32").base, sources, density=(0.5, 0.2))


def test_a_weight_that_is_no_number_is_refused(zoo: Zoo, sources: list[str]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        ties(zoo.models(FAMILY, "float32").base, dict.fromkeys(sources, float("inf")))
