"""The page: who can open it, and what it needs."""

import sys

import pytest

from dem_hub.cli.app import main
from dem_hub.mixer.page import is_loopback


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes before anything is loaded, so that the recipe may be absent."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["mix", "absent/recipe"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'dem-hub[mixer]'" in error


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", ""])
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)
