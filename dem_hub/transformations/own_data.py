"""Input statistics of vectors: the base and each fine-tune run once over the data of its own distribution."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.base_model import Base
from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH, SEARCH_DTYPE, VERIFY
from dem_hub.errors import ConfigError
from dem_hub.evaluation.columns import select_columns
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.evaluation.reader import Reader
from dem_hub.hub.references import VectorSource
from dem_hub.hub.remembered import hashing_again
from dem_hub.input_statistics.gathering import gather
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.measurable import Measurable, hub_options, tokenizer_loader
from dem_hub.transformations.vector_names import check_vector_names
from dem_hub.vectors.statistics_beside import read_statistics, tied_statistics


@dataclass(frozen=True)
class OwnData:
    """How data are read and run: the arguments of [`gather_statistics`] under the same names."""

    columns: Mapping[str, str | Sequence[str]] | None
    tokenizer: Any
    batch_size: int
    max_length: int
    dtype: str | None
    model_kwargs: Mapping[str, Any]

    def gather(
        self, base: str | os.PathLike[str] | VectorSource, vectors: Mapping[str, Any]
    ) -> tuple[OpenedRecipe, list[InputStatistics]]:
        """Return the base and the vectors, opened, and the statistics of each vector in order.

        Args:
            base (`str`, `os.PathLike` or [`VectorSource`]): The base.
            vectors (`Mapping[str, Any]`): By vector its data; `None` reads the statistics beside it.

        Raises:
            `ConfigError`: If there are no vectors, one is named twice, or they are not a mapping.
        """
        check_vector_names(vectors)
        names = list(vectors)
        if not isinstance(vectors, Mapping):
            raise ConfigError(
                f"vectors is a {type(vectors).__name__}. Give data of each vector, or None where its input statistics "
                f"are beside it: {{{str(names[0])!r}: 'texts.jsonl'}}."
            )
        data = select_columns({name: rows for name, rows in vectors.items() if rows is not None}, self.columns)
        if not data:
            opened = self._open(base, names)
            return opened, [read_statistics(vector) for vector in opened.vectors]
        measurable = Measurable(base, names, self.dtype, self.model_kwargs)
        load_tokenizer = tokenizer_loader(self.tokenizer, base, self.model_kwargs)
        reader = Reader.of_model(measurable.config, load_tokenizer, self.max_length)
        windows = {name: reader.windows(rows) for name, rows in data.items()}
        empty = [f"'{name}'" for name, of_name in windows.items() if not of_name]
        if empty:
            raise ConfigError(f"There is no text in the data of {', '.join(empty)}.")
        model = measurable.model
        opened = model.dem.open()
        architecture = _architecture_of(opened.base)
        by_name = dict(zip(names, opened.vectors, strict=True))
        # Whatever is missing is missing before the first pass.
        statistics = {name: read_statistics(vector) for name, vector in by_name.items() if name not in windows}
        model.dem.set_coefficients(dict.fromkeys(model.dem.coefficients, 0.0))
        base_losses = evaluate(model, windows, self.batch_size)
        for place, name in enumerate(names):
            if name not in windows:
                continue
            point = [float(other == place) for other in range(len(names))]
            model.dem.set_coefficients(dict(zip(model.dem.coefficients, point, strict=True)))
            base_loss = base_losses[name].loss
            gathered = gather(model, architecture, windows[name], self.batch_size, base_loss=base_loss)
            statistics[name] = tied_statistics(gathered, by_name[name])
        return opened, [statistics[name] for name in names]

    def _open(self, base: str | os.PathLike[str] | VectorSource, names: Sequence[str]) -> OpenedRecipe:
        """Open the base and the vectors without loading a model."""
        options = hub_options(self.model_kwargs)
        with hashing_again(self.model_kwargs.get("verify", VERIFY)):
            opened = open_base_and_vectors(VectorSource.parse(base), dict.fromkeys(names, 0.0), options)
        _architecture_of(opened.base)
        return opened


def _architecture_of(base: Base) -> Architecture:
    """Return the architecture of a base.

    Raises:
        `ConfigError`: If it is not known.
    """
    if base.architecture is None:
        raise ConfigError(f"The architecture of '{base}' is not known, so its layers' inputs cannot be told apart.")
    return base.architecture


def gather_statistics(
    base: str | os.PathLike[str] | VectorSource,
    vectors: Mapping[str, Any],
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    tokenizer: Any = None,
    batch_size: int = BATCH_SIZE,
    max_length: int = MAX_LENGTH,
    dtype: str | None = SEARCH_DTYPE,
    **model_kwargs: Any,
) -> dict[str, InputStatistics]:
    """Return the input statistics of each vector's distribution, from a little data of it.

    Saved beside a vector they take the place of the data, so that a new vector costs a pass over its own data alone.
    They have no text, but they tell something about it: the directions that each layer's inputs have.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base.
        vectors (`Mapping[str, Any]`): Data by Hub id or folder of each vector, in any form that [`Reader.windows`]
            reads.
        columns (`Mapping`, *optional*): By vector the columns of its data, where these have names of their own.
        tokenizer (*optional*): By default that of the base.
        batch_size (`int`, defaults to 8): Windows in a forward pass.
        max_length (`int`, defaults to 1024): Tokens in a window.
        dtype (`str`, defaults to `"float32"`): Type of the model that runs; `None` is the base's own.
        model_kwargs: Further arguments of [`DEMModel.from_pretrained`].

    Returns:
        `dict[str, InputStatistics]`: The statistics by vector.

    Raises:
        `ConfigError`: Data cannot be read or are empty, or the base needs remote code.
        `NotFoundError`: The base or a vector is not found.
        `BaseMismatchError`, `AdapterError`: A vector does not fit the base.

    Example:

    ```python
    >>> from dem_hub.transformations import gather_statistics
    >>> statistics = gather_statistics(base_folder, {vector_folder: ["w1 w2 w3 w4", "w5 w6"]})
    >>> statistics[vector_folder].tokens
    6

    ```
    """
    run = OwnData(columns, tokenizer, batch_size, max_length, dtype, model_kwargs)
    _, statistics = run.gather(base, vectors)
    return dict(zip(vectors, statistics, strict=True))
