"""Training runs that leave no picture."""

import sys

import pytest


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed: drawing the norms of a vector takes longer than training the model."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
