"""The bootstrap of the study, against the normal theory, by hand, and over many samples whose mean is known."""

import math
from random import Random

import pytest

from studies.data_mixing.bootstrap import mean_interval


def normal(count: int, mean: float, spread: float, seed: int) -> list[float]:
    random = Random(seed)
    return [random.gauss(mean, spread) for _ in range(count)]


def test_agrees_with_the_normal_theory() -> None:
    values = normal(400, 3.0, 0.5, seed=1)
    average = sum(values) / 400
    error = math.sqrt(sum((value - average) ** 2 for value in values) / 400) / math.sqrt(400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(average, abs=1e-12)
    assert [low, high] == pytest.approx(
        [average - 1.96 * error, average + 1.96 * error], abs=0.06 * error
    )  # 10,000 draws


def test_covers_the_truth_as_often_as_it_says() -> None:
    """Of 120 samples, 95 % are 114; fewer than 105 or all but one happen once in 1,000 at most, unless the interval is of another width."""
    intervals = [mean_interval(normal(60, 1.0, 2.0, seed), seed=seed) for seed in range(120)]
    assert 105 <= sum(low <= 1.0 <= high for _, low, high in intervals) <= 119


def test_pairs_cancel_what_documents_share() -> None:
    hard = normal(100, 3.0, 1.0, seed=2)
    better = [value - gain for value, gain in zip(hard, normal(100, 0.02, 0.02, seed=3), strict=True)]
    mean, low, high = mean_interval(hard, better)
    assert mean == pytest.approx(sum(a - b for a, b in zip(hard, better, strict=True)) / 100)
    assert 0 < low < mean < high
    assert mean_interval(hard)[2] - mean_interval(hard)[1] > 20 * (high - low)


def test_weights_count_documents_by_their_tokens() -> None:
    assert mean_interval([1.0, 4.0], weights=[200, 100])[0] == pytest.approx(2.0)
    values, weights = normal(50, 0.0, 1.0, seed=4), [1 + place % 7 for place in range(50)]
    assert mean_interval(values, weights=weights) == pytest.approx(
        mean_interval(values, weights=[3 * weight for weight in weights])
    )


def test_groups_count_the_same_whatever_their_size() -> None:
    values, groups = [1.0] * 30 + [5.0] * 2, ["many"] * 30 + ["few"] * 2
    assert mean_interval(values, groups=groups) == (3.0, 3.0, 3.0)  # drawn together, the mean would vary
    assert mean_interval(values)[0] == pytest.approx((30 + 10) / 32)


def test_same_seed_same_interval() -> None:
    values = normal(40, 0.0, 1.0, seed=5)
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7) != mean_interval(values, seed=8)


@pytest.mark.parametrize(
    ("values", "others", "weights", "message"),
    [
        ([], None, None, "'values_a': 0"),
        ([1.0, 2.0], [1.0], None, "'values_a': 2, 'values_b': 1"),
        ([1.0, 2.0], None, [1.0, 0.0], "the least is 0.0"),
    ],
)
def test_refuses(values: list[float], others: list[float] | None, weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, others, weights=weights)
