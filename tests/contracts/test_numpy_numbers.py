"""numpy's numbers wherever a user gives numbers: optimizers and `numpy.linspace` give them. Files have the same bytes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dem_hub import DEMModel, DistributionVector, search_coefficients
from dem_hub.search.strategies.grid import Grid
from dem_hub.transformations.dare import dare
from dem_hub.transformations.ties import ties
from tests.models.test_lora_export import export_adapter, opened
from tests.support.tiny_models import Zoo

TEXTS = {name: [f"w{number} w{number + place} w3 w4" for number in range(12)] for place, name in enumerate("ab")}

# A number of Python, or of numpy with the same value.
Number = Callable[[Any], Any]


@dataclass(frozen=True)
class Given:
    """A base, its fine-tune and two of its vectors, and a folder for results."""

    base: Path
    full: Path
    vectors: Sequence[str]
    folder: Path

    def load(self, coefficient: Any) -> Any:
        """Return the recipe of a model that is loaded, as it is on the disk."""
        DEMModel.from_pretrained(self.base, vectors={self.vectors[0]: coefficient}).dem.save_pretrained(self.folder)
        return json.loads((self.folder / "config.json").read_text())["vectors"]

    def change(self, coefficient: Any) -> Any:
        model = DEMModel.from_pretrained(self.base, vectors={self.vectors[0]: 0.0})
        model.dem.set_coefficients({self.vectors[0]: coefficient})
        model.dem.save_pretrained(self.folder)
        return json.loads((self.folder / "config.json").read_text())["vectors"]

    def extract(self, codec: str, **options: Any) -> Any:
        vector = DistributionVector.extract(self.base, self.full, codec=codec, **options)
        vector.save_pretrained(self.folder)
        return vector.sha256, json.loads((self.folder / "vector_config.json").read_text())["codec_options"]

    def search(self, **options: Any) -> Any:
        result = search_coefficients(self.base, self.vectors, TEXTS, **options)
        result.save_pretrained(self.folder)
        found = json.loads((self.folder / "search_result.json").read_text())
        return {name: found[name] for name in ("best", "objective", "bounds", "max_sum")}


CALLS: dict[str, Callable[[Given, Number, Number], Any]] = {
    "a coefficient": lambda given, real, _: given.load(real(0.5)),
    "a whole coefficient": lambda given, _, whole: given.load(whole(1)),
    "coefficients of groups": lambda given, real, whole: given.load({"attention": real(0.5), "rest": whole(1)}),
    "a new coefficient": lambda given, real, _: given.change(real(0.25)),
    "new coefficients of groups": lambda given, real, _: given.change({"attention": real(0.25), "rest": real(0.5)}),
    "rank": lambda given, _, whole: given.extract("lowrank", rank=whole(4)),
    "density, bits, seed": lambda given, real, whole: given.extract(
        "random", density=real(0.25), bits=whole(8), seed=whole(1)
    ),
    "max_bytes": lambda given, _, whole: given.extract("auto", max_bytes=whole(50_000)),
    "max_error": lambda given, real, _: given.extract("auto", max_error=real(0.5)),
    "bounds": lambda given, real, whole: given.search(bounds=(whole(0), real(0.5))),
    "bounds in an array": lambda given, _, __: given.search(bounds=np.array([[0, 0.5], [0.0, 1.0]])),  # type: ignore[arg-type]
    "weights": lambda given, real, whole: given.search(weights={"a": real(0.5), "b": whole(2)}),
    "limits": lambda given, real, whole: given.search(
        max_sum=real(1.5), max_forward=whole(9), held_out=real(0.25), seed=whole(3)
    ),
    "sizes": lambda given, _, whole: given.search(batch_size=whole(4), max_length=whole(16)),
    "a grid": lambda given, real, _: given.search(method=Grid((real(0.0), real(0.5)))),
    "ties": lambda given, real, whole: [
        vector.sha256 for vector in ties(given.base, {given.vectors[0]: real(0.5)}, density=real(0.5)).values()
    ],
    "densities in an array": lambda given, real, _: [
        vector.sha256
        for vector in ties(given.base, given.vectors, density=np.array([real(0.5), real(0.25)])).values()  # type: ignore[arg-type]
    ],
    "dare": lambda given, real, whole: [
        vector.sha256 for vector in dare(given.base, given.vectors, density=real(0.5), seed=whole(2)).values()
    ],
    "an export's rank": lambda given, real, whole: export_adapter(
        opened(given.base, {given.vectors[0]: real(0.5)}), given.folder / "sum", rank=whole(2)
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_numbers_of_numpy(zoo: Zoo, tmp_path: Path, call: str) -> None:
    models = zoo.models("llama-untied")
    vectors = [str(zoo.vector("llama-untied", kind=kind)) for kind in ("lowrank", "dense")]
    results = []
    for name, real, whole in (("python", float, int), ("numpy", np.float32, np.int64)):
        folder = tmp_path / name
        results.append(CALLS[call](Given(models.base, models.full, vectors, folder), real, whole))
    assert repr(results[0]) == repr(results[1])
