"""The page in a real browser: Chromium without a window, driven by Playwright. Skipped where one of them is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dem_hub import DEMConfig, SearchResult
from tests.mixer.test_page import Served, pytestmark, serving  # noqa: F401

# Milliseconds that the slowest machine may take for a merge and a pass over the data.
PATIENCE = 60_000

# Chromium as root in a container, and without asking its makers for anything.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def browser(serving: Served, open_addresses: set[tuple[str, int]]) -> Iterator[Any]:  # noqa: F811
    api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("There is no Chromium on this machine.")
    open_addresses.add(("127.0.0.1", serving.port))
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


def open_tab(browser: Any, served: Served, requests: list[str]) -> Any:
    tab = browser.new_page(viewport={"width": 1280, "height": 1200})
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(served.url)
    tab.wait_for_selector("#vector-2 input[type=number]")
    tab.wait_for_selector("#note strong")
    return tab


def move(tab: Any, number: int, value: float) -> None:
    """Type a coefficient beside a slider, which moves it."""
    field = f"#vector-{number} input[type=number]"
    tab.fill(field, str(value))
    tab.press(field, "Tab")


def read(tab: Any, name: str) -> str:
    return str(tab.inner_text(f"#{name}"))


def wait_for(tab: Any, name: str, text: str) -> None:
    tab.wait_for_function(
        "([name, text]) => document.getElementById(name).innerText.includes(text)", arg=[name, text], timeout=PATIENCE
    )


def marked(tab: Any) -> float:
    """Return how far to the right the red mark of the landscape is."""
    return float(tab.get_attribute("#landscape circle.now", "cx"))


def test_a_visit(browser: Any, serving: Served, result: SearchResult) -> None:  # noqa: F811
    requests: list[str] = []
    tab = open_tab(browser, serving, requests)
    first = next(iter(result.coefficients.values()))
    assert float(tab.input_value("#vector-0 input[type=number]")) == pytest.approx(first, abs=5e-4)
    assert read(tab, "note").startswith("DEM: ")

    # A slider moves the expected losses, the landscape and the words, and nothing is merged for it.
    table, mark = read(tab, "table"), marked(tab)
    move(tab, 0, 0.25)
    wait_for(tab, "note", "0.250 up")
    assert read(tab, "table") != table
    assert marked(tab) != mark
    assert not tab.query_selector("#note strong")  # no preset any more
    tab.focus("#vector-0 input[type=range]")
    tab.keyboard.press("ArrowRight")
    wait_for(tab, "note", "0.251 up")

    tab.click("#merge")
    wait_for(tab, "status", "Merged and measured")
    # What is measured is the mixture of the sliders, which show three digits.
    others = [round(value, 3) for value in list(result.coefficients.values())[1:]]
    measured = serving.mixer.measured([0.251, *others])
    assert measured
    wait_for(tab, "table", f"{measured['up']:.4f}")

    # Both panes answer.
    tab.fill("#text textarea", "w1 w2 w3 w4")
    tab.click("#ask")
    for pane in ("left", "right"):
        tab.wait_for_function(
            "name => { const all = document.querySelectorAll(`#${name} .message.bot, #${name} .bot.message`);"
            " return all.length && /w\\d/.test(all[all.length - 1].innerText); }",
            arg=pane,
        )

    tab.click("text=Save or push the recipe")
    tab.fill("#name textarea, #name input", "visited")
    tab.click("#save")
    wait_for(tab, "status", "Saved as visited")
    saved = DEMConfig.from_pretrained(serving.mixer.opening.output / "visited")
    assert next(iter(saved.coefficients.values())) == 0.251

    # A wrong id is told, and the sliders stay where they are.
    tab.click("text=Add a vector")
    tab.fill("#added textarea, #added input", str(Path.home() / "maths"))
    tab.click("#add")
    tab.wait_for_selector("text='maths' is no id of the Hub")
    assert str(Path.home()) not in tab.inner_text("body")
    assert tab.input_value("#vector-0 input[type=number]") == "0.251"

    # What is put aside has no slider, and another tab has its own sliders.
    tab.click("#kept label:has-text('down')")
    tab.wait_for_selector("#vector-1", state="hidden")
    wait_for(tab, "note", "0.251 up")
    assert "down" not in read(tab, "note")
    other = open_tab(browser, serving, requests)
    assert float(other.input_value("#vector-0 input[type=number]")) == pytest.approx(first, abs=5e-4)
    assert tab.input_value("#vector-0 input[type=number]") == "0.251"

    # Nobody else is asked for fonts, scripts or anything.
    foreign = [url for url in requests if not url.startswith((serving.url, "data:", "blob:"))]
    assert not foreign


def test_whose_answer_stands_where(browser: Any, serving: Served) -> None:  # noqa: F811
    """Above an answer stands whose it is; on a telephone, one is below the other."""
    tab = open_tab(browser, serving, [])
    assert "Compared with: base" in read(tab, "left")
    tab.click("#other input")
    tab.click("#other [role=option]:has-text('1/N')")
    wait_for(tab, "left", "Compared with: 1/N")

    tab.set_viewport_size({"width": 400, "height": 900})
    left, right = tab.locator("#left").bounding_box(), tab.locator("#right").bounding_box()
    assert right["y"] >= left["y"] + left["height"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400  # nothing is wider than the page
