"""Tasks through lm-evaluation-harness: what it scores is what plain torch scores, and mistakes are one readable line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dem_hub import DEMModel
from dem_hub.cli.app import main
from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.evaluation.tasks import find_tasks, score_tasks
from tests.support.tiny_models import Models, Zoo

ITEMS = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps of a task's file."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def items() -> list[dict[str, Any]]:
    """Contexts, four continuations each, and which of them is said to be right."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(0, 60, (ITEMS, 8 + 4 * 2), generator=generator).tolist()
    words = [[f"w{number}" for number in row] for row in numbers]
    labels = torch.randint(0, 4, (ITEMS,), generator=generator).tolist()
    return [
        {"context": " ".join(row[:8]), "choices": [" ".join(row[i : i + 2]) for i in range(8, 16, 2)], "label": label}
        for row, label in zip(words, labels, strict=True)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks of the same items, and a group of them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items()))
    for name in ("pick", "choose"):
        task = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
            "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}", "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return folder


def expected(model: Any, tokenizer: Any) -> list[float]:
    """1 where the continuation of the highest log-likelihood is the right one."""

    def score(context: str, choice: str) -> float:
        ids = tokenizer(f"{context} {choice}", return_tensors="pt")["input_ids"]
        chances = model(ids).logits[0, :-1].double().log_softmax(-1)
        return float(chances.gather(1, ids[0, 1:, None])[-2:].sum())

    with torch.no_grad():
        best = [max(range(4), key=lambda i: score(item["context"], item["choices"][i])) for item in items()]
    return [float(choice == item["label"]) for choice, item in zip(best, items(), strict=True)]


def test_scores_are_those_of_plain_torch(zoo: Zoo, folder: Path) -> None:
    base = zoo.models("llama-tied", "float32").base
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    found = score_tasks(model, tokenizer, find_tasks(["pick"], folder))["pick"]
    right = expected(model, tokenizer)
    assert 0 < sum(right) < ITEMS
    assert found.each == {"acc": tuple(right)}
    assert found.items == ITEMS
    assert found.metrics == {"acc": pytest.approx(sum(right) / ITEMS)}
    assert found.errors == {"acc": pytest.approx(torch.tensor(right).std().item() / ITEMS**0.5)}


def test_the_first_items_alone(zoo: Zoo, folder: Path) -> None:
    base = zoo.models("llama-tied", "float32").base
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    found = score_tasks(model, tokenizer, find_tasks(["pick", "choose"], folder), limit=5, batch_size=2)
    assert {name: score.each["acc"] for name, score in found.items()} == dict.fromkeys(
        ("pick", "choose"), tuple(expected(model, tokenizer)[:5])
    )


def test_patterns_are_replaced_by_what_they_match(folder: Path) -> None:
    (folder / "pair.yaml").write_text(json.dumps({"group": "pair", "task": ["pick", "choose"]}))
    assert find_tasks(["choose", "pick", "choose"], folder).names == ("choose", "pick")


def test_the_command(zoo: Zoo, llama: Models, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe is scored as the model that it stands for, beside the perplexity of a text."""
    recipe = tmp_path / "recipe"
    merged = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 1.0}, dtype="float32")
    merged.dem.save_pretrained(recipe)
    (tmp_path / "words.txt").write_text("w1 w2 w3 w4")
    arguments = [
        "eval",
        str(recipe),
        "--data",
        "words=words.txt",
        "--tasks",
        "pick",
        "choose",
        "--include-path",
        str(folder),
        "--dtype",
        "float32",
    ]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = expected(merged, AutoTokenizer.from_pretrained(recipe))
    assert list(found) == ["words", "pick", "choose"]
    assert found["words"]["tokens"] == 3
    assert found["pick"] == found["choose"]
    assert found["pick"]["acc"] == pytest.approx(sum(right) / ITEMS)
    assert set(found["pick"]) == {"acc", "acc_stderr", "items"}
    assert main(arguments) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[3] == ["task", "metric", "score", "standard", "error", "items"]
    assert table[4] == ["pick", "acc", f"{sum(right) / ITEMS:.4f}", f"{found['pick']['acc_stderr']:.4f}", str(ITEMS)]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "There is nothing to evaluate on; give --data NAME=FILE, --tasks NAME, or both."),
    "no such folder": (["--tasks", "pick", "--include-path", "absent"], "'absent' is not a folder; give one that has the tasks' YAML files."),
    "unknown": (["--tasks", "pick", "chose", "arc_esy", "--include-path", "tasks"], "  - 'chose' (close to it: choose"),
    "a name twice": (["--tasks", "pick", "--include-path", "tasks", "--data", "pick=words.txt"], "'pick' is the name of data and of a task"),
    "limit": (["--tasks", "pick", "--include-path", "tasks", "--limit", "0"], "limit is 0; it must be 1 or more."),
    "batch size": (["--tasks", "pick", "--include-path", "tasks", "--batch-size", "0"], "batch_size is 0; it must be 1 or more."),
    "no data": (["--tasks", "broken", "--include-path", "tasks"], "absent.jsonl"),
    "not a task": (["--tasks", "empty", "--include-path", "tasks"], "The tasks empty cannot be read: "),
    "unsafe": (["--tasks", "unsafe", "--include-path", "tasks"], "  - 'unsafe' runs code that the model writes"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(
    llama: Models, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "words.txt").write_text("w1 w2 w3 w4")
    task = json.loads((folder / "pick.yaml").read_text())
    (folder / "unsafe.yaml").write_text(json.dumps({**task, "task": "unsafe", "unsafe_code": True}))
    (folder / "broken.yaml").write_text(
        json.dumps({**task, "task": "broken", "dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}})
    )
    (folder / "empty.yaml").write_text(json.dumps({"task": "empty", "output_type": "guess"}))
    assert main(["eval", str(llama.base), *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "dem-hub eval: " in captured.err
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'dem-hub\[eval\]'"):
        find_tasks(["pick"], folder)


def test_no_names() -> None:
    with pytest.raises(ConfigError, match="No task is named"):
        find_tasks([])
