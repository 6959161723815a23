"""Links and anchors of Markdown, as GitHub has them."""

from website.links import anchors_of, change_links, links_of

PAGE = """# A *page*: `x.py`, and more

[one](a.md), ![two](b/c.png), [three](d.md#e) [four](#f) [far](https://a.b/c.md) `[code](no.md)`

```python
# [more](no.md)
```

## Again

<img src="e.png"> <source srcset="f.png">

## Again
"""


def test_links() -> None:
    assert links_of(PAGE) == ["a.md", "b/c.png", "d.md#e", "#f", "e.png", "f.png"]
    assert change_links(PAGE, lambda link: link) == PAGE
    assert "[three](D.MD#E) [four](#F) [far](https://a.b/c.md) `[code](no.md)`" in change_links(PAGE, str.upper)


def test_anchors() -> None:
    assert anchors_of(PAGE) == {"a-page-xpy-and-more", "again", "again-1"}
