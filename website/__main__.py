"""`python -m website`: make the pages, then the site, and fail at the first warning.

Zensical checks each link and each anchor, and stops with `--strict`.
"""

import subprocess
import sys

from website.pages import ROOT, write_pages

PAGES = ROOT / "build" / "pages"  # `docs_dir` of zensical.toml
SITE = ROOT / "build" / "site"


def main() -> None:
    """Make the site."""
    write_pages(PAGES, complete=True)
    # A module that is run has the working directory on its path, and with it website/griffe_extension.py.
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=True)
    print(f"The site is in {SITE}.")


if __name__ == "__main__":
    main()
