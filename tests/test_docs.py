"""Every example of a docstring, and every Python block of the README, runs and shows what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
from hub.server import Hub
from huggingface_hub import HfApi
from models import Models

import dem_hub

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<mark><!-- (no-test|test: hub)[^\n]*-->\s*)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
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


def test_readme_on_the_hub(hub: Hub, llama: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks after `<!-- test: hub -->` run on the tests' own Hub, by a user called `me`."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me", orgs=("org",)).token)
    for repo_id, folder in (("org/base", llama.base), ("me/base-finetuned-on-maths", llama.low)):
        HfApi().create_repo(repo_id)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    names: dict[str, object] = {}
    blocks = [match["code"] for match in BLOCK.finditer(README) if "test: hub" in (match["mark"] or "")]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
