"""The gallery: every picture of the pages, with its words, and a link to where it is explained.

A picture is here as soon as a page shows it. One in `docs/images` that no page shows yet stands at the end, under its
file's name.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from website.links import change_links, links_of

PAGE = "gallery.md"

# A picture, and its version for dark pages on the next line.
_PICTURE = re.compile(r"!\[(?P<words>[^\]]*)\]\([^)\s]+\)(?:\n!\[[^\]]*\]\([^)\s]+#only-dark\))?")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)

_OPENING = """\
# Gallery

Pictures of searches, merges and studies, and the pages that explain them.
"""


def gallery_page(pages: Mapping[str, str], images: Iterable[str]) -> str:
    """Return the gallery of `pages`, by their places in the site, and of those `images` that no page shows."""
    figures = [figure for page, text in pages.items() for figure in _figures_of(page, text)]
    shown = {link.partition("#")[0] for figure in figures for link in links_of(figure)}
    for image in sorted(set(images) - shown):
        words = re.sub("[-_]", " ", PurePosixPath(image).stem).capitalize()
        figures.append(_figure(f"![{words}]({image})", words))
    return "\n".join([_OPENING, '<div class="gallery" markdown>\n', *figures, "</div>\n"])


def _figures_of(page: str, text: str) -> Iterator[str]:
    """Yield the pictures of a page, with their words, and a link to the page."""
    title = _TITLE.search(text)
    name = title[1] if title else page

    def from_the_gallery(link: str) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))

    for match in _PICTURE.finditer(text):
        yield _figure(change_links(match[0], from_the_gallery), f"{match['words']}. From [{name}]({page}).")


def _figure(picture: str, caption: str) -> str:
    return f"<figure markdown>\n{picture}\n<figcaption markdown>{caption}</figcaption>\n</figure>\n"
