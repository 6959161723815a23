"""Text of others is shown as letters, in a terminal and in a card, whatever it is."""

import ast
import re
import string
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dem_hub.hub.cards import BEGIN, END, Card, markdown_link, markdown_table, render
from dem_hub.hub.foreign_text import Markdown, code_span, code_string, markdown, printable

PIECES = [
    "x", "1", " ", "\n", "\r\n", "\t", "\x1b]0;pwned\x07", "\x9b2J", "‮", "\ud800", "`", "```", "|", "\\", "](http://evil)",
    "![](http://evil/t.png)", "[a](http://evil)", "<script>", "</td>", "<img src=http://evil/x>", "http://evil", "www.evil.com",
    "a@evil.com", "@someone", "&lt;", "<!--", "-->", BEGIN, END, "---", "# ", "*", "_", "~~", "org/base", "$x$",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join)


@given(texts)
def test_no_control_character_is_printed(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(letter)[0] != "C" for letter in shown)
    assert printable(shown) == shown
    kept = printable(text, keep="\n")
    assert kept.count("\n") == text.count("\n")


@pytest.mark.parametrize("text", [string.printable[:95], "ein Maß, été, 数学, 🙂", "a\xa0b"])
def test_letters_stay(text: str) -> None:
    assert printable(text) == text


@given(st.lists(texts, min_size=1, max_size=3))
def test_a_table_has_the_cells_it_was_given_and_nothing_in_them(cells: list[str]) -> None:
    """As a renderer of GitHub's Markdown with HTML and links of bare addresses sees it."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(markdown_table(["head"] * len(cells), [cells, ["last"] * len(cells)]))
    inline = [token for token in tokens if token.type == "inline"]
    assert len(inline) == 3 * len(cells)
    assert {token.type for token in tokens} <= {
        *(f"{name}_{end}" for name in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")), "inline",
    }  # fmt: skip
    for token in inline:
        kinds = {child.type for child in token.children or ()}
        assert kinds <= {"text", "code_inline"}
        for child in token.children or ():
            if child.type == "text":
                assert not re.search(r"://|www\.|@|<", child.content)


@given(texts)
def test_a_link_leads_to_the_hub_or_is_none(name: str) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).parse(f"x {markdown_link(name)} y")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    for child in tokens[1].children or ():
        assert child.type in ("text", "code_inline", "link_open", "link_close")
        if child.type == "link_open":
            assert re.fullmatch(r"https://huggingface\.co/[\w.%-]+/[\w.%-]+", str(child.attrs["href"]))


def test_names_become_links() -> None:
    assert markdown_link("me/all@v1//code") == "[me/all@v1//code](https://huggingface.co/me/all)"
    assert markdown_link(None) == ""
    assert [markdown_link(name) for name in ("../me", "/home/me/v", "gpt2")] == ["`../me`", "`/home/me/v`", "`gpt2`"]
    assert markdown(Markdown("**x**")) == "**x**"
    assert len(code_span("x" * 10_000)) < 400


@given(texts.filter(lambda text: text.isascii() or text.isprintable()))
def test_a_string_in_a_block_of_code(text: str) -> None:
    code = code_string(text)
    assert ast.literal_eval(code) == text
    tokens = MarkdownIt("commonmark", {"html": True}).parse(f"```python\nf({code})\n```")
    assert [token.type for token in tokens] == ["fence"]
    assert END not in code and BEGIN not in code


@given(
    st.lists(st.sampled_from([BEGIN, END, "mine", "\n\n", "# Mine", "<!-- dem-hub", "old"]), max_size=12).map("".join),
    texts,
)
@example(existing=BEGIN + END + BEGIN + BEGIN + END + END, foreign="")  # the outer marks meet
def test_a_card_does_not_grow(existing: str, foreign: str) -> None:
    card = Card("maths", {"tags": ["dem"]}, markdown_table(("a", "b"), [(foreign, "x")]))
    once = render(card, existing)
    assert render(card, render(card, once)) == render(card, once) == once
    assert once.count(card.text) == 1
    for mark in (BEGIN, END):
        assert mark not in card.text
