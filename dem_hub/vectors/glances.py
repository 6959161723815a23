"""The first look at all tensors of an extraction, for an encoder that divides a budget among them.

It is quick, since it reads a part of the rows of large tensors. By the way it notices what is hardly a fine-tune.
"""

import logging
import math
from collections.abc import Mapping, Sequence

from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.auto.budget import SMALL
from dem_hub.codecs.first_look import FirstLook, Glance
from dem_hub.numerics.norms import squared_norm
from dem_hub.vectors.matching import Pair, vocabulary_size
from dem_hub.vectors.sides import Sides, subtract

logger = logging.getLogger(__name__)

# Norm of the delta, relative to that of the weights it changes, from which a warning says that the two are hardly
# base and fine-tune. Fine-tunes change a few hundredths (0.2 % of SmolLM2's matrices, 1.2 % from Qwen2.5-7B to its
# Instruct model).
_UNLIKE = 0.5

# The first look reads every 8th row of a large tensor. Chosen by hand: the reading is an eighth, and root mean
# squares need no more rows.
_GLANCE_STEP = 8


def look_over(pairs: Sequence[Pair], sides: Sides, finetuned: str | None) -> FirstLook:
    """Return a first look at all tensors, and warn if the two sides are hardly base and fine-tune.

    Args:
        pairs (`Sequence[Pair]`): The tensors of both sides.
        sides ([`Sides`]): The two checkpoints.
        finetuned (`str`, *optional*): The name of the fine-tune, for the warning.
    """
    glances = _glance(pairs, sides)
    _warn_if_unlike(glances, sides.base, finetuned)
    return FirstLook(glances, _count_reserved_bytes(pairs, sides))


def _glance(pairs: Sequence[Pair], sides: Sides) -> dict[str, Glance]:
    """Return a first look at every tensor that changed and is a delta, by the base's key."""
    from huggingface_hub.utils import tqdm

    vocabulary = vocabulary_size(sides.base.folder)
    glances = {}
    for pair in tqdm(pairs, desc="Comparing", unit="tensor", delay=1):
        if sides.is_replaced(pair.base_key):
            continue
        shape = sides.shape(pair)
        steps = (_GLANCE_STEP, 1) if math.prod(shape) > SMALL else (1,)
        for step in steps:
            old, new = sides.read(pair, step)
            sides.check_finite(pair, old, new)
            delta = subtract(new, old)
            # Rows without a change prove nothing: the change may be in the rows that were skipped. Then all rows are
            # read.
            if delta.any():
                rms = math.sqrt(squared_norm(delta) / delta.numel())
                base_rms = math.sqrt(squared_norm(old) / delta.numel())
                is_vocabulary = len(shape) == 2 and shape[0] == vocabulary
                glances[pair.base_key] = Glance(shape, rms, base_rms, is_vocabulary)
                break
    return glances


def _warn_if_unlike(glances: Mapping[str, Glance], base: Base, finetuned: str | None) -> None:
    """Warn if the delta is nearly as large as the weights: two models of one shape that were trained apart have a
    difference, too.
    """
    delta_norm = math.sqrt(sum(glance.elements * glance.rms**2 for glance in glances.values()))
    base_norm = math.sqrt(sum(glance.elements * glance.base_rms**2 for glance in glances.values()))
    if delta_norm > _UNLIKE * base_norm:
        logger.warning(
            "The delta's norm is %.4g, and that of the weights it changes %.4g. "
            "Is '%s' a fine-tune of '%s', and of this revision of it?",
            delta_norm,
            base_norm,
            finetuned or "the model in training",
            base,
        )


def _count_reserved_bytes(pairs: Sequence[Pair], sides: Sides) -> int:
    """Return the bytes of what is stored as it is, at the most: new rows, and tensors that are replaced."""
    total = 0
    for pair in pairs:
        info = sides.finetuned[pair.finetuned_key]
        if sides.is_replaced(pair.base_key):
            total += info.nbytes
        elif pair.rows:
            total += pair.rows * info.nbytes // info.shape[0]
    return total
