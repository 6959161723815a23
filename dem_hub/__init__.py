"""dem_hub: distribution-edited models, as a plugin of the Hugging Face ecosystem.

    theta = theta_0 + sum_i c_i * (theta_i - theta_0)

Importing it is cheap: torch and the parts that need it are loaded when a name is first used. The Auto classes of transformers learn
`model_type: "dem"` as soon as they are themselves imported, before or after this.
"""

from typing import TYPE_CHECKING, Any

from dem_hub._version import __version__
from dem_hub.models.auto_classes import register_when_imported

if TYPE_CHECKING:
    from dem_hub.hub.listing import list_vectors
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.config import DEMConfig
    from dem_hub.models.loading import DEMModel
    from dem_hub.search import SearchResult, search_coefficients
    from dem_hub.training import DEMCallback
    from dem_hub.vectors.store import VectorStore
    from dem_hub.vectors.vector import DistributionVector

_HOMES = {
    "DEMCallback": "dem_hub.training",
    "DEMConfig": "dem_hub.merging.config",
    "DEMModel": "dem_hub.models.loading",
    "DistributionVector": "dem_hub.vectors.vector",
    "SearchResult": "dem_hub.search",
    "VectorSource": "dem_hub.hub.references",
    "VectorStore": "dem_hub.vectors.store",
    "list_vectors": "dem_hub.hub.listing",
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
    "list_vectors",
    "search_coefficients",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dem_hub' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__


register_when_imported()
