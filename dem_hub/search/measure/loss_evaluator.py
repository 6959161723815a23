"""The evaluator of a search for losses on data.

It merges one model in place for each point, and measures losses, logits, gradients and curvature. Every measurement
is kept in a [`MeasurementCache`] and never made twice. Its cost is counted in a [`Ledger`], in tokens that are run
through the model; a backward pass counts as two forward passes.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import CoefficientError
from dem_hub.evaluation import processes
from dem_hub.evaluation.likelihood import is_seq2seq, run_tokens, scored_tokens, totals, vocabulary_of
from dem_hub.evaluation.windows import Window, hash_windows
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.gradients import CoefficientGradient
from dem_hub.search.measure.ledger import Ledger
from dem_hub.search.measure.logits import Block, keep_logits
from dem_hub.search.measure.memory import LogitMemory
from dem_hub.search.measure.own_inputs import OwnInputs
from dem_hub.search.measure.statistics import SummedStatistics
from dem_hub.search.points import Point, all_at, each_alone, moved
from dem_hub.search.progress import Progress
from dem_hub.search.solve.local_model import LocalModel, Quadratic

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

# Bytes of memory for logits, of all processes together. With three vectors, each half of 512 MiB holds 18,000 tokens.
LOGIT_BYTES = 512 << 20

# Steps of a coefficient for finite differences. Of weights in 16 bits, a small step is lost in their rounding
# (bfloat16 has a relative spacing of 2^-8), hence the longer one. Both were chosen by hand: 0.1 left a gap of 2e-4
# nats to the optimum in a trial in float32.
STEP = 0.1
ROUNDED_STEP = 0.5

# Cost of a gradient: one forward pass, and a backward pass that counts as two.
_GRADIENT_PASSES = 3


class LossEvaluator:
    """The losses of `base + sum_i point_i * vector_i` on named data, and their derivatives.

    Args:
        model (`MergedModel`): A model with its recipe. It is left at the point that was measured last.
        data (`Mapping[str, list[Window]]`): Windows by distribution.
        cache ([`MeasurementCache`]): Where measurements are kept.
        batch_size (`int`): Windows in a forward pass.
        logit_bytes (`int`): Memory for logits. If they need more, the start of a search uses a sample of the windows,
            and statistics are computed in parts.
        own_inputs ([`OwnInputs`], *optional*): Gathers input statistics in the passes that are made anyway.
        progress ([`Progress`], *optional*): Is told what runs.
        part (`str`): What is said before the name of a distribution, such as `"held-out "`.
    """

    def __init__(  # noqa: PLR0913  all but three have defaults
        self,
        model: "MergedModel",
        data: Mapping[str, list[Window]],
        cache: MeasurementCache,
        *,
        batch_size: int = BATCH_SIZE,
        logit_bytes: int = LOGIT_BYTES,
        own_inputs: OwnInputs | None = None,
        progress: Progress | None = None,
        part: str = "",
    ) -> None:
        seq2seq = is_seq2seq(model)
        self.model = model
        self.data = dict(data)
        self.cache = cache
        self.batch_size = batch_size
        self.logit_bytes = logit_bytes
        self.own_inputs = own_inputs
        self.progress = progress or Progress()
        self.part = part
        self.coordinates = Coordinates(model)
        self.hashes = {name: hash_windows(windows) for name, windows in self.data.items()}
        # The tokens of each window that are scored: those that a mean loss is divided by.
        self.tokens = {name: scored_tokens(windows, seq2seq=seq2seq) for name, windows in self.data.items()}
        self.ledger = Ledger(cache, self.progress)
        self._gradient: CoefficientGradient | None = None
        # All tokens that one forward pass over a distribution runs, scored or not: what it costs.
        self._sizes = {name: run_tokens(windows, seq2seq=seq2seq) for name, windows in self.data.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the coordinates of a point."""
        return self.coordinates.names

    def at(self, coordinates: Coordinates) -> "LossEvaluator":
        """Return an evaluator of the same data and cache for points of other coordinates.

        It counts its own cost from 0, but does not count again what this evaluator has paid for.
        """
        other = copy(self)
        other.coordinates = coordinates
        other.own_inputs = None  # its points are those of these coordinates
        other.ledger = self.ledger.from_zero()
        other._gradient = None
        return other

    @property
    def num_forward(self) -> float:
        """The cost so far, in forward passes over all the data."""
        return self.ledger.cost / max(1, self.pass_size)

    @property
    def question(self) -> list[str]:
        """The question that is measured: the vectors in their order, how they are merged into what, and the data."""
        data = [f"{name} {digest}" for name, digest in self.hashes.items()]
        return [*self.coordinates.keys, self.coordinates.merge_settings, *data]

    @property
    def pass_size(self) -> int:
        """The tokens that one forward pass over all the data runs through the model."""
        return sum(self._sizes.values())

    @property
    def logit_size(self) -> int:
        """The bytes of the logits that [`LossEvaluator.keep_table`] keeps, of all processes, at most."""
        return self._memory().size(self.tokens)

    def is_known(self, point: Sequence[float]) -> bool:
        """Return whether the losses of a point have been measured."""
        return all(self._score_key(name, point) in self.cache for name in self.data)

    def window_totals(self, point: Sequence[float]) -> dict[str, Tensor]:
        """Return the negative log-likelihood of each window by distribution, (windows,) in float64.

        The model runs over the distributions whose losses at the point are not known.
        """
        for name in self.data:
            if self._score_key(name, point) not in self.cache:
                self._measure_totals(name, point)
        for name in self.data:
            self.ledger.pay(self._score_key(name, point), self._sizes[name])
        return self.known_totals(point)

    def known_totals(self, point: Sequence[float]) -> dict[str, Tensor]:
        """Return the same as `window_totals` for a point that `is_known`, at no cost."""
        return {
            name: torch.tensor(self.cache[self._score_key(name, point)], dtype=torch.float64, device="cpu")
            for name in self.data
        }

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """Return the mean loss of a token, in nats, by distribution."""
        losses = {}
        for name, window_totals in self.window_totals(point).items():
            losses[name] = float(window_totals.sum()) / sum(self.tokens[name])
        return losses

    def own_statistics(self) -> list[InputStatistics]:
        """Return the input statistics of each vector on its own distribution.

        A cell of the table whose losses came from a cache, or that the strategy did not ask for, is run now.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If what the layers read is not finite. Names the vector.
        """
        assert self.own_inputs is not None, "the search was told to gather them"
        for vector, point in enumerate(each_alone(len(self.names))):
            name = self.own_inputs.own[vector]
            if self.own_inputs.has(vector):
                continue
            is_scored = self._score_key(name, point) in self.cache
            self._measure_totals(name, point)
            self.ledger.pay(self._score_key(name, point), self._sizes[name])
            if is_scored:
                # The losses were paid for before. This run was for the statistics alone.
                self.ledger.count(self._sizes[name])
        return self.own_inputs.statistics()

    def _measure_totals(self, name: str, point: Sequence[float]) -> None:
        """Run the model over one distribution, and keep the losses of its windows."""
        self._begin(name, point)
        with self._watching(name, point) as batch_size:
            window_totals = totals(self.model, list(processes.mine(self.data[name])), batch_size)
        self._put_totals(name, point, window_totals)

    def _begin(self, name: str, point: Sequence[float]) -> None:
        """Merge the model for a point, and say on which data it will run."""
        self.progress.mixture(point, self.names, f"{self.part}{name}")
        self.coordinates.move_to(point)

    def _watching(self, name: str, point: Sequence[float]) -> AbstractContextManager[int]:
        """Gather input statistics in this context if it runs a vector alone on its own distribution.

        It returns the number of windows that a forward pass in it may have.
        """
        if self.own_inputs is None:
            return nullcontext(self.batch_size)
        return self.own_inputs.watching(name, point, self.hashes[name], self.batch_size)

    def keep_table(self, beside: "LossEvaluator | None" = None) -> None:
        """Run the base, and the base with each vector alone, over all the data, and keep the logits that fit in memory.

        What has known losses is not run again for its logits, until [`from_logits`] needs them. `beside` has other data
        of the same model, whose losses are measured while each of these is merged.

        Raises:
            [`~dem_hub.errors.CoefficientError`]: If one of these models has a loss that is not finite. Names its
                vector.
        """
        for vector, point in self._table():
            for name in self.data:
                if self._score_key(name, point) not in self.cache:
                    self._keep_cell(name, point, vector)
            self._refuse_not_finite(point, vector)
            if beside is not None:
                beside.window_totals(point)

    def _table(self) -> list[tuple[int | None, Point]]:
        """Return the models of the table: the base, and the base with each vector, by its number."""
        count = len(self.names)
        return [(None, all_at(0.0, count)), *enumerate(each_alone(count))]

    def has_logits(self, cache: MeasurementCache) -> bool:
        """Return whether a cache has logits of any of these data, so that what is new is all that has to be run."""
        known = sum(cache.block(self._logits_key(name)) is not None for name in self.data)
        # Each process has files of its own, and all must go the same way.
        return bool(processes.total(torch.tensor([known], dtype=torch.float64, device="cpu"), self.model.device).any())

    def _keep_cell(self, name: str, point: Point, vector: int | None) -> None:
        """Run one model on one distribution and keep its logits, unless both its losses and its logits are known."""
        block_key = self._logits_key(name)
        block = self.cache.block(block_key)
        is_scored = self._score_key(name, point) in self.cache
        move_key = None if vector is None else self.coordinates.keys[vector]
        has_logits = block is not None and (move_key is None or move_key in block.moves)
        if is_scored and has_logits:
            return
        if block is None and vector is not None:
            self._keep_cell(name, all_at(0.0, len(self.names)), None)
            block = self.cache.block(block_key)
        self._begin(name, point)
        windows = list(processes.mine(self.data[name]))
        if move_key is None:
            window_totals, block = keep_logits(
                self.model, windows, self._memory().sample(self.tokens[name], len(self.data)), self.batch_size
            )
            self.cache.put_block(block_key, block)
        else:
            assert block is not None  # that of the base
            with self._watching(name, point) as batch_size:
                window_totals, block.moves[move_key] = block.move(self.model, windows, batch_size)
            self.cache.put_move(block_key, move_key)
        if is_scored:
            # The losses were paid for before. This run was for the logits alone.
            self.ledger.count(self._sizes[name])
        self._put_totals(name, point, window_totals)

    def _refuse_not_finite(self, point: Point, vector: int | None) -> None:
        wrong = [repr(name) for name, loss in self.losses(point).items() if not math.isfinite(loss)]
        if not wrong:
            return
        model = "The base"
        remedy = "Use another dtype, or another base."
        if vector is not None:
            model = f"The base with 1.0 of '{self.names[vector]}'"
            remedy = "Leave that vector out, or take an earlier checkpoint of it."
        raise CoefficientError(f"{model} has a loss that is not finite on {', '.join(wrong)}. {remedy}")

    def from_logits(self, point: Sequence[float]) -> LocalModel:
        """Return the losses around a point as the kept logits of the table have them."""
        keys = self.coordinates.keys
        key = self.coordinates.cache_key("from logits", point, *keys, *self.hashes.values())
        if key not in self.cache:
            offsets = dict(zip(keys, point, strict=True))
            parts = {}
            for vector, alone in self._table():
                for name in self.data:
                    self._keep_cell(name, alone, vector)
            for name in self.data:
                block = self.cache.block(self._logits_key(name))
                assert block is not None
                parts[name] = self._mean(block.sums(keys, offsets, 1.0, self.model.device))
            self.cache.put(key, LocalModel(self.names, tuple(map(float, point)), parts).to_dict())
        return self._known_model(key)

    def statistics(self, point: Sequence[float]) -> LocalModel:
        """Return loss, gradient and Gauss-Newton curvature at a point over all tokens, from N + 1 forward passes.

        Source: the derivative of the logits with respect to a coefficient is (logits(point + h e_i) - logits(point))
        / h; with it, see [`SummedStatistics.add`].
        """
        key = self.coordinates.cache_key("statistics", point, *self.coordinates.keys, *self.hashes.values())
        if key not in self.cache:
            self.cache.put(key, self._measure_statistics(point).to_dict())
        self.ledger.pay(key, (1 + len(self.names)) * self.pass_size)
        self.ledger.settle(self._score_key(name, point) for name in self.data)
        return self._known_model(key)

    def _known_model(self, key: str) -> LocalModel:
        # The cache knows vectors and data by their hashes. The names are those of today.
        known = LocalModel.from_dict(self.cache[key])
        return LocalModel(self.names, known.point, dict(zip(self.data, known.parts.values(), strict=True)))

    def _measure_statistics(self, point: Sequence[float]) -> LocalModel:
        """Run the model at a point and a step from it along each coordinate, over the data part by part."""
        self.progress.slopes()
        keys = self.coordinates.keys
        step = STEP if self.model.dtype == torch.float32 else ROUNDED_STEP
        sums = {name: SummedStatistics.zeros(len(keys)) for name in self.data}
        window_totals = {}
        for name, windows in self.data.items():
            window_totals[name] = torch.zeros(len(processes.mine(windows)), dtype=torch.float64, device="cpu")
        for places_by_name in self._memory().parts(self.tokens):
            windows_by_name: dict[str, list[Window]] = {}
            for name, places in places_by_name.items():
                mine = processes.mine(self.data[name])
                windows_by_name[name] = [mine[place] for place in places]
            blocks: dict[str, Block] = {}
            self.coordinates.move_to(point)
            for name, windows in windows_by_name.items():
                part_totals, blocks[name] = keep_logits(self.model, windows, range(len(windows)), self.batch_size)
                window_totals[name][places_by_name[name]] = part_totals
            for place, key in enumerate(keys):
                self.coordinates.move_to(moved(point, place, step))
                for name, windows in windows_by_name.items():
                    _, blocks[name].moves[key] = blocks[name].move(self.model, windows, self.batch_size)
            for name in windows_by_name:
                # Taken out: at the end of a part, nothing of it is in memory beside the next one.
                part_sums = blocks.pop(name).sums(keys, dict.fromkeys(keys, 0.0), 1 / step, self.model.device)
                sums[name].values += part_sums.values
        for name in self.data:
            self._put_totals(name, point, window_totals[name])
        parts = {name: self._mean(total) for name, total in sums.items()}
        return LocalModel(self.names, tuple(map(float, point)), parts)

    def gradient(self, point: Sequence[float]) -> dict[str, Tensor]:
        """Return the gradient of each distribution's loss, (N,) in float64, from a forward and a backward pass."""
        key = self.coordinates.cache_key("gradient", point, *self.coordinates.keys, *self.hashes.values())
        if key not in self.cache:
            self.cache.put(key, self._measure_gradient(point))
        self.ledger.pay(key, _GRADIENT_PASSES * self.pass_size)
        self.ledger.settle(self._score_key(name, point) for name in self.data)
        gradients = dict(zip(self.data, self.cache[key], strict=True))
        return {name: torch.tensor(gradient, dtype=torch.float64, device="cpu") for name, gradient in gradients.items()}

    def _measure_gradient(self, point: Sequence[float]) -> list[list[float]]:
        self.progress.slopes(_GRADIENT_PASSES)
        if self._gradient is None:
            self._gradient = CoefficientGradient(self.model, self.coordinates.groups)
        self.coordinates.move_to(point)
        gradients = []
        for name, windows in self.data.items():
            window_totals, gradient = self._gradient(list(processes.mine(windows)), self.batch_size)
            gradient = processes.total(gradient, self.model.device) / sum(self.tokens[name])
            gradients.append(gradient.tolist())
            self._put_totals(name, point, window_totals)
        return gradients

    def _put_totals(self, name: str, point: Sequence[float], my_totals: Tensor) -> None:
        """Keep the losses of all windows, of which each process has measured its own, unless they are known."""
        key = self._score_key(name, point)
        if key in self.cache:
            return
        window_totals = torch.zeros(len(self.data[name]), dtype=torch.float64, device="cpu")
        window_totals[processes.rank() :: processes.world_size()] = my_totals
        self.cache.put(key, processes.total(window_totals, self.model.device).tolist())

    def _mean(self, sums: SummedStatistics) -> Quadratic:
        """Return the mean over the tokens of all processes."""
        return SummedStatistics(processes.total(sums.values, self.model.device)).mean()

    def _score_key(self, name: str, point: Sequence[float]) -> str:
        return self.coordinates.cache_key("score", point, self.hashes[name])

    def _logits_key(self, name: str) -> str:
        return f"shortlist {self.coordinates.merge_settings} {self.hashes[name]}"

    def _memory(self) -> LogitMemory:
        # Half is for the table, which stays, and half for a step beside it.
        return LogitMemory(self.logit_bytes // 2, vocabulary_of(self.model), len(self.names))
