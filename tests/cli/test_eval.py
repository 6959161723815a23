"""`dem-hub eval`: perplexities of texts. `tests/evaluation/test_tasks.py` has the scores of tasks."""

import json
import math
from pathlib import Path

import pytest
import torch

from dem_hub import DEMModel
from tests.cli.running import run
from tests.support.tiny_models import Models, Zoo, reshard


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines = [
        " ".join(f"w{int(i)}" for i in torch.randint(0, 60, (length,), generator=generator))
        for length in (3, 17, 40, 5, 29, 1, 12)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def test_eval_is_the_same_for_any_batch_size(zoo: Zoo, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.models("llama-tied", "float32").base
    results = []
    for size in (1, 3, 8):
        arguments = ["--data", f"words={texts}", "--batch-size", size, "--max-length", 16, "--json"]
        results.append(json.loads(run(capsys, "eval", model, *arguments))["words"])
    assert results[0]["tokens"] == results[1]["tokens"] == results[2]["tokens"] > 50
    assert (
        results[0]["loss"] == pytest.approx(results[1]["loss"], abs=1e-6) == pytest.approx(results[2]["loss"], abs=1e-6)
    )
    assert results[0]["perplexity"] == pytest.approx(math.exp(results[0]["loss"]))


def test_eval_of_a_recipe(
    zoo: Zoo, llama: Models, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 1.0}).dem.save_pretrained(
        tmp_path / "recipe"
    )
    reshard(llama.full, tmp_path / "full")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "full" / name).write_bytes((llama.base / name).read_bytes())
    tables = [
        run(capsys, "eval", folder, "--data", f"words={texts}", "--data", f"more={texts}")
        for folder in (tmp_path / "recipe", tmp_path / "full")
    ]
    assert tables[0] == tables[1]
    assert [line.split()[0] for line in tables[0].splitlines()] == ["data", "words", "more"]
