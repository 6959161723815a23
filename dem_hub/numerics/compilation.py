"""Passes that numba compiles when they are first called, once for an installation, with a line if it takes long."""

import glob
import hashlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba

from dem_hub.numerics.garbage import collections_paused

logger = logging.getLogger(__name__)

# Seconds until it is said what takes so long.
_PATIENCE = 1.0

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
                    with _announced(self.function.__name__):
                        self._compiled = _compile(self.function, self.signature)
        return self._compiled(*arguments)


def compiled(signature: Any) -> Callable[[Callable[..., Any]], CompiledPass]:
    """Make a function a compiled pass."""
    return lambda function: CompiledPass(function, signature)


@contextmanager
def _announced(name: str) -> Iterator[None]:
    """Say that something is compiled, if it takes longer than a second."""
    timer = threading.Timer(_PATIENCE, _say, [f"Compiling {name}, once for this installation ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(text: str) -> None:
    """Say a line on stderr, above the bars that are drawn there."""
    from huggingface_hub.utils import are_progress_bars_disabled, tqdm

    if not are_progress_bars_disabled():
        tqdm.write(text, file=sys.stderr)


def _compile(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile for these types, or load what was compiled before. If nothing can be kept, compile in each process."""
    compile_alone = numba.njit(signature, nogil=True, fastmath={"contract"})
    compile_or_load = numba.njit(signature, nogil=True, fastmath={"contract"}, cache=True)
    compiled_function: Callable[..., Any]
    try:
        kept = _KeptFiles.of(function)
        if not kept.are_whole():
            kept.remove()
        with collections_paused():
            compiled_function = compile_or_load(function)
        kept.record()
    except Exception:
        # No folder that can be written to, or a full disk. An error of the code itself is raised below.
        logger.debug("No compiled code of '%s' could be loaded or kept.", function.__name__, exc_info=True)
        compiled_function = compile_alone(function)
    return compiled_function


@dataclass(frozen=True)
class _KeptFiles:
    """The files in which numba keeps a compiled function, with the hashes that they had when they were written.

    numba runs the machine code that it finds there. A damaged byte in it (a power cut, a full disk) would end the process
    at each start, or compute something else. So files without their hashes are removed, and made again.
    """

    folder: Path
    stem: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "_KeptFiles":
        """Return the files of a function, which need not be there. numba raises `RuntimeError` if it has no folder."""
        from numba.core.caching import FunctionCache

        cache = FunctionCache(function)  # type: ignore[no-untyped-call]
        return cls(Path(cache.cache_path), cache._impl.filename_base)

    def are_whole(self) -> bool:
        """Check whether each file is the one that was written, or none is there."""
        try:
            return bool(json.loads(self._record.read_text("utf-8")) == self._hashes())
        except (OSError, ValueError):  # no record, or half a record
            return not self._hashes()

    def record(self) -> None:
        """Write the hashes down, if they are not there."""
        if not self._record.is_file() or not self.are_whole():
            self._record.write_text(json.dumps(self._hashes()), "utf-8")

    def remove(self) -> None:
        """Delete the files."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    @property
    def _record(self) -> Path:
        return self.folder / f"{self.stem}.sha256.json"

    def _hashes(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{glob.escape(self.stem)}.*nb[ic]"))
