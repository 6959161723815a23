"""Passes that numba compiles when they are first called, once for an installation, with a bar if it takes long."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numba

logger = logging.getLogger(__name__)

# Compilations share numba's cache, and the other threads of a merge wait for the first.
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class CompiledPass:
    """A function that is compiled for its types at its first call, or loaded if that was done before.

    Args:
        function (`Callable`): The function in Python.
        signature: Its types.
    """

    function: Callable[..., Any]
    signature: Any
    _compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        if self._compiled is None:
            with _ONE_AT_A_TIME:
                if self._compiled is None:
                    with _bar(self.function.__name__):
                        self._compiled = _compile(self.function, self.signature)
        return self._compiled(*arguments)


def compiled(signature: Any) -> Callable[[Callable[..., Any]], CompiledPass]:
    """Make a function a compiled pass."""
    return lambda function: CompiledPass(function, signature)


@contextmanager
def _bar(name: str) -> Iterator[None]:
    """Show that something is compiled, if it takes longer than a second."""
    from huggingface_hub.utils import tqdm

    with tqdm(total=1, desc=f"Compiling {name}, once for this installation", unit="pass", delay=1) as bar:
        # A bar is drawn when something is done, and here that is the end.
        timer = threading.Timer(1, bar.refresh)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        bar.update()


def _compile(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile for these types, or load what was compiled before. If nothing can be kept, compile in each process."""
    compile_cached = numba.njit(signature, nogil=True, cache=True, fastmath={"contract"})
    try:
        return compile_cached(function)  # type: ignore[no-any-return]
    except Exception:
        logger.debug("No compiled code of '%s' could be loaded or kept.", function.__name__, exc_info=True)
    # If a file of the cache was damaged or cut off (a power cut), the cache is emptied and filled again.
    with suppress(Exception):
        numba.njit(cache=True)(function)._cache.flush()  # type: ignore[attr-defined]
        return compile_cached(function)  # type: ignore[no-any-return]
    # No folder that can be written to, or a full disk. An error of the code itself is raised here.
    return numba.njit(signature, nogil=True, fastmath={"contract"})(function)  # type: ignore[no-any-return]
