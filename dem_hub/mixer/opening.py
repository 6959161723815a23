"""From names to a mixer: the recipe or the search, the data to measure on, and the model with its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH
from dem_hub.errors import ConfigError
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.rows import check_files
from dem_hub.files.names import SEARCH_RESULT
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import VectorCoefficients
from dem_hub.merging.config import DEMConfig
from dem_hub.mixer.mixer import Mixer, Opening
from dem_hub.models.loading import DEMModel
from dem_hub.search.result import SearchResult


@dataclass(frozen=True)
class Measuring:
    """The data to measure on, in the forms that `search_coefficients` takes, and how they become windows of tokens."""

    datasets: Mapping[str, Any] = field(default_factory=dict)
    max_length: int = MAX_LENGTH
    batch_size: int = BATCH_SIZE


def open_mixer(
    name: str,
    vectors: VectorCoefficients | None = None,
    *,
    measuring: Measuring | None = None,
    output: Path,
    dtype: str = "auto",
    device_map: str | None = None,
) -> Mixer:
    """Load a model to mix.

    Args:
        name (`str`): Hub id or folder of a recipe; folder of a search; or a base, if `vectors` are given.
        vectors (`Mapping[str, float]`, *optional*): The coefficient of each vector, for a base.
        measuring ([`Measuring`], *optional*): The data to measure on.
        output (`Path`): The folder in which recipes are saved.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the model; `"auto"` is the recipe's own.
        device_map (`str`, *optional*): Where the model is loaded, as in transformers.

    Raises:
        `ConfigError`: The model writes no text, or data cannot be used.
        [`~dem_hub.errors.DemHubError`]: What [`DEMModel.from_pretrained`] raises.
    """
    measuring = measuring or Measuring()
    check_files(measuring.datasets)
    source = VectorSource.parse(name)
    result = None
    if source.is_local and (Path(name) / SEARCH_RESULT).is_file():
        result = SearchResult.from_pretrained(name)
    place: dict[str, Any] = {"revision": source.revision, "subfolder": source.subfolder}
    tokenizer = AutoTokenizer.from_pretrained(source.repo_id, **place)
    model = DEMModel.from_pretrained(source.repo_id, vectors=vectors, dtype=dtype, device_map=device_map, **place)
    if not model.can_generate():
        raise ConfigError(f"'{name}' is a {type(model).__name__}, which writes no text. Name a language model.")
    reader = Reader.of_model(model.config, lambda: tokenizer, measuring.max_length)
    data = {label: reader.windows(rows) for label, rows in measuring.datasets.items()}
    empty = [repr(label) for label, windows in data.items() if not windows]
    if empty:
        raise ConfigError(f"There is nothing to measure in {', '.join(empty)}. Give other data.")
    # A loaded model's recipe names the dtype that it was loaded in. What is saved names that of the recipe.
    own_dtype = None if vectors is not None else DEMConfig.from_pretrained(source).dtype
    recipe = replace(model.dem.config, dtype=own_dtype)
    return Mixer(model, tokenizer, Opening(recipe, result, data, output, measuring.batch_size, device_map))
