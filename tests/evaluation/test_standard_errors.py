"""Standard errors over documents."""

import math

import pytest
import torch

from dem_hub.evaluation.standard_errors import clustered_error
from dem_hub.evaluation.windows import Window


def test_the_error_is_over_documents() -> None:
    """A document of ten equal windows says as much as one of one."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(40, generator=generator, dtype=torch.float64)
    once = [Window((), (), document) for document in range(40)]
    often = [Window((), (), document) for document in range(40) for _ in range(10)]
    one = clustered_error(means * 5, [5] * 40, once)
    assert clustered_error(means.repeat_interleave(10) * 5, [5] * 400, often) == pytest.approx(one)
    assert one == pytest.approx(float(means.std()) / math.sqrt(40), rel=1e-6)
    assert clustered_error(means * 5, [5] * 40, [Window((), (), 7)] * 40) == one  # one long text, by its windows
    assert math.isnan(clustered_error(means[:1], [5], once[:1]))


def test_the_error_is_that_of_many_draws() -> None:
    """Against the spread of the estimate itself, over samples of documents of unequal length."""
    generator = torch.Generator().manual_seed(1)
    estimates, errors = [], []
    for _ in range(400):
        tokens = torch.randint(1, 20, (60,), generator=generator)
        totals = tokens * (2 + torch.randn(60, generator=generator, dtype=torch.float64))
        estimates.append(float(totals.sum() / tokens.sum()))
        errors.append(clustered_error(totals, tokens.tolist(), [Window((), (), document) for document in range(60)]))
    assert sum(errors) / len(errors) == pytest.approx(float(torch.tensor(estimates).std()), rel=0.1)
