"""The documentation as a site: `make docs`.

The pages are written once, where GitHub shows them: the README, `docs/`, the reports. `python -m website` copies them
into a folder, with links that hold there, adds what is generated (the command line's reference, the notebooks with
their outputs, the gallery), and has Zensical make the site of them. `pages/` has the pages that only the site has: of
the API reference, whose text mkdocstrings takes from the docstrings.
"""
