"""dem_hub: distribution-edited models, as a plugin of the Hugging Face ecosystem.

A distribution-edited model is a base model plus a weighted sum of what fine-tunes of it have learnt, one fine-tune
for each data distribution:

    theta = theta_0 + sum_i c_i * (theta_i - theta_0)

Each difference `theta_i - theta_0` is a distribution vector. The coefficients `c_i` are chosen by the validation
loss of the merged model, so nothing is trained again when a data source is added, changed or dropped. Everything
starts from a few names:

* [`DistributionVector`] extracts a vector from a base and a fine-tune, reads it from the Hub or a folder, and
  publishes it. A LoRA adapter is a vector already. [`DEMCallback`] makes vectors from a running `Trainer`, and
  [`VectorStore`] keeps many of them in one repository.
* [`search_coefficients`] finds the coefficients and returns a [`SearchResult`] with the recipe, a [`DEMConfig`].
* [`regmean`] changes vectors by what their distributions' inputs are, so that their plain sum is better.
* [`DEMModel`] loads a recipe, or a base and vectors, as an ordinary transformers model, and merges while loading.
* [`check_merge`] says what a merge has kept of a fine-tune.
* [`list_vectors`] finds the vectors of a base on the Hub, and [`VectorSource`] names one at a revision or in a
  subfolder.

The errors are in [`dem_hub.errors`], the search strategies in [`dem_hub.search`], and the ways to store a vector in
[`dem_hub.codecs`].

Importing dem_hub is cheap: torch, transformers and whatever needs them are imported when a name is first used. The
Auto classes of transformers know `model_type: "dem"` as soon as transformers is imported too, before or after
dem_hub.
"""

from typing import TYPE_CHECKING, Any

from dem_hub._version import __version__
from dem_hub.models.auto_classes import register_when_imported

if TYPE_CHECKING:
    from dem_hub.hub.listing import list_vectors
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.config import DEMConfig
    from dem_hub.models.check import check_merge
    from dem_hub.models.loading import DEMModel
    from dem_hub.search import SearchResult, search_coefficients
    from dem_hub.training import DEMCallback
    from dem_hub.transformations.regmean import regmean
    from dem_hub.vectors.store import VectorStore
    from dem_hub.vectors.vector import DistributionVector

# The module of each public name, from which `__getattr__` imports it when it is first used.
_HOMES = {
    "DEMCallback": "dem_hub.training",
    "DEMConfig": "dem_hub.merging.config",
    "DEMModel": "dem_hub.models.loading",
    "DistributionVector": "dem_hub.vectors.vector",
    "SearchResult": "dem_hub.search",
    "VectorSource": "dem_hub.hub.references",
    "VectorStore": "dem_hub.vectors.store",
    "check_merge": "dem_hub.models.check",
    "list_vectors": "dem_hub.hub.listing",
    "regmean": "dem_hub.transformations.regmean",
    "search_coefficients": "dem_hub.search",
}

__all__ = [
    "DEMCallback",
    "DEMConfig",
    "DEMModel",
    "DistributionVector",
    "SearchResult",
    "VectorSource",
    "VectorStore",
    "__version__",
    "check_merge",
    "list_vectors",
    "regmean",
    "search_coefficients",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dem_hub' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__


# Registers the recipe with the Auto classes now if transformers is imported already, else as soon as it is.
register_when_imported()
