"""Every script of `examples/` runs as its reader would run it, and its closing assertion holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub.server import Hub

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9][0-9]_*.py"))


def test_there_are_some() -> None:
    assert [path.name[:2] for path in EXAMPLES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_example(path: Path, hub: Hub, tmp_path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert 40 <= len(lines) <= 90, "An example is a page."
    assert lines[-1].startswith("assert "), "An example ends in an assertion."
    done = subprocess.run(
        [sys.executable, str(path)], env=hub.environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "An example shows what it did."
