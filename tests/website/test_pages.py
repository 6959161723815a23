"""The pages of the site: the navigation has all of them, their links hold, and the references are complete."""

import importlib
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import dem_hub
from dem_hub.cli.app import NAME, app
from tests.cli.running import parameters_of
from website.docstrings import documented
from website.links import anchors_of, links_of
from website.pages import ROOT, themed, write_pages

PUBLIC = ["dem_hub", "dem_hub.search", "dem_hub.codecs", "dem_hub.transformations", "dem_hub.training"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_pages(folder, complete=False)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text("utf-8") for path in site.rglob("*.md")}


def leaves(navigation: Any) -> list[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [leaf for part in parts for leaf in leaves(part)]


def test_the_navigation_names_every_page_once(pages: dict[str, str]) -> None:
    named = leaves(tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]["nav"])
    assert sorted(named) == sorted(pages)


def test_links_and_anchors(site: Path, pages: dict[str, str]) -> None:
    """What a page links to is in the site. The API's anchors are the names that it documents."""
    broken = []
    for page, text in pages.items():
        for link in links_of(text):
            target, _, anchor = link.partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page
            if path.endswith(".md"):
                found = path in pages and (not anchor or anchor in anchors_of(pages[path]) | set(documented()))
            else:
                found = (site / path).is_file()
            if not found:
                broken.append(f"{page}: {link}")
    assert broken == []


def test_the_reference_has_every_public_name(pages: dict[str, str]) -> None:
    public = {
        name: getattr(module, name)
        for module in map(importlib.import_module, PUBLIC)
        for name in module.__all__
        if not name.startswith("__")
    }
    assert {name.rpartition(".")[2] for name in documented()} >= set(public)
    assert all(name in pages["api/index.md"] for name in dem_hub.__all__)


@pytest.mark.parametrize("name", documented())
def test_what_the_reference_names_is_there_and_explained(name: str) -> None:
    parent, _, last = name.rpartition(".")
    found = getattr(importlib.import_module(parent), last)
    assert found.__doc__


@pytest.mark.parametrize("name", app.commands)
def test_the_command_line_has_every_option(pages: dict[str, str], name: str) -> None:
    (section,) = re.findall(rf"^## {NAME} {name}$(.*?)(?=^## |\Z)", pages["command_line.md"], re.DOTALL | re.MULTILINE)
    for parameter in parameters_of(name):
        names = [parameter.make_metavar(None)] if parameter.param_type_name == "argument" else parameter.opts  # type: ignore[arg-type]
        for shown in names:
            assert re.search(rf"`(?:[^`]*[ ,])?{re.escape(shown)}[ ,`/]", section), f"{shown} is missing."
    assert f"```bash\n{NAME} {name}" in section


def test_the_gallery_has_every_picture(pages: dict[str, str]) -> None:
    shown = {
        link.partition("#")[0] for page, text in pages.items() for link in links_of(text) if link.startswith("images/")
    }
    assert shown
    assert shown <= {link.partition("#")[0] for link in links_of(pages["gallery.md"])}
    assert all(f"images/{path.name}" in pages["gallery.md"] for path in (ROOT / "docs/images").iterdir())


def test_a_dark_picture_is_shown_in_the_dark() -> None:
    text = """<picture>
  <source media="(prefers-color-scheme: dark)" srcset="images/a-dark.svg">
  <img src="images/a-light.svg" alt="A picture">
</picture>
"""
    assert themed(text) == "![A picture](images/a-light.svg#only-light)\n![A picture](images/a-dark.svg#only-dark)\n"
