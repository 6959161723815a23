"""Runs of real Trainers on tiny models: the vector is the one that extraction takes from the saved checkpoint, bit for bit."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer, TrainerCallback

from dem_hub import DEMCallback, DEMModel, DistributionVector
from dem_hub.errors import CheckpointError, CodecError, ConfigError, DemHubError, VectorNotFoundError
from tests.support.tiny_models import Models, Zoo, load_tensors
from tests.support.training_runs import DENSE, arguments, assert_same_files, load, rows, train

pytestmark = pytest.mark.usefixtures("without_matplotlib")


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gpt2", "mixtral", "bert"])
def test_it_is_the_vector_of_the_checkpoint(zoo: Zoo, tmp_path: Path, family: str) -> None:
    base = zoo.models(family).base
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    callback = DEMCallback(**DENSE)
    train(getattr(transformers, name).from_pretrained(base, dtype=torch.float32), callback, tmp_path)
    assert callback.folder == tmp_path / "vector"
    assert_same_files(callback.vector, DistributionVector.extract(base, tmp_path / "checkpoint-4", **DENSE))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulation"),
        pytest.param({"activation_checkpointing": True}, id="activation checkpointing"),
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, id="compiled"),
        pytest.param({"save_total_limit": 1}, id="rotation"),
        pytest.param({"bf16": True}, id="autocast"),
        pytest.param(
            {"save_strategy": "epoch", "num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 12},
            id="epochs",
        ),
    ],
)
def test_ways_of_training(llama: Models, tmp_path: Path, changes: dict[str, Any]) -> None:
    callback = DEMCallback(when="save", **DENSE)
    train(load(llama.base), callback, tmp_path, **changes)
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, tmp_path / "checkpoint-4", **DENSE))


def test_in_the_dtype_of_the_base_and_with_auto(llama: Models, tmp_path: Path) -> None:
    callback = DEMCallback(output_dir=tmp_path / "mine")
    train(load(llama.base, dtype="auto"), callback, tmp_path / "run")
    assert callback.folder == tmp_path / "mine"
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, tmp_path / "run" / "checkpoint-4"))


def test_frozen_weights_are_left_out(llama: Models, tmp_path: Path) -> None:
    model = load(llama.base)
    model.model.layers[0].requires_grad_(False)
    callback = DEMCallback(**DENSE)
    train(model, callback, tmp_path, save_strategy="no")
    changed = {name.split(".")[2] for name in callback.vector.config.tensors if ".layers." in name}  # type: ignore[union-attr]
    assert changed == {"1"}


def test_new_tokens(llama: Models, tmp_path: Path) -> None:
    model = load(llama.base)
    model.resize_token_embeddings(70, mean_resizing=False)
    callback = DEMCallback(**DENSE)
    train(model, callback, tmp_path)
    assert callback.vector.config.tensors["model.embed_tokens.weight"].rows == 6  # type: ignore[union-attr]
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, tmp_path / "checkpoint-4", **DENSE))


def test_resumed_is_uninterrupted(llama: Models, tmp_path: Path) -> None:
    whole, first, second = (DEMCallback(llama.base, **DENSE) for _ in range(3))
    schedule = {"lr_scheduler_type": "constant", "save_only_model": False}
    train(load(llama.base), whole, tmp_path / "whole", **schedule)
    train(load(llama.base), first, tmp_path / "parts", **schedule, max_steps=2)
    half = first.vector.sha256
    train(load(llama.base), second, tmp_path / "parts", resume=True, **schedule)
    assert second.vector.sha256 == whole.vector.sha256 != half
    assert second.vector.config.training["steps"] == 4  # type: ignore[union-attr]


# The loss falls; the highest is the best here, so that the last step is not.
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "metric_for_best_model": "loss",
    "greater_is_better": True,
}


@pytest.mark.parametrize(("when", "loaded"), [("end", True), ("save", True), ("best", False)])
def test_the_best(llama: Models, tmp_path: Path, when: Any, loaded: bool) -> None:
    callback = DEMCallback(when=when, **DENSE)
    trainer = train(
        load(llama.base), callback, tmp_path, load_best_model_at_end=loaded, include_num_input_tokens_seen="all", **BEST
    )
    best = trainer.state.best_model_checkpoint
    assert best is not None and trainer.state.best_global_step < 4
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, best, **DENSE))
    facts, step = callback.vector.config.training, trainer.state.best_global_step  # type: ignore[union-attr]
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert (facts["steps"], facts["loss"], facts["eval_loss"]) == (step, losses[step], evaluated[step])
    assert (facts["epochs"], facts["tokens"]) == (round(step / 12, 4), step * 4 * 8)


def test_whatever_goes_wrong_does_not_end_the_run(
    llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Rows(list[Any]):
        """A dataset that says of itself what nobody expects."""

        info = type("Info", (), {"download_checksums": 5})

    callback = DEMCallback()
    trainer = Trainer(load(llama.base), arguments(tmp_path), train_dataset=Rows(rows()), callbacks=[callback])
    trainer.train()
    assert "No vector was taken at step 4" in caplog.text
    with pytest.raises(TypeError):
        _ = callback.vector


def test_sft_trainer(llama: Models, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    texts = Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(40)]})
    callback = DEMCallback(**DENSE)
    settings = arguments(tmp_path, SFTConfig, max_length=16, bf16=False, activation_checkpointing=False)
    trainer = SFTTrainer(str(llama.base), settings, train_dataset=texts)
    callback.attach(trainer).attach(trainer)
    trainer.train()
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, tmp_path / "checkpoint-4", **DENSE))
    assert callback.vector.config.training["tokens"] > 0  # type: ignore[union-attr]
    assert [entry["step"] for entry in trainer.state.log_history if "dem/norm" in entry] == [4]


def test_seq2seq_trainer(tmp_path: Path) -> None:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "base")
    callback = DEMCallback(**DENSE)
    settings = arguments(tmp_path / "run", Seq2SeqTrainingArguments)
    Seq2SeqTrainer(model, settings, train_dataset=rows(), callbacks=[callback]).train()
    assert_same_files(
        callback.vector, DistributionVector.extract(tmp_path / "base", tmp_path / "run" / "checkpoint-4", **DENSE)
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [({"when": "never"}, ConfigError), ({"codec": "zip"}, CodecError), ({"rank": 3}, CodecError)],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], error: type[DemHubError]) -> None:
    with pytest.raises(error):
        DEMCallback(**options)


def test_there_is_none_yet() -> None:
    with pytest.raises(VectorNotFoundError, match="no vector yet"):
        _ = DEMCallback().vector


def test_a_model_that_diverged(llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on to its end; the vector is what went wrong."""

    class Diverge(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                kwargs["model"].model.norm.weight.data[0] = torch.nan

    callback = DEMCallback(when="save")
    trainer = Trainer(load(llama.base), arguments(tmp_path), train_dataset=rows(), callbacks=[Diverge(), callback])
    trainer.train()
    assert trainer.state.global_step == 4
    assert "No vector was taken at step 4" in caplog.text
    with pytest.raises(CheckpointError, match="has NaN or inf in it"):
        _ = callback.vector
    assert DistributionVector.from_pretrained(tmp_path / "vector").config.training["steps"] == 2  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Recorder(TrainerCallback):
    """What a reporter (TensorBoard, W&B, trackio) is given, until it closes at the end of training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += [
            (state.global_step, {key: value for key, value in kwargs["logs"].items() if key.startswith("dem/")})
        ]

    def on_train_end(self, *positional: Any, **named: Any) -> None:
        self.seen = [entry for entry in self.seen if entry[1]]


def test_logs(llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(_low_vector(llama, tmp_path)): 0.5})
    model.dem.save_pretrained(tmp_path / "recipe")
    callback, recorder = DEMCallback(when="save", recipe=tmp_path / "recipe", **DENSE), Recorder()
    trainer = Trainer(load(llama.base), arguments(tmp_path / "run"), train_dataset=rows(), callbacks=[recorder])
    callback.attach(trainer)
    with caplog.at_level(logging.INFO, "dem_hub"):
        trainer.train()
    assert "Vector of step 2" in caplog.text
    history = [entry for entry in trainer.state.log_history if "dem/norm" in entry]
    assert [entry["step"] for entry in history] == [step for step, _ in recorder.seen] == [2, 4]
    config = callback.vector.config
    assert config is not None
    norm = sum(record.norm**2 for record in config.tensors.values()) ** 0.5
    assert recorder.seen[-1][1]["dem/norm"] == pytest.approx(norm)
    assert (
        recorder.seen[-1][1]["dem/bytes"] == (tmp_path / "run" / "vector" / "vector_model.safetensors").stat().st_size
    )
    both = [load_tensors(folder) for folder in (tmp_path / "low", tmp_path / "run" / "vector")]
    first, second = (
        torch.cat([tensors[name].double().flatten() for name in sorted(both[0]) if name.endswith("::dense")])
        for tensors in both
    )
    cosine = float(first @ second) / float(first.norm() * norm)
    assert recorder.seen[-1][1][f"dem/cosine/{tmp_path / 'low'}"] == pytest.approx(cosine, abs=1e-9)


def _low_vector(llama: Models, tmp_path: Path) -> Path:
    DistributionVector.extract(llama.base, llama.low, **DENSE).save_pretrained(tmp_path / "low")
    return tmp_path / "low"


def test_logs_without_the_trainer(llama: Models, tmp_path: Path) -> None:
    """In the history at once, and in the logs of the next step, for the callbacks that come after."""
    callback, recorder = DEMCallback(when="save"), Recorder()
    trainer = Trainer(load(llama.base), arguments(tmp_path), train_dataset=rows(), callbacks=[callback, recorder])
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "dem/norm" in entry] == [2, 4]
    assert [step for step, _ in recorder.seen] == [3, 4]
