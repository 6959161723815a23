"""Text of others (names, choices, training facts, licenses), made harmless for a terminal and for a card.

A terminal obeys control characters: they can set its title, hide a line, or write over one. A card is Markdown with
HTML in it: text can become a link, a picture that tells who looks at it, a script, or the mark at which our part of
the card ends. So text of others is shown as what it is: letters.
"""

import html
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

# Characters that a card shows of one text. Chosen by hand, not measured: a choice of `auto` has about 150.
_LONGEST = 300

# Text that is the same in Markdown, HTML and a table: no markup, no address, no mention.
_PLAIN = re.compile(r"[\w .,:;=+%~/()-]*")
_ADDRESS = re.compile(r"://|www\.", re.IGNORECASE)

# An absolute path in quotes may have spaces in it; elsewhere it ends at one. What follows a colon, a slash or a letter
# is the rest of an address or of an id.
_QUOTED_PATH = re.compile(r"(?<=['\"])(?:[A-Za-z]:[/\\]|[/\\~])[^'\"]*(?=['\"])")
_PATH = re.compile(r"(?<![\w:/\\.~])(?:[A-Za-z]:[/\\]|~?[/\\])[^\s'\",;:()]+")


class Markdown(str):
    """Text that is Markdown already, because we made it. All other text is escaped before it gets into a card."""

    __slots__ = ()


def printable(text: object, *, keep: str = "") -> str:
    r"""Return a text with its control characters as escapes, so that a terminal shows them and does not obey.

    Characters that change the direction of text, or that are invisible, are shown as escapes too.

    Args:
        text (`object`): The text, or what becomes a text.
        keep (`str`, *optional*): Control characters that stay, such as the line feeds of a message of many lines.

    Example:

    ```python
    >>> from dem_hub.hub.foreign_text import printable
    >>> print(printable("a title: \x1b]0;pwned\x07"))
    a title: \x1b]0;pwned\x07

    ```
    """
    shown = []
    for letter in str(text):
        is_shown = letter.isprintable() or unicodedata.category(letter) == "Zs" or letter in keep
        shown.append(letter if is_shown else letter.encode("unicode_escape").decode("ascii"))
    return "".join(shown)


def printable_data(data: Any) -> Any:
    r"""Return JSON data whose texts and keys have no control characters but line feeds and tabs; see [`printable`].

    Example:

    ```python
    >>> from dem_hub.hub.foreign_text import printable_data
    >>> printable_data({"note": ["\x1b]0;pwned\x07", 1]})
    {'note': ['\\x1b]0;pwned\\x07', 1]}

    ```
    """
    return _with_texts(data, lambda text: printable(text, keep="\n\t"))


def without_paths(data: Any) -> Any:
    """Return JSON data, or a text, in which an absolute path is its last part alone: others need not know the rest.

    Example:

    ```python
    >>> from dem_hub.hub.foreign_text import without_paths
    >>> without_paths("'/home/ann/my models/maths' is no vector; see https://huggingface.co/me/maths")
    "'maths' is no vector; see https://huggingface.co/me/maths"
    >>> without_paths({"/home/ann/maths alone": 2.5})
    {'maths alone': 2.5}

    ```
    """
    return _with_texts(data, lambda text: _PATH.sub(_last_part, _QUOTED_PATH.sub(_last_part, text)))


def _last_part(match: re.Match[str]) -> str:
    return PurePath(match[0].replace("\\", "/")).name


def _with_texts(data: Any, change: Callable[[str], str]) -> Any:
    """Return JSON data with each text and each key changed."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {_with_texts(key, change): _with_texts(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_texts(value, change) for value in data]
    return data


def markdown(text: object) -> Markdown:
    """Return a text as Markdown that shows it, on one line. Text that is [`Markdown`] already stays as it is.

    Example:

    ```python
    >>> from dem_hub.hub.foreign_text import markdown
    >>> markdown("rank=16, 8.6 % of the bytes")
    'rank=16, 8.6 % of the bytes'
    >>> markdown("<img src=http://evil/x> | ![](x)")
    '`&lt;img src=http[:]//evil/x&gt; / ![](x)`'

    ```
    """
    if isinstance(text, Markdown):
        return text
    line = printable(" ".join(str(text).split()))
    if _PLAIN.fullmatch(line) and not _ADDRESS.search(line):
        return Markdown(line)
    return code_span(line)


def code_span(text: object) -> Markdown:
    """Return a text as code within a line of Markdown, where nothing in it is a link, markup or the end of a cell."""
    line = printable(" ".join(str(text).split()))
    if len(line) > _LONGEST:
        line = line[:_LONGEST] + " ..."
    # Escaped although a renderer escapes code itself: the text could still be read as HTML, or as one of our marks.
    line = html.escape(line, quote=False).replace("`", "'").replace("|", "/")
    # Some renderers make links of addresses wherever they are.
    line = line.replace("://", "[:]//").replace("www.", "www[.]")
    return Markdown(f"`{line}`")


def code_string(text: str) -> str:
    """Return a text as a string of Python, for a block of code in a card.

    Example:

    ```python
    >>> from dem_hub.hub.foreign_text import code_string
    >>> print(code_string("me/maths"), code_string("a <!-- b"))
    "me/maths" "a \\u003c!-- b"

    ```
    """
    quoted = printable(json.dumps(text, ensure_ascii=False))
    return quoted.replace("<", "\\u003c").replace("`", "\\u0060")
