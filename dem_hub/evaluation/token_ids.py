"""Token ids of a row as tuples, and masks over them."""

from typing import Any

import torch

from dem_hub.errors import ConfigError
from dem_hub.evaluation.windows import NOT_SCORED

Tokens = tuple[int, ...]


def token_ids(values: Any) -> Tokens:
    """Return a list, an array or a tensor of integers as a tuple.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is nothing of these, or has more than one dimension.
    """
    try:
        ids = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"a {type(values).__name__} is no list of token ids ({error}).") from error
    # An empty list becomes a float tensor, and is a valid list of no ids.
    is_integer = not (ids.is_floating_point() or ids.is_complex()) or not ids.numel()
    if ids.dim() != 1 or not is_integer:
        raise ConfigError(f"{type(values).__name__} of shape {list(ids.shape)} is no list of token ids.")
    return tuple(map(int, ids.tolist()))


def masked(labels: Tokens, mask: Tokens) -> Tokens:
    """Return labels, with `NOT_SCORED` where the mask is 0."""
    return tuple(label if is_scored else NOT_SCORED for label, is_scored in zip(labels, mask, strict=True))


def visible(tokens: Tokens, mask: Tokens) -> Tokens:
    """Return the tokens where the mask is not 0."""
    return tuple(token for token, is_visible in zip(tokens, mask, strict=True) if is_visible)
