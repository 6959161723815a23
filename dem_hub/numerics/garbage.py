"""A pause of Python's garbage collections, while something large is loaded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collections_paused() -> Iterator[None]:
    """Load something without garbage collections.

    numba makes so many objects that Python looks through all that torch and the program have again and again. Beside
    transformers that was 0.3 of the 0.8 s of CPU time that numba and a compiled pass take to load.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
