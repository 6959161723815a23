"""Benchmarks and studies, which the tests do not run as a whole, import what there is."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("dem_hub", "studies", "tests")
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("studies/*/*.py"), *ROOT.glob("examples/**/*.py")])


@pytest.mark.parametrize("path", [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in SCRIPTS])
def test_imports(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in OURS:
            module = import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    import_module(f"{node.module}.{alias.name}")
