"""What is said of data that were too thin, from statistics made by hand."""

from collections.abc import Mapping, Sequence

import pytest
import torch

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.base_model import Base
from dem_hub.hub.download import Resolved
from dem_hub.input_statistics.gathering import LINEAR
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput
from dem_hub.transformations.thin_data import thin_data
from tests.support.tiny_models import Zoo

ENOUGH = 5_000


@pytest.fixture
def architecture(zoo: Zoo) -> Architecture:
    found = Base(Resolved.local(zoo.models("mixtral").base)).architecture
    assert found is not None
    return found


def keys_of(architecture: Architecture) -> list[str]:
    linears = [key for key, module in architecture.modules.items() if module.kind in LINEAR]
    return sorted([*linears, *architecture.expert_keys])


def made(keys: Sequence[str], tokens: int = ENOUGH, diagonal: Mapping[str, Sequence[float]] = {}) -> InputStatistics:
    inputs = []
    for key in keys:
        numbers = torch.tensor(diagonal.get(key, [1.0] * 32)).double()
        inputs.append(LayerInput((key,), Moments.of_diagonal(numbers)))
    return InputStatistics(tuple(inputs), tokens, "data")


def test_nothing_is_said_of_enough(architecture: Architecture) -> None:
    keys = keys_of(architecture)
    assert thin_data(architecture, {"maths": made(keys), "chat": made(keys)}) == []


def test_a_layer_that_nobody_reached(architecture: Architecture) -> None:
    keys = keys_of(architecture)
    (warning,) = thin_data(architecture, {"maths": made(keys[2:]), "chat": made(keys[2:])})
    assert f"2 of {len(keys)} layers had no input in the data of any vector ('{keys[0]}')" in warning


def test_an_expert_that_one_did_not_reach(architecture: Architecture) -> None:
    keys = keys_of(architecture)
    (warning,) = thin_data(architecture, {"maths": made(keys), "chat": made(keys[1:])})
    assert f"had no input in the data of 'chat' alone ('{keys[0]}')" in warning


@pytest.mark.parametrize(("tokens", "said"), [(31, ["few", "more numbers"]), (32, ["few"]), (999, ["few"]), (1000, [])])
def test_few_tokens(architecture: Architecture, tokens: int, said: list[str]) -> None:
    """The layers read 32 numbers each. Of an expert's tokens nothing is known."""
    keys = keys_of(architecture)
    warnings = thin_data(architecture, {"maths": made(keys, tokens), "chat": made(keys)})
    assert len(warnings) == len(said)
    for warning, text in zip(warnings, said, strict=True):
        assert text in warning
        assert f"{tokens:,} of 'maths'" in warning
        assert "chat" not in warning


def test_features_that_are_dead_in_all_data(architecture: Architecture) -> None:
    keys = keys_of(architecture)
    dead = {keys[0]: [0.0] * 3 + [1.0] * 29}
    alive_elsewhere = {keys[0]: [1.0] * 2 + [0.0] + [1.0] * 29}
    (warning,) = thin_data(
        architecture, {"maths": made(keys, diagonal=dead), "chat": made(keys, diagonal=alive_elsewhere)}
    )
    assert f"1 layers read numbers that were 0 for all tokens of all vectors (up to 1, in '{keys[0]}')" in warning
