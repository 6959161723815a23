"""Every example of a docstring, and every block of code of the README, of CONTRIBUTING and of the docs, runs."""

import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

import dem_hub
from dem_hub import DEMConfig, DistributionVector
from tests.fake_hub.server import Hub
from tests.support.pages import PAGES, ROOT, blocks_of, run, set_the_stage
from tests.support.tiny_models import Zoo
from tests.support.training_runs import arguments, rows
from website.links import anchors_of, links_of

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


LINKING = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("studies/**/*.md")})


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in LINKING])
def test_links(page: Path) -> None:
    """What a page links to within the repository is there, and so are the headings."""
    broken = []
    for link in links_of(page.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        if not path.exists() or (anchor and anchor not in anchors_of(path.read_text("utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES if page.parent.name == "docs"])
def test_shape(page: Path) -> None:
    """A page of the docs is short, says first what it gives, and shows code before it explains."""
    lines = page.read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert lines[0].startswith("# ") and lines[2] and not lines[2].startswith(("#", "```", "<"))
    code = next(number for number, line in enumerate(lines) if line.startswith("```"))
    assert code < 12


CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "dense-bfloat16": ("dense", {"dtype": "bfloat16"}),
    "lora": ("lowrank", {"rank": 4}),
    "lowrank-int8": ("lowrank", {"rank": 4, "dtype": "int8"}),
    "lrsign": ("lrsign", {"rank": 4}),
    "lrsign-some": ("lrsign", {"rank": 4, "group": 6}),
    "sign": ("sign", {"group": 20}),
    "random": ("random", {"density": 0.5, "bits": 8}),
    "int4": ("int4", {}),
    "int8": ("int8", {}),
    "auto": ("auto", {"max_error": 0.5}),
}


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])  # GPT-2's LoRA is transposed
@pytest.mark.parametrize("name", CODECS)
def test_the_reader_of_the_page(zoo: Zoo, name: str, family: str) -> None:
    """The reader that formats.md shows, of 60 lines, has what `DistributionVector` has: in float64, where that sums in float32."""
    code = blocks_of(ROOT / "docs" / "formats.md")[0].code
    assert len([line for line in code.splitlines() if line]) <= 60
    assert set(re.findall(r"^(?:import|from) (\S+)", code.replace("import hashlib, json, struct", ""), re.MULTILINE)) == {
        "pathlib", "torch", "safetensors.torch",
    }  # fmt: skip
    reader: dict[str, Any] = {}
    exec(code, reader)
    models, (codec, options) = zoo.models(family), CODECS[name]
    vector = DistributionVector.extract(
        models.base, models.low if name in ("lora", "auto") else models.full, codec=codec, **options
    )
    deltas = reader["read_vector"](vector.folder, load_file(models.base / "model.safetensors"))
    assert vector.config is not None and set(deltas) == set(vector.config.tensors) and len(deltas) >= 8
    for key, delta in deltas.items():
        expected = vector.decode(key, models.base)
        torch.testing.assert_close(delta.float(), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_the_configs_of_the_page(zoo: Zoo, tmp_path: Path) -> None:
    """The JSON that formats.md shows has the keys that are written, and is read."""
    shown, recipe = (
        json.loads(block.code) for block in blocks_of(ROOT / "docs" / "formats.md") if block.language == "json"
    )
    written = json.loads((zoo.vector("llama-tied") / "vector_config.json").read_text())
    assert shown.keys() == written.keys() and shown["base"].keys() == written["base"].keys()
    assert {frozenset(record) for record in written["tensors"].values()} == {
        frozenset(shown["tensors"]["model.norm.weight"])
    }
    read = DEMConfig.from_dict(recipe, "formats.md")
    assert json.loads(json.dumps(read.to_dict())) == recipe


def make_trainer(folder: Path) -> Any:
    """A Trainer of the reader's own, on the base."""
    from transformers import AutoModelForCausalLM, Trainer

    data = {"train_dataset": rows(), "eval_dataset": rows(1, 8)}
    return Trainer(AutoModelForCausalLM.from_pretrained("org/base"), arguments(folder), **data)
