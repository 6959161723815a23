"""Links of Markdown pages: where they are, where they lead, and the anchors of a page.

Code is left out: a bracket in it is no link. Anchors are GitHub's, which `zensical.toml` asks the site for, too.
"""

import re
from collections.abc import Callable, Iterator

# A fence with all of its lines, or a piece of code within a line.
_CODE = r"^(?P<fence> *`{3,}).*?^(?P=fence)`*$|`[^`\n]+`"
_TARGET = r"(?<=\]\()(?P<target>[^()\s]+)(?=\))|(?<=src=\")(?P<source>[^\"]+)|(?<=srcset=\")(?P<set>[^\"]+)"
_LINK = re.compile(f"{_CODE}|{_TARGET}", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(f"{_CODE}|^#+ +(?P<heading>.+?)$", re.DOTALL | re.MULTILINE)

_ELSEWHERE = re.compile(r"[a-z]+:")


def change_links(text: str, change: Callable[[str], str]) -> str:
    """Return a page with `change(target)` in the place of each target within the repository."""

    def replaced(match: re.Match[str]) -> str:
        target = match["target"] or match["source"] or match["set"]
        if not target or _ELSEWHERE.match(target):
            return match[0]
        return change(target)

    return _LINK.sub(replaced, text)


def links_of(text: str) -> list[str]:
    """Return the targets of a page within the repository, in order."""
    found: list[str] = []

    def keep(target: str) -> str:
        found.append(target)
        return target

    change_links(text, keep)
    return found


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    anchors: set[str] = set()
    for name in _headings(text):
        number, anchor = 0, name
        while anchor in anchors:
            number += 1
            anchor = f"{name}-{number}"
        anchors.add(anchor)
    return anchors


def _headings(text: str) -> Iterator[str]:
    for match in _HEADING.finditer(text):
        if match["heading"]:
            shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match["heading"])
            yield re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
