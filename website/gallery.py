"""The gallery: every picture of the pages, with its words, and a link to where it is explained.

A picture is here as soon as a page shows it. One in `docs/images` that no page shows yet stands at the end, under its
file's name.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

PAGE = "gallery.md"
DARK = re.compile(r"[-_.]dark$")

_PICTURE = re.compile(
    r"!\[(?P<words>[^\]]*)\]\((?P<file>[^)\s]+)\)|<img [^>]*?src=\"(?P<source>[^\"]+)\"[^>]*?alt=\"(?P<alt>[^\"]*)\""
)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)

_OPENING = """\
# Gallery

Pictures of searches, merges and studies, and the pages that explain them.
"""


@dataclass(frozen=True)
class Picture:
    """A picture: its file within the site, its words, and the page that shows it, with the page's title."""

    file: str
    words: str
    page: str = ""
    title: str = ""


def gallery_page(pages: Mapping[str, str], images: Iterable[str]) -> str:
    """Return the gallery of `pages`, by their places in the site, and of those `images` that no page shows."""
    pictures = [picture for page, text in pages.items() for picture in _pictures_of(page, text)]
    shown = {picture.file for picture in pictures}
    for image in sorted(set(images) - shown):
        stem = PurePosixPath(image).stem
        if not DARK.search(stem):
            pictures.append(Picture(image, stem.replace("_", " ").replace("-", " ").capitalize()))
    return "\n".join([_OPENING, '<div class="gallery" markdown>\n', *map(_figure, pictures), "</div>\n"])


def _pictures_of(page: str, text: str) -> Iterable[Picture]:
    title = _TITLE.search(text)
    for match in _PICTURE.finditer(text):
        file = match["file"] or match["source"]
        if file.endswith("#only-dark"):
            continue
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), file.removesuffix("#only-light")))
        yield Picture(place, match["words"] or match["alt"] or "", page, title[1] if title else page)


def _figure(picture: Picture) -> str:
    caption = picture.words
    if picture.page:
        caption = f"{caption}. From [{picture.title}]({picture.page})."
    return (
        f"<figure markdown>\n![{picture.words}]({picture.file})\n"
        f"<figcaption markdown>{caption}</figcaption>\n</figure>\n"
    )
