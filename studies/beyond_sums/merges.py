"""The ways to make one model of the sources' fine-tunes: vectors with coefficients, beside what it cost to find them."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dem_hub import DEMModel, DistributionVector, regmean, search_coefficients
from dem_hub.evaluation.windows import Window
from dem_hub.files.atomic import atomic_folder
from dem_hub.search import GaussNewton, Uniform
from studies.data_mixing.cache import keep

# The largest coefficient of a search: of a weighted sum, of vectors from RegMean, which begin at 1, and of vectors that
# have lost most of their elements to TIES.
HIGHEST = 1.5
HIGHEST_OF_REGMEAN = 2.5
HIGHEST_OF_SPARSE = 2.5


@dataclass(frozen=True)
class Merge:
    """A base with vectors and their coefficients, by folder, and the tokens of the forward passes that it cost."""

    base: Path
    coefficients: Mapping[str, float]
    evaluation_tokens: int = 0
    loss: float = math.inf  # on validation text, if it was measured

    def model(self) -> Any:
        """Load the merged model in float32."""
        return DEMModel.from_pretrained(self.base, vectors=dict(self.coefficients), dtype="float32").eval()

    def export(self, folder: Path) -> Path:
        """Write the merged model, unless it is there."""
        if not folder.is_dir():
            with atomic_folder(folder) as temporary:
                self.model().save_pretrained(temporary)
                AutoTokenizer.from_pretrained(self.base).save_pretrained(temporary)
        return folder


def vectors_of(base: Path, finetunes: Sequence[Path], folder: Path) -> list[Path]:
    """Return a vector of each fine-tune: a whole one, which no codec has touched, or the adapter itself."""
    found = []
    for finetune in finetunes:
        if (finetune / "adapter_config.json").is_file():
            found.append(finetune)
            continue
        target = folder / finetune.name
        if not target.is_dir():
            DistributionVector.extract(base, finetune, codec="dense").save_pretrained(target)
        found.append(target)
    return found


def average(base: Path, vectors: Sequence[Path]) -> Merge:
    """Return the uniform average."""
    return Merge(base, {str(vector): 1 / len(vectors) for vector in vectors})


def search(
    base: Path,
    vectors: Sequence[Path],
    data: Mapping[str, Sequence[Window]],
    record: Path,
    *,
    common: bool = False,
    highest: float = HIGHEST,
) -> Merge:
    """Return the weighted sum whose coefficients, or whose common coefficient, are best on validation text."""

    def run() -> dict[str, Any]:
        method = Uniform() if common else GaussNewton()
        names = [str(vector) for vector in vectors]
        result = search_coefficients(base, names, dict(data), method=method, bounds=(0.0, highest), held_out=0)
        tokens = result.num_forward * sum(result.tokens.values())
        return {"coefficients": list(result.best.coefficients), "loss": result.loss, "tokens": tokens}

    found = keep(record, run)
    coefficients = dict(zip(map(str, vectors), found["coefficients"], strict=True))
    return Merge(base, coefficients, found["tokens"], found["loss"])


def with_regmean(
    base: Path, vectors: Sequence[Path], rows: Sequence[Sequence[Sequence[int]]], folder: Path, tokens: int
) -> Merge:
    """Return the sum of the vectors that RegMean makes; nothing is searched."""

    make = partial(regmean, base, dict(zip(map(str, vectors), rows, strict=True)), codec="dense")
    made = _saved(make, [vector.name for vector in vectors], folder)
    return Merge(base, {str(vector): 1.0 for vector in made}, tokens)


def transformed(transformation: Any, base: Path, vectors: Sequence[Path], folder: Path) -> list[Path]:
    """Return the vectors that a transformation makes: `ties` or `dare`, with its density."""
    make = partial(transformation, base, list(map(str, vectors)), codec="dense")
    return _saved(make, [vector.name for vector in vectors], folder)


def best_of(tried: Sequence[Merge]) -> Merge:
    """Return the merge that is best on validation text; it cost the searches of all of them."""
    best = min(tried, key=lambda merge: merge.loss)
    return replace(best, evaluation_tokens=sum(merge.evaluation_tokens for merge in tried))


def _saved(make: Callable[[], Mapping[str, DistributionVector]], names: Sequence[str], folder: Path) -> list[Path]:
    """Return the folders of vectors that are made and saved, unless they are there."""
    targets = [folder / name for name in names]
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        for target, vector in zip(targets, make().values(), strict=True):
            vector.save_pretrained(target)
        (folder / "done").touch()
    return targets
