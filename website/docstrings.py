"""Docstrings in Hugging Face's style, changed to Google's, which griffe reads for mkdocstrings.

What differs is taken out before a docstring is parsed: types in backticks, of which the signature has the exact form,
and references in brackets without a target.
"""

import re
from collections.abc import Sequence
from pathlib import Path

_API = Path(__file__).parent / "pages" / "api"
_IDENTIFIER = re.compile(r"^::: ([\w.]+)", re.MULTILINE)

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.MULTILINE)
# "    name (`type`, *optional*): what it is". One level of brackets within the brackets, as in `Mapping[str, f(x)]`.
_ARGUMENT = re.compile(r"^(?P<name> {4}[\w*, ]+) \((?P<type>(?:[^()]|\([^()]*\))*)\):", re.MULTILINE)
# A type in backticks, and what it is.
_RESULT = re.compile(r"^ {4}\[?`~?(?P<type>[^`\n]+)`\]?:", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
# [`name`], and no target after it
_REFERENCE = re.compile(r"\[`~?(?P<name>[\w.]+)`\](?![(\[])")


def documented() -> list[str]:
    """Return the names that the API reference has, such as `dem_hub.DEMModel`."""
    return [name for page in sorted(_API.glob("*.md")) for name in _IDENTIFIER.findall(page.read_text("utf-8"))]


def in_google_style(text: str, names: Sequence[str]) -> str:
    """Return a docstring in Google's style, with references to those of `names` that it mentions."""
    head, *sections = _SECTION.split(text)
    parts = [head]
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        parts.append(f"{name}:{_REWRITTEN[name](body)}")
    with_examples = _EXAMPLE.sub("**Example**", "".join(parts))
    return _REFERENCE.sub(lambda match: _linked(match["name"], names), with_examples)


def _linked(name: str, names: Sequence[str]) -> str:
    """Return a reference with its target, or plain code if the site does not have that."""
    shown = name.removeprefix("dem_hub.errors.")
    for known in names:
        for start in (known, known.rpartition(".")[2]):
            if name == start or name.startswith(f"{start}."):
                return f"[`{shown}`][{known}{name.removeprefix(start)}]"
    return f"`{shown}`"


def _arguments(body: str) -> str:
    """Return the section without types. Those of the signature are shown, which are exact."""
    return _ARGUMENT.sub(r"\g<name>:", body)


def _attributes(body: str) -> str:
    """Return the section with types as code has them."""

    def plain(match: re.Match[str]) -> str:
        kind = re.sub(r"[`~]|\[(?=`)|(?<=`)\]|, \*optional\*|, defaults to .*", "", match["type"])
        return f"{match['name']} ({kind}):"

    return _ARGUMENT.sub(plain, body)


def _results(body: str) -> str:
    """Return the section with types as code has them."""
    return _RESULT.sub(r"    \g<type>:", body)


_REWRITTEN = {
    "Args": _arguments,
    "Attributes": _attributes,
    "Returns": _results,
    "Raises": _results,
    "Yields": _results,
}
