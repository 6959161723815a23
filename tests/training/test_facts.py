"""The training facts of a vector: what the run, the Trainer and the dataset say about themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from dem_hub import DEMCallback
from tests.support.tiny_models import Models
from tests.support.training_runs import DENSE, adapted, arguments, load, rows, train


def test_what_it_was_trained_on(llama: Models, tmp_path: Path) -> None:
    callback = DEMCallback(llama.base, datasets=["org/maths"], **DENSE)
    trainer = train(
        load(llama.base), callback, tmp_path, include_num_input_tokens_seen="all", eval_strategy="steps", eval_steps=4
    )
    config = callback.vector.config
    assert config is not None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert config.training == {
        "datasets": ["org/maths"], "steps": 4, "epochs": 0.3333, "tokens": 4 * 4 * 8, "loss": losses[-1], "eval_loss": evaluated[-1],
        "learning_rate": 0.01, "lr_scheduler": "linear", "batch_size": 4, "seed": 42,
    }  # fmt: skip
    assert {"dem_hub", "torch", "transformers", "accelerate"} <= set(config.libraries)
    assert (tmp_path / "vector" / "norms.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("named", ["maths.jsonl", Path("maths.jsonl"), [Path("maths.jsonl")]], ids=repr)
def test_datasets_by_hand(llama: Models, tmp_path: Path, named: Any) -> None:
    callback = DEMCallback(datasets=named)
    train(adapted(llama.base), callback, tmp_path, max_steps=1)
    assert json.loads((tmp_path / "vector" / "dem_training.json").read_text())["training"]["datasets"] == [
        "maths.jsonl"
    ]


def test_facts_are_json(tmp_path: Path) -> None:
    from transformers import TrainerState

    from dem_hub.training.facts import training_facts

    state = TrainerState(global_step=3, log_history=[{"loss": float("nan"), "eval_loss": 2.5}])
    facts = training_facts(arguments(tmp_path), state, [], 3)
    assert facts["eval_loss"] == 2.5 and "loss" not in facts


def test_dataset_names() -> None:
    from datasets import Dataset, DatasetInfo

    from dem_hub.training.facts import dataset_names

    sums = {"hf://datasets/org/maths@0a1b/train.parquet": {}, "hf://datasets/org/maths@0a1b/test.parquet": {}}
    from_hub = Dataset.from_dict({"a": [1]}, info=DatasetInfo(download_checksums=sums))
    assert dataset_names(from_hub) == ["org/maths"]
    assert dataset_names(rows()) == dataset_names(Dataset.from_dict({"a": [1]})) == []
