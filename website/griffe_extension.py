"""What griffe, the parser of mkdocstrings, loads to read the docstrings of dem_hub (`zensical.toml`)."""

from typing import Any

from griffe import ExprName, Extension, Function, Object

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

    def on_function(self, *, func: Function, **kwargs: Any) -> None:  # noqa: ARG002
        """Show the values of defaults that are named constants, such as `SEED`."""
        for parameter in func.parameters:
            if isinstance(parameter.default, ExprName):
                parameter.default = _value(func, parameter.default)


def _value(function: Function, name: ExprName) -> Any:
    """Return the value of a constant of dem_hub, and any other name as it is."""
    path = name.canonical_path
    if not path.startswith("dem_hub."):
        return name
    return getattr(function.modules_collection[path], "value", name)
