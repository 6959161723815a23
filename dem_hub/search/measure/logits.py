"""Logits of several models on the same tokens, kept in memory, and the losses of any coefficients between those models.

    logits(c) ~ logits(point) + sum_i (c_i - point_i) * move_i,    move_i = (logits(point + h e_i) - logits(point)) / h

The loss of these logits is convex in c. From the base with h = 1, the moves are what each vector does to the logits.
The cross-loss table computes these anyway, so a search begins with them at no further cost (this is logit
arithmetic). From any other point with a small h they are derivatives. Moves are kept as differences in float16: as
full logits in half precision they would lose what a coefficient changes.

Of a large vocabulary each place keeps a shortlist; see [`dem_hub.search.measure.shortlist`].
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.evaluation.likelihood import is_seq2seq, negative_log_likelihood, scored_logits, scored_tokens
from dem_hub.evaluation.windows import Window
from dem_hub.search.measure.shortlist import drawn_from, logits_of, settle, shortlist, shortlist_size, weigh
from dem_hub.search.measure.statistics import SummedStatistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes of an element: int32 for the tokens of a shortlist, float32 for their logits at the center, float16 for what
# each vector adds.
TOKEN_BYTES = 4
CENTER_BYTES = 4
MOVE_BYTES = 2

# Elements of all moves that are worked on at a time: 16 MiB in float32, and several temporaries of that size. Chosen
# by hand, not measured.
_CHUNK_ELEMENTS = 1 << 22


@dataclass
class Block:
    """Logits at the T places of some windows, and what each vector adds to them.

    `owners`, (T,), has the number of each place's window. A window is kept whole or not at all. `tokens`, (T, C) in
    int32, are the shortlists; those from column `first` are drawn. `center`, (T, C) in float32, has their logits, and
    `rest`, (T,) in float32, that of all tokens for which the drawn ones stand. Each of `moves` has the shape of
    `center`, in float16.
    """

    owners: Tensor
    tokens: Tensor
    center: Tensor
    rest: Tensor
    first: int
    moves: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, places: int, vocabulary: int) -> "Block":
        """Return a block whose tensors wait to be filled."""
        size = shortlist_size(vocabulary)
        return cls(
            owners=torch.empty(places, dtype=torch.long, device="cpu"),
            tokens=torch.empty((places, size), dtype=torch.int32, device="cpu"),
            center=torch.empty((places, size), dtype=torch.float32, device="cpu"),
            rest=torch.empty(places, dtype=torch.float32, device="cpu"),
            first=drawn_from(vocabulary),
        )

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], moves: dict[str, Tensor]) -> "Block":
        """Return the block of what `tensors` returned, with some moves.

        Raises:
            `KeyError`: If a tensor is not there.
        """
        fields = {name: tensors[name] for name in ("owners", "tokens", "center", "rest")}
        return cls(**fields, first=int(tensors["first"]), moves=moves)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but the moves by name, to be saved."""
        return {
            "owners": self.owners,
            "tokens": self.tokens,
            "center": self.center,
            "rest": self.rest,
            "first": torch.tensor(self.first, dtype=torch.long, device="cpu"),
        }

    def copy(self) -> "Block":
        """Return a block of the same tensors, whose moves can grow apart from this one's."""
        return replace(self, moves=dict(self.moves))

    def move(self, model: "PreTrainedModel", windows: Sequence[Window], batch_size: int) -> tuple[Tensor, Tensor]:
        """Run the model, as it is now, and return how its logits differ from the center.

        Returns:
            `tuple[Tensor, Tensor]`: The negative log-likelihood of each window, and the difference, of the shape of
                `center` in float16.
        """
        kept = set(self.owners.tolist())
        window_totals = torch.zeros(len(windows), dtype=torch.float64, device="cpu")
        move = torch.empty(self.center.shape, dtype=torch.float16, device="cpu")
        row = 0
        with torch.inference_mode():
            for scored in scored_logits(model, windows, batch_size):
                window_totals[scored.window] += negative_log_likelihood(scored)
                if scored.window in kept:
                    rows = slice(row, row + len(scored.targets))
                    move[rows] = self.difference(scored.logits, rows).half()
                    row = rows.stop
        return window_totals, move

    def difference(self, logits: Tensor, rows: slice) -> Tensor:
        """Return how logits, (T, V), at some places differ from the center, (T, C)."""
        device = logits.device
        found, rest = logits_of(logits, self.tokens[rows].to(device))
        difference = found - self.center[rows].to(device)
        settle(difference, rest - self.rest[rows].to(device), self.first)
        return difference.cpu()

    def sums(
        self, names: Sequence[str], offsets: Mapping[str, float], scale: float, device: torch.device
    ) -> SummedStatistics:
        """Return summed loss, gradient and curvature at center + sum_i offset_i * scale * move_i; `scale` is 1 / h."""
        sums = SummedStatistics.zeros(len(names))
        rows = max(1, _CHUNK_ELEMENTS // max(self.center.shape[1], 1) // max(len(names), 1))
        for start in range(0, len(self.center), rows):
            chunk = slice(start, start + rows)
            logits = self.center[chunk].to(device, copy=True)
            weigh(logits, self.rest[chunk].to(device), self.first)
            moves = torch.empty((len(names), *logits.shape), dtype=torch.float32, device=device)
            added = torch.empty_like(logits)
            for name, move in zip(names, moves, strict=True):
                move.copy_(self.moves[name][chunk])
                if scale != 1.0:
                    move.mul_(scale)
                if offsets[name]:
                    logits.add_(torch.mul(move, offsets[name], out=added))
            sums.add(logits, moves)
        return sums


def keep_logits(
    model: "PreTrainedModel", windows: Sequence[Window], places: Collection[int], batch_size: int
) -> tuple[Tensor, Block]:
    """Run the model over all windows, and keep the logits of the windows at some places.

    Returns:
        `tuple[Tensor, Block]`: The negative log-likelihood of each window, and the logits.
    """
    kept = set(places)
    counts = scored_tokens(windows, seq2seq=is_seq2seq(model))
    size = sum(counts[place] for place in kept)
    # The first logits show how large the vocabulary is. Pieces that are put together at the end would be kept twice.
    block = Block.empty(size, 1)
    window_totals = torch.zeros(len(windows), dtype=torch.float64, device="cpu")
    row = 0
    with torch.inference_mode():
        for scored in scored_logits(model, windows, batch_size):
            window_totals[scored.window] += negative_log_likelihood(scored)
            if scored.window not in kept:
                continue
            if row == 0:
                with torch.inference_mode(mode=False):
                    block = Block.empty(size, scored.logits.shape[1])
            rows = slice(row, row + len(scored.targets))
            tokens = shortlist(scored.logits, scored.targets)
            block.owners[rows] = scored.window
            block.tokens[rows] = tokens
            block.center[rows], block.rest[rows] = logits_of(scored.logits, tokens)
            row = rows.stop
    return window_totals, block


def place_bytes(vocabulary: int, vectors: int) -> int:
    """Return the bytes that are kept for one place, with one move for each vector."""
    return shortlist_size(vocabulary) * (TOKEN_BYTES + CENTER_BYTES + MOVE_BYTES * vectors)


def choose_windows(tokens: Sequence[int], limit: int, seed: int = 0) -> list[int]:
    """Return the places of random windows that have at most `limit` scored tokens together.

    There is at least one window, and all of them if they fit. A smaller limit takes the beginning of what a larger
    one takes, so that logits that were kept once stay of use.
    """
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    chosen: list[int] = []
    chosen_tokens = 0
    for place in order:
        if chosen and chosen_tokens + tokens[place] > limit:
            break
        chosen.append(place)
        chosen_tokens += tokens[place]
    return sorted(chosen)


def token_limit(budget: int, vocabulary: int, vectors: int) -> int:
    """Return how many tokens' logits fit in a budget of bytes, with one move for each vector; at least one."""
    return max(1, budget // place_bytes(vocabulary, vectors))


def parts_of(tokens: Sequence[int], limit: int) -> list[list[int]]:
    """Return the places of all windows, in order, in parts of at most `limit` scored tokens.

    A window with more tokens is a part of its own.
    """
    parts: list[list[int]] = []
    part_tokens = 0
    for place, count in enumerate(tokens):
        if not parts or part_tokens + count > limit:
            parts.append([])
            part_tokens = 0
        parts[-1].append(place)
        part_tokens += count
    return parts
