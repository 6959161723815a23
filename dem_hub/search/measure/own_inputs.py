"""What the layers read while a vector alone runs on its own distribution: a cell of the cross-loss table.

A search runs these cells anyway, so the input statistics that RegMean needs cost it no forward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dem_hub.errors import CoefficientError, ConfigError
from dem_hub.evaluation.likelihood import is_seq2seq
from dem_hub.input_statistics.gathering import watching
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.search.points import each_alone
from dem_hub.vectors.statistics_beside import tied_statistics

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel


class OwnInputs:
    """The input statistics of each vector on its own distribution, as far as they have been gathered.

    Args:
        model (`MergedModel`): The model that is run, with its recipe.
        own (`Sequence[str]`): The own distribution of each vector, in order.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the architecture is not known.
    """

    def __init__(self, model: "MergedModel", own: Sequence[str]) -> None:
        opened = model.dem.open()
        if opened.base.architecture is None:
            raise ConfigError(
                f"The architecture of '{opened.base}' is not known, so its layers' inputs cannot be told apart. Search "
                "without regmean."
            )
        self.own = tuple(own)
        self.architecture = opened.base.architecture
        self._model = model
        self._vectors = opened.vectors
        self._gathered: dict[int, InputStatistics] = {}

    def has(self, vector: int) -> bool:
        """Return whether the statistics of a vector have been gathered."""
        return vector in self._gathered

    def statistics(self) -> list[InputStatistics]:
        """Return the statistics of all vectors, in order; they have been gathered."""
        return [self._gathered[vector] for vector in range(len(self.own))]

    @contextmanager
    def watching(self, name: str, point: Sequence[float], data: str, batch_size: int) -> Iterator[int]:
        """Gather statistics while the model runs in this context, if this is a vector alone on its own distribution.

        Args:
            name (`str`): The distribution.
            point (`Sequence[float]`): The coefficients.
            data (`str`): A hash of the windows.
            batch_size (`int`): Windows in a forward pass.

        Yields:
            `int`: The windows that a forward pass may have.
        """
        vector = self._vector(name, point)
        if vector is None or self.has(vector):
            yield batch_size
            return
        with watching(self._model, self.architecture) as watch:
            # An encoder's and a decoder's padding are not told apart by their shapes. One window has none.
            yield 1 if is_seq2seq(self._model) else batch_size
        try:
            statistics = watch.statistics(data)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # it is public, and not exported
            raise CoefficientError(
                f"What the layers of the base with 1.0 of '{self._vectors[vector].name}' read on '{name}' is not "
                "finite. Leave that vector out, take an earlier checkpoint of it, or search without regmean."
            ) from error
        self._gathered[vector] = tied_statistics(statistics, self._vectors[vector])

    def _vector(self, name: str, point: Sequence[float]) -> int | None:
        """Return the vector that is alone at a point, if the distribution is its own."""
        for vector, alone in enumerate(each_alone(len(self.own))):
            if tuple(point) == alone and self.own[vector] == name:
                return vector
        return None
