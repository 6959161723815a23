"""Every script of `examples/` runs as its reader would run it, and its closing assertion holds."""

from pathlib import Path

import pytest

from tests.fake_hub.server import Hub
from tests.support.processes import run

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9][0-9]_*.py"))


def test_there_are_some() -> None:
    assert [path.name[:2] for path in EXAMPLES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_example(path: Path, hub: Hub, tmp_path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert 40 <= len(lines) <= 90, "An example is a page."
    assert lines[-1].startswith("assert "), "An example ends in an assertion."
    done = run(path, environment=hub.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "An example shows what it did."
