"""Random bits by place: frozen, uniform, and of neighbours that know nothing of one another."""

import math

import torch

from dem_hub.numerics.noise import random_bits, row_keys


def test_random_bits_are_frozen() -> None:
    # The merged model of every recipe depends on them.
    keys = row_keys(7, "model.embed_tokens.weight", torch.arange(2))
    assert random_bits(keys, 0, 4).tolist() == [[13570, 11413, 36839, 38650], [30131, 34325, 19256, 29833]]


def test_random_bits_are_uniform() -> None:
    bits = random_bits(row_keys(0, "w", torch.arange(256)), 0, 1024)
    counts = torch.bincount((bits >> 8).flatten(), minlength=256).double()
    expected = bits.numel() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 380  # 255 degrees of freedom: 5 standard deviations are 113
    for other in (bits.roll(1, 0), bits.roll(1, 1), bits.roll(2, 1)):
        pair = torch.corrcoef(torch.stack([bits.flatten().double(), other.flatten().double()]))[0, 1]
        assert abs(float(pair)) < 5 / math.sqrt(bits.numel())
