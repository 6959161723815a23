"""A user's script, which `mypy --strict` reads with the package (`make quality`) and must be quiet about. It is not run."""

# ruff: noqa: T201  a script prints

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from dem_hub import (
    DEMConfig,
    DEMModel,
    DistributionVector,
    SearchResult,
    VectorSource,
    VectorStore,
    list_vectors,
    search_coefficients,
)
from dem_hub.errors import DemHubError
from dem_hub.search import Grid


def share(base: str, finetuned: Path) -> DistributionVector:
    """Extract a vector, look at it, and push it."""
    vector = DistributionVector.extract(base, finetuned, codec="lowrank", rank=8)
    vector.save_pretrained("maths")
    vector.plot("maths.svg", base=base, theme="dark").set_size_inches(6, 4)
    vector.push_to_hub("me/maths-vector", private=True)
    return vector


def find(base: str, vectors: Sequence[str], texts: dict[str, list[str]]) -> SearchResult:
    """Search, read the result, and draw it."""
    try:
        result = search_coefficients(
            base, vectors, texts, method=Grid((0.0, 0.5)), weights={"maths": 2.0}, regmean=True
        )
    except DemHubError as error:
        raise SystemExit(str(error)) from error
    for name, loss in result.best.losses.items():
        print(name, round(loss, 4), result.baselines, result.held_out_loss)
    if result.acceptance is not None:
        print(result.acceptance.contenders["base"].losses["maths"])
    print(result.reweight("worst", without=["maths"]).coefficients)
    result.plot("landscape", axes=("maths", "chat")).savefig("landscape.png")
    paths: list[Path] = result.plot_all("pictures", theme="light")
    print(paths, result.config.vectors[0].repo_id)
    return result


def use(recipe: DEMConfig) -> PreTrainedModel:
    """Save a recipe, load its model, and change it in place."""
    recipe.save_pretrained("my-dem")
    model = DEMModel.from_pretrained("my-dem", dtype="bfloat16")
    model.dem.set_coefficients({"maths": 0.5})
    print(model.dem.coefficients, model.config.vocab_size)
    return model


def keep(folder: str) -> None:
    """Keep vectors in a store."""
    store = VectorStore.create(folder, VectorSource("org/base", "main"))
    for entry in list_vectors("org/base"):
        store.add(entry.repo_id.rpartition("/")[2], DistributionVector.from_pretrained(entry.repo_id))
    store.compare().plot("cosines.svg")
