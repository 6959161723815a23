"""The gallery: pictures that a page shows have its words; others have their file's name; dark versions are not counted."""

from website.gallery import gallery_page

PAGES = {
    "mixer.md": "# The mixer\n\n![The mixer's page](images/mixer.png#only-light)\n![The mixer's page](images/mixer-dark.png#only-dark)\n",
    "studies/four.md": '# Four\n\n<picture><img src="../images/four.png" alt="Quality, cost"></picture>\n',
}


def test_gallery() -> None:
    page = gallery_page(PAGES, ["images/mixer.png", "images/mixer-dark.png", "images/loss_landscape.svg"])
    assert page.count("<figure") == 3
    assert "![The mixer's page](images/mixer.png)" in page and "From [The mixer](mixer.md)" in page
    assert "![Quality, cost](images/four.png)" in page and "From [Four](studies/four.md)" in page
    assert "![Loss landscape](images/loss_landscape.svg)" in page
    assert "dark" not in page
