"""The distribution vectors: stored compactly and whole, and their statistics: norms, cosines, norms by layer, and bytes."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.vectors.comparison import compare
from dem_hub.vectors.norms import tensor_norms

_LAYER = "model.layers."


def extract_all(base: Path, models: Mapping[str, Path], folder: Path, **codec: Any) -> dict[str, Path]:
    """A vector of each fine-tune, made where it is not there."""
    for name, model in models.items():
        if not (folder / name).is_dir():
            DistributionVector.extract(base, model, **codec).save_pretrained(folder / name)
    return {name: folder / name for name in models}


def vector_statistics(base: Path, folders: Mapping[str, Path], whole: Mapping[str, Path]) -> dict[str, Any]:
    """Norms, cosines, norms by layer, and bytes compact and whole."""
    opened = Base(resolve(VectorSource(str(base)), MODEL_FILES))
    vectors = [DistributionVector.from_pretrained(folder) for folder in folders.values()]
    found = compare(vectors, opened, list(folders))
    return {
        "names": list(folders),
        "norms": list(found.norms),
        "cosines": [list(row) for row in found.cosines],
        "by_layer": {
            name: _by_layer(tensor_norms(vector, opened)) for name, vector in zip(folders, vectors, strict=True)
        },
        "bytes": [vector.nbytes for vector in vectors],
        "whole_bytes": [DistributionVector.from_pretrained(folder).nbytes for folder in whole.values()],
        "base_bytes": sum(info.nbytes for info in opened.checkpoint.values()),
    }


def _by_layer(norms: Mapping[str, float]) -> list[float]:
    squares: dict[int, float] = defaultdict(float)
    for key, norm in norms.items():
        if key.startswith(_LAYER):
            squares[int(key.removeprefix(_LAYER).partition(".")[0])] += norm**2
    return [math.sqrt(squares[layer]) for layer in sorted(squares)]


def equal_shares(names: Sequence[str]) -> dict[str, float]:
    """The uniform average: 1/N of each."""
    return dict.fromkeys(names, 1 / len(names))
