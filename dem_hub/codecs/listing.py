"""Names, options and help texts of all codecs, read without importing torch.

`dem-hub extract --help` shows them, and importing a codec would import torch, which takes longer than everything else
that the command line does to print a help. So the options are read from the source of the codecs, as the syntax tree
of their dataclasses. A codec therefore is declared once, by its dataclass, and named once, in `OFFERED`. The values
are the same that `dataclasses.fields` gives (`tests/codecs/test_listing.py`).
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

AUTO = "auto"

# The codecs that a user may choose: name -> module and class in this folder. The order is that of help texts and
# messages.
OFFERED = {
    "lrsign": "lrsign.LRSign",
    "sign": "sign.Sign",
    "random": "random.Random",
    "int4": "integer.Int4",
    "int8": "integer.Int8",
    "nf4": "nf4.NF4",
    "lowrank": "lowrank.LowRank",
    "exact": "exact.Exact",
    "dense": "dense.Dense",
}

# The codecs that no user chooses, because the kind of the tensor decides: buffers, and modules that a LoRA saves whole.
INTERNAL = {"full": "whole.Full", "replace": "whole.Replace"}

_AUTO_CLASS = "auto.budget.Auto"

OptionType = type[int] | type[float] | type[str]
OptionValue = int | float | str | None


@dataclass(frozen=True)
class OptionInfo:
    """One option of a codec.

    `type` is the Python type that a shell converts its text to; `default` is `None` for "not given".
    """

    name: str
    type: OptionType
    default: OptionValue
    help: str


@dataclass(frozen=True)
class CodecInfo:
    """One codec: its name, the first paragraph of its docstring, and its options in the order of their declaration."""

    name: str
    summary: str
    options: tuple[OptionInfo, ...]


@cache
def list_codecs() -> tuple[CodecInfo, ...]:
    """Return every codec that a user may choose, `auto` first.

    Returns:
        `tuple[CodecInfo, ...]`: name, summary and options of each.

    Example:

    ```python
    >>> from dem_hub.codecs.listing import list_codecs
    >>> codecs = {codec.name: codec for codec in list_codecs()}
    >>> [(option.name, option.type.__name__, option.default) for option in codecs["random"].options]
    [('density', 'float', 0.1), ('bits', 'int', 4), ('seed', 'int', 0)]

    ```
    """
    return tuple(_read_codec(name, home) for name, home in {AUTO: _AUTO_CLASS, **OFFERED}.items())


def _read_codec(name: str, home: str) -> CodecInfo:
    module, _, class_name = home.rpartition(".")
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            summary = (ast.get_docstring(node) or "").split("\n\n")[0]
            return CodecInfo(name, " ".join(summary.split()), _read_options(node))
    raise LookupError(f"'{path}' has no class '{class_name}', which is listed for the codec '{name}'.")


def _read_options(node: ast.ClassDef) -> tuple[OptionInfo, ...]:
    """Return the fields of a dataclass, without those that are `ClassVar`."""
    options = []
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if not annotation.startswith("ClassVar"):
            default, text = _read_default(statement.value)
            options.append(OptionInfo(statement.target.id, _type_of(annotation), default, text))
    return tuple(options)


def _read_default(value: ast.expr | None) -> tuple[OptionValue, str]:
    """Return the default and the help text of a field: `= 3`, or `= field(default=3, metadata={"help": "..."})`."""
    if not isinstance(value, ast.Call):
        return (ast.literal_eval(value) if value is not None else None), ""
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in value.keywords}
    return arguments["default"], arguments["metadata"]["help"]


def _type_of(annotation: str) -> OptionType:
    """Return the widest type of an annotation such as `int | str | None`: every number can be written as a text."""
    names = annotation.split(" | ")
    if "str" in names:
        return str
    return float if "float" in names else int
