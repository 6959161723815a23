"""Docstrings in Hugging Face's style become Google's, which griffe reads."""

from website.docstrings import in_google_style

NAMES = ["dem_hub.DEMModel", "dem_hub.errors"]
BEFORE = """Load a model as [`DEMModel.from_pretrained`] does.

Args:
    base, other (`str` or [`Base`], *optional*, defaults to `f(x)`): A base (or two): [`Base`].
    kwargs: All others.

Attributes:
    config ([`VectorConfig`], *optional*): The config.

Returns:
    `tuple[int, ...]`: A pair.

Raises:
    [`~dem_hub.errors.ConfigError`]: If not.

Example:

See [`text`](link.md) and [`name`][target].
"""
AFTER = """Load a model as [`DEMModel.from_pretrained`][dem_hub.DEMModel.from_pretrained] does.

Args:
    base, other: A base (or two): `Base`.
    kwargs: All others.

Attributes:
    config (VectorConfig): The config.

Returns:
    tuple[int, ...]: A pair.

Raises:
    dem_hub.errors.ConfigError: If not.

**Example**

See [`text`](link.md) and [`name`][target].
"""


def test_in_google_style() -> None:
    assert in_google_style(BEFORE, NAMES) == AFTER
