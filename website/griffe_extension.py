"""What griffe, the parser of mkdocstrings, loads to read the docstrings of dem_hub (`zensical.toml`)."""

from typing import Any

from griffe import Extension, Object

from website.docstrings import documented, in_google_style


class HuggingFaceStyle(Extension):
    """Changes each docstring before it is parsed."""

    def __init__(self) -> None:
        super().__init__()
        self._names = documented()

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:  # noqa: ARG002
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = in_google_style(obj.docstring.value, self._names)
