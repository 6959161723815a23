"""The compiled passes on the CPU, where they pay; elsewhere, operations of torch compute the same, slower.

Loading numba and compiled code takes a second, and compiling, once for an installation, ten. So what a process merges
first is merged by torch, and the passes are loaded once it has merged more than a tiny model. numba and its compiler
are not there on every platform either.
"""

import logging
import threading
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from dem_hub.numerics.garbage import collections_paused

logger = logging.getLogger(__name__)


# Elements that a process merges with operations of torch before it loads the compiled passes. torch takes 4 to 11 ns
# longer for each (by hand, on one core of a Xeon), so that this many cost half a second, which is what loading takes.
BY_TORCH = 1 << 26

_lock = threading.Lock()
_loading = threading.Lock()
_elements = 0  # merged so far
_expected = 0  # merged when what was announced is done


def note_work(elements: int) -> None:
    """Count elements that this process merges on the CPU."""
    global _elements
    with _lock:
        _elements += elements


def expect_work(elements: int) -> None:
    """Announce elements that this process is about to merge, so that the first of them are merged like the last."""
    global _expected
    with _lock:
        _expected = max(_expected, _elements + elements)


def kernels() -> ModuleType | None:
    """Return the module of the compiled passes, or `None` if torch computes, because there is little to compute or
    numba cannot be loaded.
    """
    if max(_elements, _expected) <= BY_TORCH:
        return None
    # The threads of a load come here at once. One of them loads, and says so if it cannot; `cache` alone would let all.
    with _loading:
        return _load()


@cache
def _load() -> ModuleType | None:
    """Load the compiled passes. If there is no numba, this is said once."""
    try:
        with collections_paused():
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
