"""The figure that every picture is: matplotlib's own, which keeps its style wherever it is shown or saved.

It belongs to no window and is not known to pyplot, so that a script, a server and a notebook can draw it alike. This
module imports matplotlib; it is imported when a picture is drawn.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import matplotlib.style
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

from dem_hub.defaults import THEME, Theme
from dem_hub.errors import ConfigError
from dem_hub.plotting.style import WIDTH, Palette, palette, settings

# The formats in which a picture is saved, and what each writes of the time and the program if nobody stops it.
_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
}


class Picture(Figure):
    """A figure with a theme. What is drawn into it is drawn within `with picture.styled():`.

    `picture.savefig(path)` writes PNG, SVG or PDF, as the ending says, and the same bytes each time. A notebook shows
    the picture that a cell ends with.
    """

    def __init__(self, theme: Theme = THEME, height: float = 4.0, width: float = WIDTH) -> None:
        self.colors: Palette = palette(theme)
        with self.styled():
            super().__init__(figsize=(width, height))

    @contextmanager
    def styled(self) -> Iterator[None]:
        """Let matplotlib draw in this picture's style, whatever the user's is, and leave theirs as it was."""
        with matplotlib.style.context(["default", settings(self.colors)]):
            yield

    def draw(self, renderer: RendererBase) -> None:
        """Draw in this picture's style."""
        with self.styled():
            super().draw(renderer)

    def savefig(self, fname: str | os.PathLike[str] | IO[bytes], **options: Any) -> None:
        """Save in this picture's style, without the time. The options are matplotlib's.

        Raises:
            `ConfigError`: The file has the ending of no format.
        """
        kind = options.pop("format", None)
        if kind is None and isinstance(fname, str | os.PathLike):
            kind = file_format(fname)
        kind = kind or "png"
        metadata = {**_FORMATS.get(kind, {}), **options.pop("metadata", {})}
        with self.styled():
            self._settle()
            super().savefig(fname, format=kind, metadata=metadata, **options)

    def saved(self, path: str | os.PathLike[str] | None) -> "Picture":
        """Save where there is a path, and return the picture."""
        if path is not None:
            self.savefig(path)
        return self

    def _settle(self) -> None:
        """Find places for everything, once: each format would find others, and others again when asked twice."""
        if self.get_layout_engine() is not None:
            self.draw_without_rendering()
            self.set_layout_engine("none")

    def _repr_png_(self) -> bytes:
        """Return the picture for a notebook that does not know matplotlib's figures."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def file_format(path: str | os.PathLike[str]) -> str:
    """Return the format that a file's ending names.

    Raises:
        `ConfigError`: It names none.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in _FORMATS:
        known = ", ".join(f".{name}" for name in _FORMATS)
        raise ConfigError(f"'{os.fspath(path)}' has the ending of no picture. Give it one of {known}.")
    return kind
