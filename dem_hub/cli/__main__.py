"""`python -m dem_hub.cli` is `dem-hub` of this interpreter."""

from dem_hub.cli.app import run

if __name__ == "__main__":
    run()
