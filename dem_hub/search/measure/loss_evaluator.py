"""A model that is merged anew, in place, for each point, and everything that is measured on it: losses, logits, curvature.

Each measurement is filed in a [`MeasurementCache`] and never made twice. What it costs is counted in forward passes over the data: tokens
run through the model, divided by the tokens of the data; a backward pass counts two.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import CoefficientError
from dem_hub.evaluation import processes
from dem_hub.evaluation.likelihood import is_seq2seq, scored_tokens, totals
from dem_hub.evaluation.windows import Window, hash_windows
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.gradients import CoefficientGradient
from dem_hub.search.measure.logits import Block, choose_windows, keep_logits, parts_of, token_limit
from dem_hub.search.measure.statistics import SummedStatistics
from dem_hub.search.points import Point, all_at, each_alone
from dem_hub.search.solve.local_model import LocalModel

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

LOGIT_BYTES = 2 << 30  # of memory for logits, for all processes together
STEP, ROUNDED_STEP = (
    0.1,
    0.5,
)  # of a coefficient, for derivatives; a small step is lost in the rounding of 16-bit weights


class LossEvaluator:
    """Losses of `base + sum_i point_i * vector_i` on named data.

    Args:
        model (`MergedModel`): with its recipe; it is left wherever the last measurement put it.
        data (`Mapping[str, list[Window]]`): windows by distribution.
        cache ([`MeasurementCache`]): where measurements are filed.
        batch_size (`int`): windows in a forward pass.
        logit_bytes (`int`): memory for logits; more than fits is sampled for a start, or done in parts.
    """

    def __init__(
        self,
        model: "MergedModel",
        data: Mapping[str, list[Window]],
        cache: MeasurementCache,
        *,
        batch_size: int = BATCH_SIZE,
        logit_bytes: int = LOGIT_BYTES,
    ) -> None:
        self.model, self.data, self.cache, self.batch_size, self.logit_bytes = (
            model,
            dict(data),
            cache,
            batch_size,
            logit_bytes,
        )
        self.coordinates = Coordinates(model)
        self.digests = {name: hash_windows(windows) for name, windows in self.data.items()}
        seq2seq = is_seq2seq(model)
        self.tokens = {name: scored_tokens(windows, seq2seq=seq2seq) for name, windows in self.data.items()}
        self.run = 0  # tokens through the model so far, a backward pass counting as two forward passes
        self._gradient: CoefficientGradient | None = None
        self._paid: set[str] = set()
        self._sizes = {
            name: sum(len(w.input_ids) + seq2seq * len(w.labels) for w in windows)
            for name, windows in self.data.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """What the coordinates of a point are called."""
        return self.coordinates.names

    def at(self, coordinates: Coordinates) -> "LossEvaluator":
        """The same data and cache for points of other coordinates, with a count of its own, in which what is paid is paid."""
        other = copy(self)
        other.coordinates, other.run, other._gradient = coordinates, 0, None
        return other

    @property
    def num_forward(self) -> float:
        """The cost so far, in forward passes over all the data."""
        return self.run / max(1, sum(self._sizes.values()))

    def is_known(self, point: Sequence[float]) -> bool:
        """Whether a point's losses have been measured, so that they cost nothing."""
        return all(self._score_key(name, point) in self.cache for name in self.data)

    def window_totals(self, point: Sequence[float]) -> dict[str, Tensor]:
        """The negative log-likelihood of each window of each distribution, float64; runs the model over what is not known yet."""
        missing = [name for name in self.data if self._score_key(name, point) not in self.cache]
        if missing:
            self.coordinates.move_to(point)
        for name in missing:
            part = totals(self.model, list(processes.mine(self.data[name])), self.batch_size)
            self._put_totals(name, point, part)
        for name in self.data:
            self._pay(self._score_key(name, point), self._sizes[name])
        return self.known_totals(point)

    def known_totals(self, point: Sequence[float]) -> dict[str, Tensor]:
        """The same for a point that `is_known`, at no cost."""
        return {name: torch.tensor(self.cache[self._score_key(name, point)], dtype=torch.float64) for name in self.data}

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """The mean loss of a token of each distribution."""
        return {
            name: float(values.sum()) / sum(self.tokens[name]) for name, values in self.window_totals(point).items()
        }

    def keep_table(self) -> None:
        """Run the base and base + each vector over everything, and keep the logits that fit in memory.

        Raises:
            `CoefficientError`: one of them has a loss that is not finite; names it.
        """
        from huggingface_hub.utils import tqdm

        count = len(self.names)
        columns = [all_at(0.0, count), *each_alone(count)]
        for number, point in enumerate(tqdm(columns, desc="Cross-loss table", unit="model", delay=1)):
            for name in self.data:
                self._keep_cell(name, point, self.coordinates.keys[number - 1] if number else None)
            wrong = [name for name, loss in self.losses(point).items() if not torch.isfinite(torch.tensor(loss))]
            if wrong:
                who = f"The base with 1.0 of '{self.names[number - 1]}'" if number else "The base"
                remedy = (
                    "Leave that vector out, or take an earlier checkpoint of it."
                    if number
                    else "Use another dtype, or another base."
                )
                raise CoefficientError(
                    f"{who} has a loss that is not finite on {', '.join(map(repr, wrong))}. {remedy}"
                )

    def _keep_cell(self, name: str, point: Point, vector: str | None) -> None:
        """One model on one distribution, with its logits; nothing where both are known."""
        key = f"{self.coordinates.place} {self.digests[name]}"
        block = self.cache.block(key)
        scored = self._score_key(name, point) in self.cache
        if block is not None and scored and (vector is None or vector in block.moves):
            return
        self.coordinates.move_to(point)
        windows = list(processes.mine(self.data[name]))
        if vector is None:
            limit = (
                token_limit(self.logit_bytes, self._vocabulary(), len(self.names))
                // len(self.data)
                // processes.world_size()
            )
            own = list(processes.mine(self.tokens[name]))
            part, block = keep_logits(self.model, windows, choose_windows(own, limit), self.batch_size)
            self.cache.put_block(key, block)
        else:
            assert block is not None  # the base's cell comes first
            part, block.moves[vector] = block.move(self.model, windows, self.batch_size)
            self.cache.put_move(key, vector)
        if scored:  # for its logits alone
            self.run += self._sizes[name]
        self._put_totals(name, point, part)

    def from_logits(self, point: Sequence[float]) -> LocalModel:
        """Losses around a point, as the kept logits have them; no forward pass."""
        offsets = dict(zip(self.coordinates.keys, point, strict=True))
        parts = {}
        for name in self.data:
            block = self.cache.block(f"{self.coordinates.place} {self.digests[name]}")
            assert block is not None, "keep_table comes first"
            sums = block.sums(self.coordinates.keys, offsets, 1.0, self.model.device)
            parts[name] = SummedStatistics(processes.total(sums.values, self.model.device)).mean()
        return LocalModel(self.names, tuple(map(float, point)), parts)

    def statistics(self, point: Sequence[float]) -> LocalModel:
        """Loss, gradient and Gauss-Newton curvature at a point, over all tokens: N + 1 forward passes, a part of the data at a time.

        Source: the derivative of the logits after a coefficient is (logits(point + h e_i) - logits(point)) / h; with it,
        see [`SummedStatistics.add`].
        """
        key = f"statistics {self.coordinates.key(point)} {' '.join(self.coordinates.keys)} {' '.join(self.digests.values())} {self.coordinates.place}"
        if key not in self.cache:
            self.cache.put(key, self._measured(point).to_dict())
        self._pay(key, (1 + len(self.names)) * sum(self._sizes.values()))
        self._paid |= {self._score_key(name, point) for name in self.data}
        found = LocalModel.from_dict(self.cache[key])
        return LocalModel(self.names, found.point, dict(zip(self.data, found.parts.values(), strict=True)))

    def _measured(self, point: Sequence[float]) -> LocalModel:
        step = STEP if self.model.dtype == torch.float32 else ROUNDED_STEP
        moved = [tuple(value + step * (i == j) for j, value in enumerate(point)) for i in range(len(point))]
        sums = {name: SummedStatistics.zeros(len(self.names)) for name in self.data}
        found = {
            name: torch.zeros(len(processes.mine(windows)), dtype=torch.float64) for name, windows in self.data.items()
        }
        from huggingface_hub.utils import tqdm

        for part in tqdm(self._parts(), desc="Derivatives", unit="part", delay=1):
            self.coordinates.move_to(point)
            blocks: dict[str, Block] = {}
            chosen = {
                name: [processes.mine(self.data[name])[place] for place in places] for name, places in part.items()
            }
            for name, windows in chosen.items():
                values, blocks[name] = keep_logits(self.model, windows, range(len(windows)), self.batch_size)
                found[name][part[name]] = values
            for vector, other in zip(self.coordinates.keys, moved, strict=True):
                self.coordinates.move_to(other)
                for name, windows in chosen.items():
                    blocks[name].moves[vector] = blocks[name].move(self.model, windows, self.batch_size)[1]
            for name, block in blocks.items():
                sums[name].values += block.sums(
                    self.coordinates.keys, dict.fromkeys(self.coordinates.keys, 0.0), 1 / step, self.model.device
                ).values
        for name in self.data:
            self._put_totals(name, point, found[name])
        parts = {
            name: SummedStatistics(processes.total(value.values, self.model.device)).mean()
            for name, value in sums.items()
        }
        return LocalModel(self.names, tuple(map(float, point)), parts)

    def _parts(self) -> list[dict[str, list[int]]]:
        """This process's windows, by distribution, in parts whose logits fit in memory."""
        limit = token_limit(self.logit_bytes, self._vocabulary(), len(self.names)) // processes.world_size()
        everything = [
            (name, place) for name, windows in self.data.items() for place in range(len(processes.mine(windows)))
        ]
        counts = [processes.mine(self.tokens[name])[place] for name, place in everything]
        parts: list[dict[str, list[int]]] = []
        for places in parts_of(counts, limit):
            parts.append({})
            for name, place in (everything[number] for number in places):
                parts[-1].setdefault(name, []).append(place)
        return parts

    def gradient(self, point: Sequence[float]) -> dict[str, Tensor]:
        """The derivative of each distribution's loss after the coefficients, (N,), from a forward and a backward pass."""
        key = f"gradient {self.coordinates.key(point)} {' '.join(self.coordinates.keys)} {' '.join(self.digests.values())} {self.coordinates.place}"
        if key not in self.cache:
            if self._gradient is None:
                self._gradient = CoefficientGradient(self.model, self.coordinates.groups)
            self.coordinates.move_to(point)
            slopes = {}
            for name, windows in self.data.items():
                found, slope = self._gradient(list(processes.mine(windows)), self.batch_size)
                slopes[name] = (processes.total(slope, self.model.device) / sum(self.tokens[name])).tolist()
                self._put_totals(name, point, found)
            self.cache.put(key, list(slopes.values()))
        self._pay(key, 3 * sum(self._sizes.values()))
        self._paid |= {self._score_key(name, point) for name in self.data}
        slopes = dict(zip(self.data, self.cache[key], strict=True))
        return {name: torch.tensor(slope, dtype=torch.float64) for name, slope in slopes.items()}

    def _pay(self, key: str, tokens: int) -> None:
        """Count a measurement when this search first uses it, whether it is made now or was before a kill; an earlier search's is free."""
        if key not in self._paid and not self.cache.is_free(key):
            self.run += tokens
        self._paid.add(key)

    def _put_totals(self, name: str, point: Sequence[float], mine: Tensor) -> None:
        """Put together what the processes found, each for its own windows, and file it, unless it is known."""
        if self._score_key(name, point) in self.cache:
            return
        whole = torch.zeros(len(self.data[name]), dtype=torch.float64)
        whole[processes.rank() :: processes.world_size()] = mine
        self.cache.put(self._score_key(name, point), processes.total(whole, self.model.device).tolist())

    def _score_key(self, name: str, point: Sequence[float]) -> str:
        return f"score {self.coordinates.key(point)} {self.digests[name]} {self.coordinates.place}"

    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)
