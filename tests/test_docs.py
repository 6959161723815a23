"""Every example of a docstring, and every Python block of the README, runs and shows what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import dem_hub

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<mark><!-- no-test[^\n]*-->\s*)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
README = (ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").is_file() else ""


def modules() -> list[str]:
    return ["dem_hub", *(info.name for info in pkgutil.walk_packages(dem_hub.__path__, "dem_hub."))]


class Parser(doctest.DocTestParser):
    """Ends an example's output at the closing fence, as a reader does."""

    def parse(self, string: str, name: str = "<string>") -> list[str | doctest.Example]:
        return super().parse(FENCE.sub("", string), name)


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(parser=Parser(), exclude_empty=True)
    found: list[doctest.DocTest] = []
    for name in modules():
        module: ModuleType = importlib.import_module(name)
        found += [test for test in finder.find(module, name) if test.examples]
    return found


@pytest.mark.parametrize("example", [pytest.param(example, id=example.name) for example in examples()])
def test_docstring(example: doctest.DocTest, example_names: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    example.globs.update(example_names)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_readme(example_names: dict[str, str]) -> None:
    """The blocks run in one namespace, as a reader would type them; those after `<!-- no-test -->` are left out."""
    names = dict(example_names)
    blocks = [match for match in BLOCK.finditer(README) if not match["mark"]]
    for block in blocks:
        line = README.count("\n", 0, block.start("code"))
        exec(compile("\n" * line + block["code"], "README.md", "exec"), names)
