"""Runs of real Trainers on tiny models: the vector is the one that extraction takes from the saved checkpoint, bit for bit."""

import copy
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from dem_hub import DEMCallback, DEMModel, DistributionVector
from dem_hub.errors import AdapterError, CheckpointError, CodecError, ConfigError, DemHubError, VectorNotFoundError
from tests.support.tiny_models import Models, Zoo, edit_json, load_tensors

DENSE = {"codec": "dense", "dtype": "float32"}
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def rows(seed: int = 0, count: int = 48) -> list[dict[str, list[int]]]:
    """Token ids at random, eight in a row."""
    drawn = torch.randint(4, 60, (count, 8), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


def arguments(folder: Path, kind: type[Any] = TrainingArguments, **changes: Any) -> Any:
    """Four steps, a save after each two."""
    settings = {
        "output_dir": str(folder), "max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "per_device_train_batch_size": 4, "save_only_model": True,
    }  # fmt: skip
    return kind(**{**settings, **changes})


def train(model: Any, callback: DEMCallback, folder: Path, resume: bool = False, **changes: Any) -> Trainer:
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=rows(), eval_dataset=rows(1, 8))
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def assert_same_files(vector: DistributionVector, expected: DistributionVector) -> None:
    """Tensors and records alike, byte for byte; the rest of the config says where it comes from."""
    assert vector.config is not None and expected.config is not None
    assert vector.config.files == expected.config.files
    assert vector.sha256 == expected.sha256
    assert vector.base == expected.base


# Full fine-tuning


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


def test_dataset_names() -> None:
    from datasets import Dataset, DatasetInfo

    from dem_hub.training.facts import dataset_names

    sums = {"hf://datasets/org/maths@0a1b/train.parquet": {}, "hf://datasets/org/maths@0a1b/test.parquet": {}}
    from_hub = Dataset.from_dict({"a": [1]}, info=DatasetInfo(download_checksums=sums))
    assert dataset_names(from_hub) == ["org/maths"]
    assert dataset_names(rows()) == dataset_names(Dataset.from_dict({"a": [1]})) == []


# Other Trainers


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


# PEFT


def adapted(folder: Path, config: Any = None, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(load(folder, **options), config or LoraConfig(**LORA))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"modules_to_save": ["norm"]}], ids=str)
def test_a_lora_is_stored_as_it_is(llama: Models, tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig

    callback = DEMCallback(datasets=["org/maths"])
    train(adapted(llama.base, LoraConfig(**LORA, **options)), callback, tmp_path)
    saved = tmp_path / "checkpoint-4"
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert all((tmp_path / "vector" / name).read_bytes() == (saved / name).read_bytes() for name in names)
    assert sorted(path.name for path in (tmp_path / "vector").iterdir()) == [*names, "dem_training.json", "norms.png"]
    facts = json.loads((tmp_path / "vector" / "dem_training.json").read_text())
    assert facts["training"]["datasets"] == ["org/maths"] and facts["libraries"]["peft"]
    assert callback.vector.sha256 == DistributionVector.from_pretrained(saved).sha256
    DEMModel.from_pretrained(llama.base, vectors={str(tmp_path / "vector"): 0.5})


def test_a_lora_with_a_name(llama: Models, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(llama.base), LoraConfig(**LORA), adapter_name="maths")
    callback = DEMCallback()
    train(model, callback, tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "vector" / name).read_bytes() == (tmp_path / "checkpoint-4" / "maths" / name).read_bytes()


@pytest.mark.skipif(Version(version("peft")) < Version("0.22"), reason="transformers wants PEFT 0.22 for it")
def test_the_adapter_of_transformers_itself(llama: Models, tmp_path: Path) -> None:
    from peft import LoraConfig

    model = load(llama.base)
    model.add_adapter(LoraConfig(**LORA))
    callback = DEMCallback(llama.base)
    train(model, callback, tmp_path)
    ours, saved = (load_tensors(tmp_path / name, "adapter_model") for name in ("vector", "checkpoint-4"))
    assert ours.keys() == saved.keys() and all(torch.equal(ours[name], saved[name]) for name in saved)
    DEMModel.from_pretrained(llama.base, vectors={str(tmp_path / "vector"): 0.5})


def test_qlora(llama: Models, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    model = adapted(llama.base, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    callback = DEMCallback()
    train(model, callback, tmp_path)
    name = "adapter_model.safetensors"
    assert (tmp_path / "vector" / name).read_bytes() == (tmp_path / "checkpoint-4" / name).read_bytes()
    DEMModel.from_pretrained(llama.base, vectors={str(tmp_path / "vector"): 1.0})


def other_methods() -> list[Any]:
    from peft import IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, OSFConfig, VBLoRAConfig

    bank = VBLoRAConfig(r=2, num_vectors=4, vector_length=2, topk=2, target_modules=["q_proj"])  # shared by all layers
    return [
        pytest.param("llama-tied", LoraConfig(**LORA, use_dora=True), id="dora"),
        pytest.param(
            "llama-untied", LoraConfig(**LORA, use_dora=True, modules_to_save=["lm_head"]), id="dora and a head"
        ),
        pytest.param(
            "gpt2", LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True), id="a bias in B"
        ),
        pytest.param(
            "llama-tied", IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), id="ia3"
        ),
        pytest.param("llama-tied", LoHaConfig(r=2, alpha=4, target_modules=["q_proj"]), id="loha"),
        pytest.param("llama-tied", LNTuningConfig(target_modules=["input_layernorm"]), id="norms"),
        pytest.param("llama-tied", LoraConfig(**LORA, trainable_token_indices=[5, 6]), id="tokens"),
        pytest.param("llama-tied", bank, id="a bank"),
        pytest.param("llama-tied", OSFConfig(target_modules=["q_proj"]), id="one that cannot unmerge"),
    ]


class Bits(TrainerCallback):
    """The bits of the model at each save."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in kwargs["model"].state_dict().items()})


@pytest.mark.filterwarnings(
    "ignore:Adapter 'default'", "ignore:Unsupported layer type", "ignore:OSF does not support"
)  # PEFT's own doubts about rarer methods
@pytest.mark.parametrize(("family", "config"), other_methods())
def test_other_methods_are_merged(zoo: Zoo, tmp_path: Path, family: str, config: Any) -> None:
    """The vector is that of PEFT's own merge of a copy, and the model in training has the bits that it had."""
    base = zoo.models(family).base
    model = adapted(base, copy.deepcopy(config))
    before, callback, after = Bits(), DEMCallback(when="save", **DENSE), Bits()
    Trainer(model, arguments(tmp_path / "run"), train_dataset=rows(), callbacks=[before, callback, after]).train()
    assert len(before.seen) == len(after.seen) == 2
    for one, two in zip(before.seen, after.seen, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same_files(callback.vector, DistributionVector.extract(base, tmp_path / "merged", **DENSE))


def test_weights_that_are_trained_beside_a_lora(llama: Models, tmp_path: Path) -> None:
    """PEFT's checkpoint would lack them."""
    model = adapted(llama.base)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    callback = DEMCallback(**DENSE)
    train(model, callback, tmp_path / "run")
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, tmp_path / "merged", **DENSE))
    assert "model.norm.weight" in callback.vector.config.tensors  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_one_side_of_a_tied_embedding(llama: Models, tmp_path: Path) -> None:
    from peft import LoraConfig

    model = adapted(llama.base, LoraConfig(**LORA, modules_to_save=["embed_tokens"]))
    with pytest.raises(CheckpointError, match="'lm_head.weight' .* is in the fine-tune only"):
        begin(DEMCallback(), model, arguments(tmp_path))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    "changes",
    [{"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens"]}, {"layer_replication": [(0, 2), (1, 2)]}],
    ids=str,
)
def test_one_tensor_that_is_changed_in_two_ways(llama: Models, tmp_path: Path, changes: dict[str, Any]) -> None:
    """PEFT's merge would change both sides alike, and the model in training does not."""
    from peft import LoraConfig

    model = adapted(llama.base, LoraConfig(**{**LORA, **changes}))
    with pytest.raises(AdapterError, match="are one tensor of the base, and PEFT changes them differently"):
        begin(DEMCallback(), model, arguments(tmp_path))


# What cannot be, said before training


def begin(callback: DEMCallback, model: Any, settings: Any) -> None:
    from transformers import TrainerControl, TrainerState

    callback.on_train_begin(settings, TrainerState(), TrainerControl(), model=model)


def test_a_base_that_is_not_known(llama: Models, tmp_path: Path) -> None:
    model = load(llama.base)
    model.config._name_or_path = ""
    with pytest.raises(ConfigError, match="Name it: DEMCallback"):
        train(model, DEMCallback(), tmp_path)


def test_a_checkpoint_is_no_base(llama: Models, tmp_path: Path) -> None:
    train(load(llama.base), DEMCallback(), tmp_path / "first")
    with pytest.raises(ConfigError, match="a checkpoint of a training run and hardly its base"):
        train(load(tmp_path / "first" / "checkpoint-2"), DEMCallback(), tmp_path / "second")


def test_another_base(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'lm_head.weight' .* is in the base only") as caught:
        train(load(llama.base), DEMCallback(zoo.models("llama-untied").base), tmp_path)
    assert "the model in training" in str(caught.value)
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_head_that_the_base_lacks(llama: Models, tmp_path: Path) -> None:
    model = transformers.LlamaForSequenceClassification.from_pretrained(llama.base, num_labels=2)
    with pytest.raises(CheckpointError, match="'score.weight' .* is in the fine-tune only"):
        begin(DEMCallback(), model, arguments(tmp_path))


@pytest.mark.parametrize("config", [None, "dora"])
def test_quantized_and_no_lora(llama: Models, tmp_path: Path, config: str | None) -> None:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    model = (
        load(llama.base, **options)
        if config is None
        else adapted(llama.base, LoraConfig(**LORA, use_dora=True), **options)
    )
    with pytest.raises(CheckpointError, match="The model is quantised"):
        begin(DEMCallback(), model, arguments(tmp_path))


def test_a_quantized_base(llama: Models, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(llama.base, tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="is quantised"):
        begin(DEMCallback(tmp_path / "base"), load(llama.base), arguments(tmp_path))


def test_a_prompt_has_no_vector(llama: Models, tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    model = adapted(llama.base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(AdapterError, match="changes no weight of the base"):
        begin(DEMCallback(), model, arguments(tmp_path))


def test_nothing_to_go_by(llama: Models, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="save_strategy is 'no'(.|\n)*eval_strategy is 'no'(.|\n)*metric_for_best_model is None"
    ):
        begin(DEMCallback(when="best"), load(llama.base), arguments(tmp_path, save_strategy="no"))


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


# Logs


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
