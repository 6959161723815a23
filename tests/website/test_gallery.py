"""The gallery: pictures that a page shows have its words, and their dark versions; others have their file's name."""

from website.gallery import gallery_page

PAGES = {
    "mixer.md": "# The mixer\n\n![Sliders](images/a.png#only-light)\n![Sliders](images/a-dark.png#only-dark)\n",
    "studies/four.md": "# Four\n\n![Quality, cost](../images/four.png)\n",
}


def test_gallery() -> None:
    page = gallery_page(PAGES, ["images/a.png", "images/a-dark.png", "images/loss_landscape.svg"])
    assert page.count("<figure") == 3
    assert "![Sliders](images/a.png#only-light)\n![Sliders](images/a-dark.png#only-dark)\n" in page
    assert "Sliders. From [The mixer](mixer.md)" in page
    assert "![Quality, cost](images/four.png)" in page and "From [Four](studies/four.md)" in page
    assert "![Loss landscape](images/loss_landscape.svg)" in page
