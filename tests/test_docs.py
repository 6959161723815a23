"""Every example of a docstring, and every block of code of the README, of CONTRIBUTING and of the docs, runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
from hub.server import Hub
from models import Zoo
from pages import PAGES, run, set_the_stage
from test_callback import arguments, rows

import dem_hub

FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)


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


@pytest.fixture
def stage(hub: Hub, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' Hub with the cast of every page, `me` logged in, and an empty cache."""
    monkeypatch.setenv("HF_TOKEN", set_the_stage(hub, zoo, tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "read"))


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_page(page: Path, stage: None, tmp_path: Path) -> None:
    """Every block runs, in order and in one namespace, but for those that say why they do not."""
    run(page, {"trainer": make_trainer(tmp_path / "run")} if page.stem == "training" else None)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_links(page: Path) -> None:
    """What a page links to within the repository is there."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES if page.parent.name == "docs"])
def test_shape(page: Path) -> None:
    """A page of the docs is short, says first what it gives, and shows code before it explains."""
    lines = page.read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert lines[0].startswith("# ") and lines[2] and not lines[2].startswith(("#", "```", "<"))
    code = next(number for number, line in enumerate(lines) if line.startswith("```"))
    assert code < 12


def make_trainer(folder: Path) -> Any:
    """A Trainer of the reader's own, on the base."""
    from transformers import AutoModelForCausalLM, Trainer

    return Trainer(AutoModelForCausalLM.from_pretrained("org/base"), arguments(folder), train_dataset=rows())
