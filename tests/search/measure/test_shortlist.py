"""The tokens whose logits are kept, against sums over the whole vocabulary."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.search.measure import shortlist as shortlists
from dem_hub.search.measure.shortlist import drawn_from, logits_of, settle, shortlist, shortlist_size, weigh


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlists, "LIKELY", 5)
    monkeypatch.setattr(shortlists, "DRAWN", 4)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("vocabulary", [2, 9, 10, 11, 40])
def test_the_loss_is_that_of_all_tokens(vocabulary: int) -> None:
    """The one that came is first, then the likeliest, and those drawn have the probability of all others."""
    center, other = 3 * random(2, 30, vocabulary, seed=vocabulary)
    targets = torch.randint(vocabulary, (30,), generator=torch.Generator().manual_seed(0))
    tokens = shortlist(center, targets)
    first = drawn_from(vocabulary)
    assert tokens.shape[1] == shortlist_size(vocabulary) == min(vocabulary, 10)
    assert first == (6 if vocabulary > 10 else vocabulary)
    assert torch.equal(tokens[:, 0], targets)
    best = center.scatter(1, targets[:, None], math.inf).sort(descending=True).indices
    assert torch.equal(tokens[:, :first].sort().values, best[:, :first].sort().values)
    assert not any(set(row[:first].tolist()) & set(row[first:].tolist()) for row in tokens)

    logits, rest = logits_of(center, tokens)
    move, other_rest = logits_of(other, tokens)
    move -= logits
    settle(move, other_rest - rest, first)
    weigh(logits, rest, first)
    for whole, kept in ((center, logits), (other, logits + move)):
        loss = functional.cross_entropy(kept, torch.zeros(30, dtype=torch.long), reduction="none")
        torch.testing.assert_close(loss, functional.cross_entropy(whole, targets, reduction="none"))


def test_each_is_drawn_as_often_as_its_probability_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlists, "LIKELY", 3)
    monkeypatch.setattr(shortlists, "DRAWN", 1000)
    logits = 2 * random(4, 1500, seed=0)
    targets = torch.tensor([0, 1, 2, 3])
    tokens = shortlist(logits, targets)
    others = logits.scatter(1, tokens[:, :4], -math.inf).double().softmax(1)
    drawn = torch.stack([row.bincount(minlength=1500) for row in tokens[:, 4:]])
    assert float((drawn - 1000 * others).abs().max()) < 1.01


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("unlikely", [-50.0, -1e4, -math.inf])
def test_others_that_are_as_good_as_impossible(unlikely: float) -> None:
    """Their probability underflows, and they change nothing. Some models answer minus infinity for unused tokens."""
    logits = torch.full((3, 40), unlikely)
    logits[:, 10:13] = random(3, 3, seed=0)
    targets = torch.tensor([10, 11, 12])
    tokens = shortlist(logits, targets)
    kept, rest = logits_of(logits, tokens)
    move, other_rest = logits_of(logits + 0.5, tokens)
    move -= kept
    settle(move, other_rest - rest, 6)
    assert move.isfinite().all()
    weigh(kept, rest, 6)
    loss = functional.cross_entropy(kept, torch.zeros(3, dtype=torch.long), reduction="none")
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets, reduction="none"))
    assert tokens.max() < 40
