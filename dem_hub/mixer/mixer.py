"""The mixer without its page: one model, which all visitors share, and what can be done with it.

A visitor's coefficients are the visitor's own; the weights are not. So each request that needs the model waits for it,
merges the visitor's coefficients if it has others, and keeps the model until it is done. A mixture that two visitors
ask for at once is therefore always the one that each of them asked for.
"""

import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import ConfigError
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.files.names import RECIPE_CONFIG
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.merging.records import VectorRecord
from dem_hub.merging.short_names import short_names
from dem_hub.mixer.generation import Prompt, answer
from dem_hub.mixer.naming import check_recipe_name, parse_hub_id
from dem_hub.mixer.other_model import FoundModel, OtherModel
from dem_hub.mixer.presets import Preset, presets
from dem_hub.search.points import Point
from dem_hub.search.prediction import Prediction

# What the page says where there is nothing to measure on.
NO_DATA = "There is no data to measure on: start the mixer with --data NAME=FILE."

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel
    from dem_hub.search.result import SearchResult


@dataclass(frozen=True)
class Opening:
    """The recipe, the search and the data that a mixer is opened with.

    Args:
        recipe ([`DEMConfig`]): The recipe.
        result ([`SearchResult`], *optional*): The search that found it.
        data (`Mapping[str, list[Window]]`): Windows to measure on, by distribution; there may be none.
        batch_size (`int`): Windows in a forward pass.
        output (`Path`): The folder in which recipes are saved, each in a folder of its own.
        device_map (`str`, *optional*): Where models are loaded, as in transformers.
        no_data (`str`): What the page says where there are no data.
    """

    recipe: DEMConfig
    result: "SearchResult | None"
    data: Mapping[str, Sequence[Any]]
    output: Path
    batch_size: int = BATCH_SIZE
    device_map: str | None = None
    no_data: str = NO_DATA


class Mixer:
    """One model with all vectors. Every request says which coefficients it wants.

    All of this may be used from several threads. A vector is called by its number, from 0 in the order of the recipe;
    vectors that are added come last, so that a number always means the same vector. Coefficients are given in this
    order, and a vector beyond their end has 0.

    Args:
        model (`PreTrainedModel`): The merged model, with its recipe.
        tokenizer: Its tokenizer.
        opening ([`Opening`]): What the mixer is opened with.
    """

    def __init__(self, model: "MergedModel", tokenizer: Any, opening: Opening) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.opening = opening
        self.prediction = Prediction.of_recipe(opening.result)
        # A second model to compare with, if somebody has asked for one.
        self.other: OtherModel | None = None
        self._loading = threading.Lock()  # one at a time, for the sake of memory
        # The model's own list of names waits while weights change, and a slider must not.
        self._names = tuple(model.dem.coefficients)
        self._merged: dict[str, Coefficient] | None = model.dem.coefficients
        self._measured: dict[str, dict[str, float]] = {}
        self._presets: dict[tuple[tuple[str, ...], frozenset[int]], list[Preset]] = {}
        # One request at a time has the model. The lock of `set_coefficients` covers a merge alone, and this one also
        # what is done with the weights afterwards.
        self._lock = threading.Lock()

    @property
    def names(self) -> dict[str, str]:
        """The short name of each vector, by its name, in order."""
        return dict(zip(self._names, short_names(self._names), strict=True))

    @property
    def base(self) -> tuple[float, ...]:
        """The coefficients of the base."""
        return (0.0,) * len(self._names)

    @property
    def title(self) -> str:
        """The short name of the base."""
        return short_names([str(self.opening.recipe.base.repo_id)])[0]

    @property
    def has_template(self) -> bool:
        """True if the tokenizer has a chat template, so that visitors can chat."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def presets(self, aside: Collection[int] = ()) -> list[Preset]:
        """Return the coefficients that have a name, without the vectors that a visitor has put aside.

        They are worked out once for the same vectors: that takes 60 ms, and a slider asks at each move.
        """
        key = (self._names, frozenset(aside))
        if key not in self._presets:
            recipe = self.opening.recipe.coefficients
            self._presets[key] = presets(self.names, recipe, self.prediction, self._named(aside))
        return self._presets[key]

    def merge(self, coefficients: Sequence[Coefficient]) -> None:
        """Merge in place."""
        with self._holding(coefficients):
            pass

    def measure(self, coefficients: Sequence[Coefficient]) -> dict[str, float]:
        """Merge in place, and return the loss of a token on the mixer's data, in nats, by distribution."""
        with self._holding(coefficients):
            found = evaluate(self.model, self.opening.data, self.opening.batch_size)
        losses = {name: likelihood.loss for name, likelihood in found.items()}
        self._measured[self._key(coefficients)] = losses
        return losses

    def measured(self, coefficients: Sequence[Coefficient]) -> dict[str, float]:
        """Return the losses at these coefficients if [`Mixer.measure`] has measured them, else nothing."""
        return self._measured.get(self._key(coefficients), {})

    def point(self, coefficients: Sequence[Coefficient]) -> Point | None:
        """Return coefficients as a point of the search; `None` if no search had all of them."""
        if self.prediction is None:
            return None
        count = len(self.prediction.names)
        numbers = [value for value in coefficients if not isinstance(value, Mapping)]
        if len(numbers) < len(coefficients) or any(numbers[count:]):
            return None
        return tuple(numbers[:count])

    def answer(self, coefficients: Sequence[Coefficient], prompt: Prompt) -> Iterator[str]:
        """Yield the text of an answer of these coefficients so far, each time there is more of it."""
        return answer(self.model, self.tokenizer, prompt, partial(self._holding, coefficients))

    def find_other(self, text: str) -> FoundModel:
        """Find a model to compare with, and return what it takes. Nothing is loaded.

        Args:
            text (`str`): The Hub id of a recipe or of a model, or the name of a recipe that was saved here.

        Raises:
            [`~dem_hub.errors.DemHubError`]: If this is no model that can be loaded.
        """
        if "/" in text:
            return FoundModel.of(parse_hub_id(text))
        folder = self.opening.output / check_recipe_name(text)
        if not folder.is_dir():
            raise ConfigError(
                f"There is no saved recipe '{folder.name}'. Name one, or a model of the Hub: NAMESPACE/NAME."
            )
        return FoundModel.of(VectorSource(str(folder)))

    def load_other(self, found: FoundModel) -> None:
        """Load a model to compare with, in the place of an earlier one."""
        with self._loading:
            self.other = None  # its memory is free before the next one is loaded
            self.other = found.load(self.opening.device_map)

    def add(self, text: str) -> int:
        """Take in a vector of the Hub, at coefficient 0, and return its number.

        Args:
            text (`str`): `NAMESPACE/NAME[@REVISION][//SUBFOLDER]`.

        Raises:
            [`~dem_hub.errors.DemHubError`]: If this is no vector of the base. Nothing has changed then.
        """
        source = parse_hub_id(text)
        # Outside of the lock: a download takes long, and changes nothing.
        opened = open_base_and_vectors(self.opening.recipe.base.source, {source: 0.0})
        record = opened.recipe.vectors[0]
        with self._lock:
            if record.name not in self._names:
                self._take_in(record)
            return self._names.index(record.name)

    def recipe(self, coefficients: Sequence[Coefficient], aside: Collection[int] = ()) -> DEMConfig:
        """Return the recipe of a mixture, without the vectors that are put aside.

        It says how its coefficients were found only if they are those that were.
        """
        opening = self.opening.recipe
        left_out = self._named(aside)
        recipe = self.model.dem.config.with_coefficients(self._by_name(coefficients))
        vectors = tuple(vector for vector in recipe.vectors if vector.name not in left_out)
        if not vectors:
            raise ConfigError("All vectors are put aside, and a recipe needs one. Take one back.")
        recipe = replace(recipe, vectors=vectors, dtype=opening.dtype)
        return replace(recipe, search=opening.search if recipe.coefficients == opening.coefficients else None)

    def save(self, name: str, coefficients: Sequence[Coefficient], aside: Collection[int] = ()) -> str:
        """Write the recipe of a mixture into a new folder, and return the folder's name."""
        name = check_recipe_name(name)
        folder = self.opening.output / name
        if folder.exists():
            raise ConfigError(f"There is a '{name}' already. Choose another name.")
        self.recipe(coefficients, aside).save_pretrained(folder, exist_ok=False)
        return name

    def push(
        self,
        repo_id: str,
        coefficients: Sequence[Coefficient],
        aside: Collection[int] = (),
        *,
        private: bool = True,
        include_vectors: bool = False,
    ) -> str:
        """Push the recipe of a mixture to the Hub, and return the address of the commit."""
        source = parse_hub_id(repo_id)
        if source.revision or source.subfolder:
            raise ConfigError(f"'{repo_id}' is more than the id of a repository. Write NAMESPACE/NAME.")
        commit = self.recipe(coefficients, aside).push_to_hub(
            source.repo_id, private=private, include_vectors=include_vectors
        )
        return str(commit.commit_url)

    @contextmanager
    def _holding(self, coefficients: Sequence[Coefficient]) -> Iterator[None]:
        """Wait for the model, give it these coefficients, and keep it from others until the block ends."""
        wanted = self._by_name(coefficients)
        with self._lock:
            if wanted != self._merged:
                self._merged = None  # until the change has succeeded, nobody knows what the weights are
                self.model.dem.set_coefficients(wanted, only_changed=True)
                self._merged = wanted
            yield

    def _take_in(self, record: VectorRecord) -> None:
        """Change to the recipe with one vector more, in place."""
        config = self.model.dem.config
        with scratch_folder() as folder:
            wanted = replace(config, vectors=(*config.vectors, record))
            (folder / RECIPE_CONFIG).write_text(wanted.to_json(folder), "utf-8")
            self.model.dem.switch(folder)
        self._names = tuple(wanted.coefficients)
        self._merged = self.model.dem.coefficients

    def _by_name(self, coefficients: Sequence[Coefficient]) -> dict[str, Coefficient]:
        missing = len(self._names) - len(coefficients)
        return dict(zip(self._names, [*coefficients, *[0.0] * missing], strict=True))

    def _named(self, numbers: Collection[int]) -> frozenset[str]:
        return frozenset(self._names[number] for number in numbers)

    def _key(self, coefficients: Sequence[Coefficient]) -> str:
        """Return a text that is the same for the same mixture, also when vectors were added meanwhile."""
        used = {name: value for name, value in self._by_name(coefficients).items() if value != 0}
        return json.dumps(used, sort_keys=True)
