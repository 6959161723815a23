"""Input statistics of real runs, against forward passes over the same tokens, one row at a time."""

import logging
from collections.abc import Callable
from copy import copy, deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import GradientState
from torch import Tensor
from transformers import Trainer, TrainerCallback

from dem_hub import DEMCallback, DistributionVector, regmean
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import ConfigError
from dem_hub.evaluation.likelihood import likelihood
from dem_hub.files.names import STATISTICS_FILES
from dem_hub.hub.download import Resolved
from dem_hub.training import statistics
from dem_hub.training.gathering import Gathering
from dem_hub.vectors.statistics_beside import read_statistics
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, Published
from tests.support.tiny_models import Models, Zoo
from tests.support.training_runs import (
    DENSE,
    LENGTHS,
    LORA,
    adapted,
    arguments,
    assert_same_moments,
    begin,
    load,
    one_by_one,
    pad,
    ragged,
    rows,
)

pytestmark = pytest.mark.usefixtures("without_matplotlib")


def run(
    model: Any, callback: DEMCallback, folder: Path, data: Any = None, collator: Any = pad, **changes: Any
) -> Trainer:
    settings = arguments(folder, per_device_eval_batch_size=4, **changes)
    data = ragged() if data is None else data
    trainer = Trainer(model, settings, train_dataset=rows(), eval_dataset=data, data_collator=collator)
    callback.attach(trainer)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("family", "side"),
    [("llama-tied", "right"), ("llama-untied", "left"), ("gpt2", "right"), ("mixtral", "right"), ("bert", "right")],
)
def test_they_are_those_of_the_trained_model(zoo: Zoo, tmp_path: Path, family: str, side: str) -> None:
    base = zoo.models(family).base
    config = transformers.AutoConfig.from_pretrained(base)
    model_class = getattr(transformers, config.architectures[0])
    callback = DEMCallback(input_statistics=True, **DENSE)
    run(
        model_class.from_pretrained(base, dtype=torch.float32),
        callback,
        tmp_path,
        collator=lambda rows: pad(rows, side),
    )
    found = read_statistics(callback.vector)
    assert found.tokens == sum(LENGTHS)
    trained = model_class.from_pretrained(tmp_path / "checkpoint-4", dtype=torch.float32)
    assert_same_moments(found, one_by_one(trained, base, ragged()))


@pytest.mark.parametrize("kind", ["full", "lora", "bf16", "tasks"])
def test_what_the_vector_gains(llama: Models, tmp_path: Path, kind: str) -> None:
    """The loss of the base minus that of the trained model, on the same tokens, as the search measures them."""
    model = adapted(llama.base) if kind == "lora" else load(llama.base)
    callback = DEMCallback(input_statistics=True, **({} if kind == "lora" else DENSE))
    data = {"one": ragged(seed=1), "other": ragged(seed=2)} if kind == "tasks" else ragged()
    trainer = run(model, callback, tmp_path, data, bf16=kind == "bf16", learning_rate=0.1)
    trained = deepcopy(trainer.model).eval()
    rows_seen = [row["input_ids"] for of_name in (data.values() if kind == "tasks" else [data]) for row in of_name]
    expected = likelihood(load(llama.base), rows_seen).loss - likelihood(trained, rows_seen).loss
    gain = read_statistics(callback.vector).gain
    assert gain == pytest.approx(expected, abs=0.02 if kind == "bf16" else 1e-5)
    assert abs(expected) > 0.02, "four steps change something"


def test_the_gain_leaves_a_run_as_it_is(llama: Models, tmp_path: Path) -> None:
    """Dropout, and the order of data, are those of a run without it."""
    from peft import LoraConfig

    config = LoraConfig(**LORA, lora_dropout=0.5)
    runs = []
    for asked in (False, True):
        callback = DEMCallback(input_statistics=asked)
        runs.append(run(adapted(llama.base, config), callback, tmp_path / str(asked)).model.state_dict())
    assert all(torch.equal(runs[0][name], tensor) for name, tensor in runs[1].items())


def test_a_gain_that_is_not_known(llama: Models, tmp_path: Path) -> None:
    """Of a run that is resumed, of one that does not begin with the base, and where the evaluation set changes."""
    run(load(llama.base), DEMCallback(**DENSE), tmp_path, max_steps=2, save_only_model=False)
    resumed = DEMCallback(input_statistics=True, **DENSE)
    settings = arguments(tmp_path, save_only_model=False, per_device_eval_batch_size=4)
    trainer = Trainer(load(llama.base), settings, train_dataset=rows(), eval_dataset=ragged(), data_collator=pad)
    resumed.attach(trainer)
    trainer.train(resume_from_checkpoint=True)
    other = DEMCallback(llama.base, input_statistics=True, **DENSE)
    run(load(llama.full), other, tmp_path / "other")
    assert [read_statistics(callback.vector).gain for callback in (resumed, other)] == [None, None]
    assert statistics.Seen("a", 2.0).gain(statistics.Seen("b", 1.0)) is None


def peft_configs() -> dict[str, Any]:
    from peft import IA3Config, LoraConfig

    return {
        "lora": LoraConfig(**LORA, lora_dropout=0.5),
        "all": LoraConfig(**{**LORA, "target_modules": "all-linear"}),
        "head": LoraConfig(**LORA, modules_to_save=["lm_head"]),
        "dora": LoraConfig(**LORA, use_dora=True),
        "ia3": IA3Config(
            target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    }


@pytest.mark.parametrize("kind", ["lora", "all", "head", "dora", "ia3"])
def test_what_peft_has_wrapped(zoo: Zoo, tmp_path: Path, kind: str) -> None:
    base = zoo.models("llama-untied", "float32").base
    callback = DEMCallback(input_statistics=True)
    trainer = run(adapted(base, peft_configs()[kind]), callback, tmp_path)
    merged = deepcopy(trainer.model).merge_and_unload()
    assert_same_moments(read_statistics(callback.vector), one_by_one(merged, base, ragged()))


@pytest.mark.parametrize("changes", [{"bf16": True}, {"activation_checkpointing": True}], ids=str)
def test_ways_of_training(llama: Models, tmp_path: Path, changes: dict[str, Any]) -> None:
    callback = DEMCallback(input_statistics=True, **DENSE)
    run(load(llama.base), callback, tmp_path, **changes)
    trained = load(tmp_path / "checkpoint-4")
    # Under autocast the inputs themselves are rounded to 8 bits.
    assert_same_moments(read_statistics(callback.vector), one_by_one(trained, llama.base, ragged()), tolerance=0.04)


def test_a_sequence_to_sequence_model(tmp_path: Path) -> None:
    """The padding of the decoder's input has no mask, and does not count either."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    callback = DEMCallback(input_statistics=True, **DENSE)
    run(T5ForConditionalGeneration.from_pretrained(tmp_path / "base"), callback, tmp_path / "run")
    trained = T5ForConditionalGeneration.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert_same_moments(read_statistics(callback.vector), one_by_one(trained, tmp_path / "base", ragged()))


@pytest.mark.parametrize("packing", [False, True])
def test_all_tokens_of_sft_count(llama: Models, tmp_path: Path, packing: bool) -> None:
    """Those of the prompt too, on which SFT has no loss, and of packed documents each."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = ragged()
    texts = [
        {"input_ids": row["input_ids"], "completion_mask": [0, 0] + [1] * (len(row["input_ids"]) - 2)} for row in data
    ]
    callback = DEMCallback(input_statistics=True, **DENSE)
    settings = arguments(
        tmp_path, SFTConfig, max_length=16, bf16=False, activation_checkpointing=False, eval_packing=packing,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    sets = {"train_dataset": Dataset.from_list(texts), "eval_dataset": Dataset.from_list(texts)}
    trainer = SFTTrainer(str(llama.base), settings, **sets)
    callback.attach(trainer)
    trainer.train()
    found = read_statistics(callback.vector)
    assert found.tokens == sum(LENGTHS)
    assert not any(trainer._metrics["eval"].values()), "the Trainer's own averages are as they were"
    key = "model.layers.0.self_attn.q_proj.weight"  # what it reads depends on its own token alone
    expected = one_by_one(load(tmp_path / "checkpoint-4"), llama.base, data).moments[key].dense()
    torch.testing.assert_close(found.moments[key].dense(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    if not packing:
        assert_same_moments(found, one_by_one(load(tmp_path / "checkpoint-4"), llama.base, data))


def test_regmean_needs_no_data(llama: Models, tmp_path: Path) -> None:
    folders = []
    for number in range(2):
        callback = DEMCallback(llama.base, output_dir=tmp_path / str(number), input_statistics=True)
        run(adapted(llama.base), callback, tmp_path / f"run-{number}", ragged(seed=number))
        folders.append(str(callback.folder))
    made = regmean(llama.base, dict.fromkeys(folders))
    assert [vector.config.transformation["data"][0]["tokens"] for vector in made.values()] == [42, 42]  # type: ignore[union-attr]


@pytest.mark.parametrize(("limit", "tokens"), [(10, 32), (32, 32), (33, 42)])
def test_they_are_bounded(
    llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, tokens: int
) -> None:
    """Four rows of 9, 4, 12 and 7 tokens are a batch."""
    monkeypatch.setattr(statistics, "TOKENS", limit)
    callback = DEMCallback(input_statistics=True, **DENSE)
    run(load(llama.base), callback, tmp_path)
    assert read_statistics(callback.vector).tokens == tokens


def test_each_of_several_evaluation_sets_has_its_share(
    llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "TOKENS", 64)
    callback = DEMCallback(input_statistics=True, **DENSE)
    sets = {"one": ragged((8,) * 12, seed=1), "other": ragged((8,) * 12, seed=2)}
    run(load(llama.base), callback, tmp_path, sets)
    expected = one_by_one(load(tmp_path / "checkpoint-4"), llama.base, sets["one"][:4] + sets["other"][:4])
    assert_same_moments(read_statistics(callback.vector), expected)


@pytest.mark.parametrize("when", ["save", "best"])
def test_they_are_of_the_vector_that_is_left(llama: Models, tmp_path: Path, when: Any) -> None:
    best = {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    callback = DEMCallback(when=when, input_statistics=True, **DENSE)
    changes = best | {"eval_strategy": "steps", "eval_steps": 2} if when == "best" else {}
    trainer = run(load(llama.base), callback, tmp_path, **changes)
    step = trainer.state.best_global_step or 4
    assert step == (2 if when == "best" else 4)
    expected = one_by_one(load(tmp_path / f"checkpoint-{step}"), llama.base, ragged())
    assert_same_moments(read_statistics(callback.vector), expected)


def test_a_later_run_leaves_none_of_an_earlier_one(llama: Models, tmp_path: Path) -> None:
    run(load(llama.base), DEMCallback(input_statistics=True, **DENSE), tmp_path)
    callback = DEMCallback(**DENSE)
    run(load(llama.base), callback, tmp_path, learning_rate=1e-3)
    assert not any((callback.vector.folder / name).exists() for name in STATISTICS_FILES)


def test_the_model_is_left_as_it_was(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "TOKENS", 8)  # fewer than there are

    class Look(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            self.modes = [module.training for module in model.modules()]
            self.hooks = [module for module in model.modules() if module._forward_pre_hooks]
            self.experts = model.config._experts_implementation
            self.loader = GradientState().active_dataloader

    model = load(zoo.models("mixtral").base)
    experts = model.config._experts_implementation
    looks = [Look(), Look()]
    trainer = Trainer(model, arguments(tmp_path), train_dataset=rows(), eval_dataset=rows(1, 8), callbacks=[looks[1]])
    DEMCallback(input_statistics=True, **DENSE).attach(trainer)
    trainer.callback_handler.callbacks.insert(0, looks[0])
    trainer.train()
    assert looks[0].modes == looks[1].modes
    assert any(looks[0].modes)
    assert looks[1].hooks == []
    assert looks[1].experts == experts
    assert looks[1].loader is looks[0].loader


class Collate:
    """A collator that fails at a pass over the evaluation set, whose rows have five tokens."""

    def __init__(self, failing: int) -> None:
        self.failing = failing
        self.passes = 0

    def __call__(self, batch: list[Any]) -> dict[str, Tensor]:
        if len(batch[0]["input_ids"]) == 5:
            self.passes += 1
            if self.passes == self.failing:
                raise ZeroDivisionError("no such batch")
        return pad(batch)


def test_what_fails_at_the_beginning_trains_nothing(llama: Models, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="no such batch"):
        run(load(llama.base), DEMCallback(input_statistics=True, **DENSE), tmp_path, ragged((5, 5)), Collate(1))
    assert not (tmp_path / "checkpoint-2").exists()


def test_what_fails_at_the_end_leaves_the_vector(
    llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collate = Collate(2)
    callback = DEMCallback(input_statistics=True, **DENSE)
    run(load(llama.base), callback, tmp_path, ragged((5, 5)), collate)
    assert "No input statistics were gathered: no such batch" in caplog.text
    assert callback.vector.sha256 == DistributionVector.extract(llama.base, tmp_path / "checkpoint-4", **DENSE).sha256


@pytest.mark.parametrize("data", [None, [], {}], ids=str)
def test_no_evaluation_set(llama: Models, tmp_path: Path, data: Any) -> None:
    trainer = Trainer(load(llama.base), arguments(tmp_path), train_dataset=rows(), eval_dataset=data)
    callback = DEMCallback(input_statistics=True)
    with pytest.raises(ConfigError, match="this Trainer has none"):
        callback.attach(trainer)
    assert callback not in trainer.callback_handler.callbacks


def test_a_callback_that_is_not_attached(llama: Models, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"attach\(trainer\)"):
        begin(DEMCallback(llama.base, input_statistics=True), load(llama.base), arguments(tmp_path))


def test_nothing_to_push() -> None:
    with pytest.raises(ConfigError, match="Set input_statistics=True too"):
        DEMCallback(hub_include_statistics=True)


def test_the_best_of_a_model_that_is_gone(llama: Models, tmp_path: Path) -> None:
    changes = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    with pytest.raises(ConfigError, match="load_best_model_at_end=True"):
        run(load(llama.base), DEMCallback(when="best", input_statistics=True), tmp_path, **changes)


def test_experts_that_peft_has_wrapped(zoo: Zoo, tmp_path: Path) -> None:
    from peft import LoraConfig

    base = zoo.models("mixtral", "float32").base
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ConfigError, match=r"experts.* is wrapped"):
        run(adapted(base, config), DEMCallback(input_statistics=True), tmp_path)


@pytest.mark.parametrize("included", [False, True])
def test_a_push_has_them_if_it_says_so(hub: Hub, published: Published, tmp_path: Path, included: bool) -> None:
    callback = DEMCallback(
        BASE, when="save", input_statistics=True, push_to_hub=True, hub_model_id="ann/sums",
        hub_include_statistics=included, **DENSE,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    run(model, callback, tmp_path)
    assert set(STATISTICS_FILES) <= {path.name for path in callback.vector.folder.iterdir()}
    assert (set(STATISTICS_FILES) <= set(hub.files("ann/sums"))) == included
    assert any(name in hub.files("ann/sums") for name in STATISTICS_FILES) == included
    if included:
        assert read_statistics(DistributionVector.from_pretrained("ann/sums")).tokens == sum(LENGTHS)


def test_it_says_how_many_tokens(llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dem_hub"):
        run(load(llama.base), DEMCallback(input_statistics=True, **DENSE), tmp_path)
    assert "Input statistics of 42 tokens" in caplog.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda gathering, _: setattr(next(iter(gathering.tensors.values())), "ds_id", 0), "ZeRO-3"),
        (lambda gathering, _: setattr(gathering, "is_sharded", True), "tensor parallelism"),
        (
            lambda _, trainer: setattr(
                trainer.accelerator.state, "parallelism_config", SimpleNamespace(non_data_parallel_size=2)
            ),
            "sequence parallelism",
        ),
        (
            lambda gathering, _: setattr(gathering.model.model, "layers", torch.nn.ModuleList()),
            "no layer 'model.layers",
        ),
    ],
    ids=["ZeRO-3", "tensor-parallel", "sequence-parallel", "wrapped"],
)
def test_models_that_cannot_be_watched(
    llama: Models, tmp_path: Path, change: Callable[[Gathering, Any], None], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = arguments(tmp_path)
    trainer = Trainer(load(llama.base), settings, train_dataset=rows(), eval_dataset=rows(1, 8))
    monkeypatch.setattr(trainer.accelerator, "state", copy(trainer.accelerator.state))
    gathering = Gathering(trainer.model)
    architecture = Base(Resolved.local(llama.base)).architecture
    change(gathering, trainer)
    with pytest.raises(ConfigError, match=match):
        statistics.check_run(trainer, "end", settings, gathering, architecture)


def test_an_unknown_architecture(llama: Models, tmp_path: Path) -> None:
    settings = arguments(tmp_path)
    trainer = Trainer(load(llama.base), settings, train_dataset=rows(), eval_dataset=rows(1, 8))
    with pytest.raises(ConfigError, match="architecture of the base is not known"):
        statistics.check_run(trainer, "end", settings, Gathering(trainer.model), None)
