"""The screenshots of docs/mixer.md, of the page on the result of `dem-hub demo`.

    dem-hub demo -o dem-hub-demo
    pip install playwright==1.65.2
    python benchmarks/screenshot.py dem-hub-demo docs/images

It needs Chromium or Chrome. A slider is moved away from what the search found, and the mixture is measured on the texts that
were searched on.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from dem_hub.defaults import Theme
from dem_hub.mixer.opening import Measuring, open_mixer
from dem_hub.mixer.page import launch
from dem_hub.mixer.view import DIGITS

MOVED = 0.15  # from what was found: where expected losses are still sure
WIDTH = 1280  # pixels
PATIENCE = 60_000  # milliseconds that the slowest machine may take to show the page


def visit(browser: Any, address: str, value: float, theme: Theme, picture: Path) -> None:
    """Move the first slider, and take the picture."""
    tab = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme=theme)
    tab.set_default_timeout(PATIENCE)
    tab.goto(address)
    tab.wait_for_selector("#note strong")
    field = "#vector-0 input[type=number]"
    tab.fill(field, str(value))
    tab.press(field, "Tab")
    tab.wait_for_selector("#note strong", state="detached")
    tab.wait_for_timeout(1_000)  # for what moves on the page
    tab.screenshot(path=picture, full_page=True)
    tab.close()


def main() -> None:
    """Take the screenshots."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of dem-hub demo")
    parser.add_argument("images", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    data = {path.stem: str(path) for path in sorted((arguments.demo / "searched").glob("*.jsonl"))}
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        mixer = open_mixer(str(arguments.demo / "recipe"), measuring=Measuring(data), output=Path(folder))
        first, *others = (round(value, DIGITS) for value in mixer.presets()[0].levels)
        moved = round(first - MOVED, DIGITS)
        for mixture in (mixer.base, (moved, *others)):
            mixer.measure(mixture)
        page = launch(mixer, "127.0.0.1")
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for theme in get_args(Theme):
            visit(browser, page.local_url, moved, theme, arguments.images / f"mixer-{theme}.png")
        browser.close()
        page.close(verbose=False)


if __name__ == "__main__":
    main()
