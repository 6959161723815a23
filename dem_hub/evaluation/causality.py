"""Whether a model predicts a token from those before it alone, found by what the model does.

The class and the config tell it for the models of transformers. A model with code of its own may see the tokens on
both sides, as language models that are trained by diffusion do, and so may a known one whose config turns its mask
off. The loss of the next token would then mean nothing: the model sees the token.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from dem_hub.errors import ConfigError
from dem_hub.evaluation.scorable import REMEDY, is_known_causal
from dem_hub.evaluation.windows import Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of the text that is tried.
_TOKENS = 16

# How far the logits before a changed token may move, as a part of how far those at it do. It was 0 in each causal
# model of the tests, and 0.7 in those that see both sides. Kernels of other devices may round otherwise where another
# token takes another expert. Chosen by hand.
_NOISE = 1e-3
_NOISE_IN_16_BITS = 5e-2

# Models that were tried. A search scores one model many times.
_CAUSAL: "WeakSet[torch.nn.Module]" = WeakSet()


def refuse_two_sided(model: "PreTrainedModel", windows: Sequence[Window]) -> None:
    """Refuse a model whose prediction of a token changes with the tokens after it.

    A model that is known to be causal is not run, and any other one only the first time, twice with 16 tokens.

    Args:
        model (`PreTrainedModel`): The model.
        windows (`Sequence[Window]`): What it is to score. One of them is tried.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the model sees both sides.
    """
    if model in _CAUSAL or is_known_causal(model.config, type(model).__name__):
        return
    texts = _two_texts(windows)
    if texts is None:
        return
    first, second = _logits(model, texts)
    half = first.shape[0] // 2
    moved = (first - second).abs().amax(dim=-1)
    noise = _NOISE if _dtype(model).itemsize > 2 else _NOISE_IN_16_BITS
    if moved[:half].max() > noise * moved[half:].max():
        raise ConfigError(
            f"The model is a {type(model).__name__}, and its prediction of a token changes with the tokens after it: "
            f"it sees the tokens on both sides, and the loss of the next token means nothing. {REMEDY}"
        )
    _CAUSAL.add(model)


def _two_texts(windows: Sequence[Window]) -> torch.Tensor | None:
    """Return two texts whose second halves differ, (2, tokens), made of the tokens of a window.

    Other tokens might stand for an image. It is `None` if no window has two different tokens.
    """
    for window in windows:
        ids = list(window.input_ids[:_TOKENS])
        half = len(ids) // 2
        for other in (ids[half:][::-1], [ids[0]] * (len(ids) - half), [ids[-1]] * (len(ids) - half)):
            if half and other != ids[half:]:
                return torch.tensor([ids, ids[:half] + other], device="cpu")
    return None


def _logits(model: "PreTrainedModel", texts: torch.Tensor) -> torch.Tensor:
    """Return the logits of two texts, (2, tokens, V) in float32, without dropout."""
    is_training = model.training
    try:
        model.eval()
        with torch.inference_mode():
            # One after the other: each is computed in the same order.
            rows: list[Any] = [model(input_ids=text[None].to(model.device)).logits[0] for text in texts]
    finally:
        model.train(is_training)
    return torch.stack(rows).float()


def _dtype(model: "PreTrainedModel") -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
