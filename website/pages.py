"""The pages of the site: which file of the repository is which, and how they are put into one folder.

A page keeps its text. Its links are changed to where the site has their targets; a link to something that the site has
not is an error here, before anything is built.
"""

import ast
import posixpath
import re
import shutil
from pathlib import Path

from website.command_line import command_line_page
from website.drawings import with_mermaid
from website.gallery import PAGE, gallery_page
from website.links import change_links
from website.notebooks import notebook_page

ROOT = Path(__file__).parents[1]

# Pages that only the site has. They are copied as they are.
OWN = ROOT / "website" / "pages"

# By their paths in the repository. The pages of docs/ keep their names.
_OTHERS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples": "examples.md",
    "examples/notebooks": "examples.md",
}
_PICTURES = (".png", ".svg")

# As GitHub has a picture with a version for dark pages.
_PICTURE = re.compile(
    r"<picture>\s*<source media=\"\(prefers-color-scheme: dark\)\" srcset=\"(?P<dark>[^\"]+)\">\s*"
    r"<img src=\"(?P<light>[^\"]+)\" alt=\"(?P<words>[^\"]*)\">\s*</picture>"
)

# What the tests of the pages read.
_MARK = re.compile(r"^<!-- (?:no-)?test\b[^\n]*-->\n+(?=```)", re.MULTILINE)

_EXAMPLES = """\
# Examples

Each of these scripts is a page long, makes its own tiny models, and runs in seconds on a CPU. So do the notebooks:
"""


def places() -> dict[str, str]:
    """Return the place in the site of each page, by its path in the repository. Those of `OWN` are not among them."""
    found = dict(_OTHERS)
    for path in sorted(ROOT.glob("docs/*.md")):
        found[f"docs/{path.name}"] = path.name
    for path in sorted(ROOT.glob("studies/*/report/report.md")):
        found[_name(path)] = f"studies/{path.parts[-3]}.md"
    for path in sorted(ROOT.glob("studies/*/README.md")):
        found[_name(path)] = f"studies/running_{path.parts[-2]}.md"
    for path in sorted(ROOT.glob("examples/notebooks/*.ipynb")):
        found[_name(path)] = f"notebooks/{path.stem}.md"
    return found


def write_pages(folder: Path, *, complete: bool) -> None:
    """Write every page of the site into a folder, which is emptied first.

    Args:
        folder (`Path`): where the pages go.
        complete (`bool`): run the notebooks, so that the pages have their outputs, and fetch the script that draws. It
            takes half a minute.

    Raises:
        `ValueError`: if a page links to something that the site has not.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(OWN, folder)
    shutil.copytree(ROOT / "docs/images", folder / "images")
    pages = {}
    for source, place in places().items():
        file = ROOT / source
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            text = _MARK.sub("", file.read_text("utf-8"))
        elif file.suffix == ".ipynb":
            text = notebook_page(file, folder / place, run=complete)
        else:
            continue
        pages[place] = themed(_with_links(text, source, place, folder))
    pages["examples.md"] = _examples()
    pages["command_line.md"] = command_line_page()
    pages[PAGE] = gallery_page(pages, (f"images/{path.name}" for path in (ROOT / "docs/images").iterdir()))
    for place, text in pages.items():
        (folder / place).write_text(with_mermaid(text, folder) if complete else text, "utf-8")


def themed(text: str) -> str:
    """Return a page whose pictures follow the site's own choice of light or dark, in place of the system's."""
    return _PICTURE.sub(r"![\g<words>](\g<light>#only-light)\n![\g<words>](\g<dark>#only-dark)", text)


def _with_links(text: str, source: str, place: str, folder: Path) -> str:
    """Return the text of a page with the links of the site, and copy the pictures that it shows."""
    known = places()

    def changed(link: str) -> str:
        target, hash_mark, anchor = link.partition("#")
        if not target or ((folder / place).parent / target).is_file():
            return link  # within the page, or to a picture that a notebook has made
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.endswith(_PICTURES) and (ROOT / path).is_file():
            new = _copied(path, folder)
        elif path in known:
            new = known[path]
        else:
            raise ValueError(f"{source} links to {link}, which is no page of the site (website/pages.py).")
        return posixpath.relpath(new, posixpath.dirname(place)) + hash_mark + anchor

    return change_links(text, changed)


def _copied(path: str, folder: Path) -> str:
    """Copy a picture, and return its place in the site."""
    place = posixpath.join("images", path.removeprefix("docs/images/"))
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / path, folder / place)
    return place


def _examples() -> str:
    """Return the page of the scripts in `examples/`, with their first lines as headings."""
    parts = [_EXAMPLES]
    for path in sorted(ROOT.glob("examples/notebooks/*.ipynb")):
        title = path.stem.replace("_", " ")
        parts.append(f"* [{title}](notebooks/{path.stem}.md)")
    for path in sorted(ROOT.glob("examples/[0-9]*.py")):
        code = path.read_text("utf-8")
        title = (ast.get_docstring(ast.parse(code)) or path.name).partition("\n")[0].rstrip(".")
        parts.append(f"\n## {title}\n\n`examples/{path.name}`\n\n```python\n{code.rstrip()}\n```")
    return "\n".join(parts) + "\n"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
