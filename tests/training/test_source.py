"""The source of a run's vector: an adapter that is stored as it is, and models that are refused before training."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from dem_hub import DEMCallback, DEMModel, DistributionVector
from dem_hub.errors import AdapterError, CheckpointError, ConfigError
from tests.support.tiny_models import Models, Zoo, edit_json, load_tensors
from tests.support.training_runs import LORA, adapted, arguments, begin, load, train


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


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_one_side_of_a_tied_embedding(llama: Models, tmp_path: Path) -> None:
    from peft import LoraConfig

    model = adapted(llama.base, LoraConfig(**LORA, modules_to_save=["embed_tokens"]))
    with pytest.raises(CheckpointError, match="'lm_head.weight' .* is in the fine-tune only"):
        begin(DEMCallback(), model, arguments(tmp_path))


@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying", "ignore:.*fan_in_fan_out")
def test_one_side_of_a_tie_that_peft_does_not_know(zoo: Zoo, tmp_path: Path) -> None:
    """PEFT ties by names, and `wte` is no such name."""
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["wte"], ensure_weight_tying=True)
    model = adapted(zoo.models("gpt2").base, config)
    with pytest.raises(CheckpointError, match="'lm_head.weight' .* is in the fine-tune only"):
        begin(DEMCallback(), model, arguments(tmp_path))


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


def recipe_of(zoo: Zoo, llama: Models, folder: Path) -> Path:
    """Save a recipe of the base and one vector."""
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    DEMModel.from_pretrained(llama.base, vectors=vectors).dem.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("is_lora", [False, True], ids=["full", "lora"])
def test_healing(zoo: Zoo, llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_lora: bool) -> None:
    """Training goes on from a recipe, and is one more vector: the recipe with all of it is the model that was trained."""
    recipe = recipe_of(zoo, llama, tmp_path / "recipe")
    model: Any = DEMModel.from_pretrained(recipe).float()
    if is_lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**LORA))
    options = {} if is_lora else {"codec": "dense", "dtype": "float32"}
    train(model, DEMCallback(recipe, output_dir=tmp_path / "heal", **options), tmp_path / "run")
    assert "is not the base" not in caplog.text

    healed = DEMModel.from_pretrained(recipe, vectors={str(tmp_path / "heal"): 1.0}, dtype="float32")
    trained = (model.merge_and_unload() if is_lora else model).state_dict()
    for name, tensor in healed.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=2**-20, atol=1e-7)  # sums in float32, of factors too
    DEMModel.from_pretrained(recipe, vectors={str(tmp_path / "heal"): 0.5}).dem.save_pretrained(tmp_path / "healed")
    assert DEMModel.from_pretrained(tmp_path / "healed").dem.config.base.repo_id == str(recipe)


def test_a_merge_without_its_name(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    """What it was loaded from is the base below, which a vector of this run would not be of."""
    from peft import LoraConfig, get_peft_model

    model = DEMModel.from_pretrained(recipe_of(zoo, llama, tmp_path / "recipe")).float()
    said = r"The model is a merge \(.* \+ 0.5 \* .*\), and training goes on from there. Name its recipe"
    for started in (model, get_peft_model(model, LoraConfig(**LORA))):
        with pytest.raises(ConfigError, match=said):
            train(started, DEMCallback(), tmp_path / "run")

    # With coefficients of 0 it is the base.
    plain = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.0}).float()
    callback = DEMCallback(codec="dense")
    train(plain, callback, tmp_path / "run")
    assert callback.vector.base.repo_id == str(llama.base)
