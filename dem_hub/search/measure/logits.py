"""Logits of a few models on the same tokens, kept, and the losses of any coefficients between them.

    logits(c) ~ logits(point) + sum_i (c_i - point_i) * move_i,    move_i = (logits(point + h e_i) - logits(point)) / h

is convex in c under cross-entropy. From the base with h = 1, the moves are what the vectors do to the logits, which the cross-loss table
computes anyway (notes: logit arithmetic, used here to begin a search); from any other point with a small h they are derivatives. Moves
are kept as differences, in half precision, so that what a coefficient changes is not lost below the logits' own size.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.evaluation.likelihood import negative_log_likelihood, scored_logits
from dem_hub.evaluation.windows import Window
from dem_hub.search.measure.statistics import SummedStatistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CENTER_BYTES, MOVE_BYTES = 4, 2  # an element
_ELEMENTS = 1 << 22  # logits worked on at a time


@dataclass
class Block:
    """Logits over the tokens of some windows: at the centre, (T, V) in float32, and what each vector adds, (T, V) in float16.

    `owners`, (T,), is the place of each token's window; a window is kept whole or not at all.
    """

    owners: Tensor
    center: Tensor
    targets: Tensor
    moves: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> "Block":
        """The same tensors, to which moves can be added apart."""
        return Block(self.owners, self.center, self.targets, dict(self.moves))

    def move(self, model: "PreTrainedModel", windows: Sequence[Window], batch_size: int) -> tuple[Tensor, Tensor]:
        """Run the model as it is now, and see what its logits differ by.

        Returns:
            `tuple[Tensor, Tensor]`: the negative log-likelihood of each window, and the difference, (T, V) in float16.
        """
        kept = set(self.owners.tolist())
        found = torch.zeros(len(windows), dtype=torch.float64)
        moved = torch.empty(self.center.shape, dtype=torch.float16)
        row = 0
        with torch.inference_mode():
            for scored in scored_logits(model, windows, batch_size):
                found[scored.window] += negative_log_likelihood(scored)
                if scored.window in kept:
                    part = slice(row, row + len(scored.targets))
                    moved[part] = (scored.logits.cpu() - self.center[part]).half()
                    row = part.stop
        return found, moved

    def sums(
        self, names: Sequence[str], offsets: Mapping[str, float], scale: float, device: torch.device
    ) -> SummedStatistics:
        """Loss, gradient and curvature at centre + sum_i offset_i * move_i * scale."""
        sums = SummedStatistics.zeros(len(names))
        rows = max(1, _ELEMENTS // max(self.center.shape[1], 1) // max(len(names), 1))
        for start in range(0, len(self.targets), rows):
            part = slice(start, start + rows)
            moves = torch.stack([self.moves[name][part].to(device).float() * scale for name in names])
            logits = self.center[part].to(device)
            for name, move in zip(names, moves, strict=True):
                if offsets[name]:
                    logits = logits + offsets[name] * move
            sums.add(logits, moves, self.targets[part].to(device))
        return sums


def keep_logits(
    model: "PreTrainedModel", windows: Sequence[Window], places: Collection[int], batch_size: int
) -> tuple[Tensor, Block]:
    """Run the model over all windows, and keep the logits of those at some places.

    Returns:
        `tuple[Tensor, Block]`: the negative log-likelihood of each window, and the logits.
    """
    kept = set(places)
    found = torch.zeros(len(windows), dtype=torch.float64)
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        for scored in scored_logits(model, windows, batch_size):
            found[scored.window] += negative_log_likelihood(scored)
            if scored.window in kept:
                owners = torch.full(scored.targets.shape, scored.window)
                pieces.append((owners, scored.logits.cpu(), scored.targets.cpu()))
    if not pieces:
        nothing = torch.zeros(0, dtype=torch.long)
        return found, Block(nothing, torch.zeros(0, 1), nothing)
    owners, center, targets = (torch.cat(column) for column in zip(*pieces, strict=True))
    return found, Block(owners, center, targets)


def choose_windows(tokens: Sequence[int], limit: int, seed: int = 0) -> list[int]:
    """The places of windows that have at most `limit` scored tokens together, all of them where they fit; at least one.

    A smaller limit takes the beginning of what a larger one takes, so that what was kept once stays of use.
    """
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[int] = []
    taken = 0
    for place in order:
        if chosen and taken + tokens[place] > limit:
            break
        chosen.append(place)
        taken += tokens[place]
    return sorted(chosen)


def token_limit(budget: int, vocabulary: int, vectors: int) -> int:
    """How many tokens' logits a number of bytes holds."""
    return max(1, budget // (vocabulary * (CENTER_BYTES + MOVE_BYTES * vectors)))


def parts_of(tokens: Sequence[int], limit: int) -> list[list[int]]:
    """All windows, in order, in parts of at most `limit` scored tokens, or of one window."""
    parts: list[list[int]] = []
    taken = 0
    for place, count in enumerate(tokens):
        if not parts or taken + count > limit:
            parts.append([])
            taken = 0
        parts[-1].append(place)
        taken += count
    return parts
