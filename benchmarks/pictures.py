"""The pictures of docs/pictures.md.

    dem-hub demo -o dem-hub-demo
    python benchmarks/pictures.py dem-hub-demo docs/images

They are of the demo's search and vectors. Only the losses are of a search of tiny fine-tunes that count, which takes a
minute: it has held-out data and RegMean, and the demo's has not. Every picture is drawn for light and for dark pages,
and has the same bytes whenever it is drawn from the same numbers with the same matplotlib.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

from dem_hub import DistributionVector, SearchResult, search_coefficients
from dem_hub.checkpoints.opening import open_base
from dem_hub.defaults import Theme
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.search.pictures import picture_kinds
from dem_hub.vectors.comparison import compare

DOCUMENTS = 120  # of each distribution, 19 scored tokens each


def counting_search(folder: Path) -> SearchResult:
    """Return the result of a search of tiny models."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.counting_models import STEPS, counting, make_counters

    counters = make_counters(folder)
    data = {name: counting(step, DOCUMENTS, 2) for name, step in STEPS.items()}
    return search_coefficients(counters.base, list(counters.vectors.values()), data, regmean=True)


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of dem-hub demo")
    parser.add_argument("images", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vectors = {}
    for name in ("gsm", "code", "reference"):
        vectors[name] = DistributionVector.from_pretrained(arguments.demo / "vectors" / name)
    base = arguments.demo / "base"
    opened = open_base(resolve(VectorSource.parse(base), MODEL_FILES))
    comparison = compare(list(vectors.values()), opened, names=list(vectors))
    searched = SearchResult.from_pretrained(arguments.demo / "recipe")
    with TemporaryDirectory() as folder:
        counted = counting_search(Path(folder))
        for theme in get_args(Theme):
            for kind in picture_kinds(searched):
                result = counted if kind == "losses" else searched
                axes = ("code", "reference") if kind == "front" else None
                result.plot(kind, arguments.images / f"{kind}-{theme}.svg", axes=axes, theme=theme)
            comparison.plot(arguments.images / f"cosines-{theme}.svg", theme=theme)
            vectors["gsm"].plot(arguments.images / f"norms-{theme}.svg", base=base, theme=theme)


if __name__ == "__main__":
    main()
