"""SECURITY.md promises nothing that no test holds: each test that it names is there."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
CITED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "name"), [pytest.param(*cited, id="::".join(cited)) for cited in CITED])
def test_a_cited_test_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_has_a_test() -> None:
    promised = PAGE.partition("## What is promised")[2].partition("## What is not promised")[0]
    rows = [
        line for line in promised.splitlines() if line.startswith("|") and not line.startswith(("| promise", "|---"))
    ]
    assert len(rows) >= 15
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+` \|$", row)] == []
    assert len(CITED) == len(rows)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)", PAGE) or ["SECURITY.md"])
def test_links(link: str) -> None:
    assert Path(ROOT, link).exists()
