"""The compiled passes on the CPU, if numba can be loaded; if not, operations of torch compute the same, slower.

numba and its compiler are not there on every platform, and importing them takes half a second. So they are loaded at
the first merge.
"""

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

logger = logging.getLogger(__name__)


@cache
def kernels() -> ModuleType | None:
    """Return the module of the compiled passes, or `None`, which is said once."""
    try:
        from dem_hub.numerics import kernels
    except ImportError as error:
        logger.warning(
            "numba cannot be loaded (%s), so torch computes merges on the CPU, which takes longer. Run `pip install "
            "numba` if there is one for this platform.",
            error,
        )
        return None
    return kernels


def compiler_version() -> str:
    """Return the version of numba, without loading it."""
    try:
        return version("numba")
    except PackageNotFoundError:
        return "none"
