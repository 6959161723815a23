"""Recipes through transformers' Auto classes, its tokenizer and its pipeline."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dem_hub import DEMConfig, DEMModel
from dem_hub.errors import ConfigError
from tests.models.helpers import save_recipe
from tests.support.tiny_models import Zoo, edit_json

AUTO = """
{imports}
import json, sys
import torch
recipe, masked, dtype = sys.argv[1:]
results = {{}}
results["config"] = type(AutoConfig.from_pretrained(recipe)).model_type
for name, path in (("AutoModelForCausalLM", recipe), ("AutoModel", recipe), ("AutoModelForMaskedLM", masked)):
    model = getattr(transformers, name).from_pretrained(path, dtype=dtype)
    first = next(parameter for key, parameter in model.named_parameters() if "embed" in key)
    results[name] = [type(model).__name__, str(first.dtype), float(first.double().sum()), sorted(model.dem.coefficients.values())]
tokenizer = AutoTokenizer.from_pretrained(recipe)
results["tokens"] = tokenizer("w1 w2")["input_ids"]
results["chat"] = tokenizer.apply_chat_template([{{"role": "user", "content": "w3"}}], tokenize=False)
generated = pipeline("text-generation", recipe, device="cpu")("w1 w2", max_new_tokens=2, do_sample=False)
results["pipeline"] = generated[0]["generated_text"]
print(json.dumps(results))
"""


IMPORTS = {
    "dem_hub first": "import dem_hub\nimport transformers\nfrom transformers import AutoConfig, AutoTokenizer, pipeline",
    "dem_hub last": "import transformers\nfrom transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline\nimport dem_hub",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_auto_classes(zoo: Zoo, tmp_path: Path, imports: str) -> None:
    recipe, masked = save_recipe(zoo, tmp_path / "recipe"), save_recipe(zoo, tmp_path / "masked", "bert")
    done = subprocess.run(
        [sys.executable, "-c", AUTO.format(imports=imports), recipe, masked, "float32"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    causal = DEMModel.from_pretrained(recipe, dtype="float32").model.embed_tokens.weight.detach()
    bert = DEMModel.from_pretrained(masked, dtype="float32").bert.embeddings.word_embeddings.weight.detach()
    assert results["config"] == "llama"
    assert results["AutoModelForCausalLM"] == [
        "LlamaForCausalLM",
        "torch.float32",
        float(causal.double().sum()),
        [0.3, 0.6],
    ]
    assert results["AutoModel"] == ["LlamaModel", "torch.float32", float(causal.double().sum()), [0.3, 0.6]]
    assert results["AutoModelForMaskedLM"] == [
        "BertForMaskedLM",
        "torch.float32",
        float(bert.double().sum()),
        [0.3, 0.6],
    ]
    assert (len(results["tokens"]), results["chat"]) == (2, "w3")
    assert results["pipeline"].startswith("w1 w2")


def test_recipes_hold_no_remote_code(zoo: Zoo, tmp_path: Path) -> None:
    edit_json(save_recipe(zoo, tmp_path / "recipe") / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    (tmp_path / "recipe" / "code.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(ConfigError, match="unknown key 'auto_map'"):
        DEMModel.from_pretrained(tmp_path / "recipe", trust_remote_code=True)


ARGUMENTS = {
    "labels": ("AutoModelForSequenceClassification", {"num_labels": 5, "problem_type": "multi_label_classification"}),
    "names of labels": ("AutoModelForSequenceClassification", {"id2label": {0: "x", 1: "y", 2: "z"}}),
    "attention": ("AutoModelForCausalLM", {"attn_implementation": "eager", "output_attentions": True}),
    "outputs": ("AutoModel", {"output_hidden_states": True, "use_cache": False}),
    "dtype": ("AutoModelForCausalLM", {"dtype": "float32"}),
    "native class": ("LlamaForSequenceClassification", {"num_labels": 4}),
    "native class as it is": ("LlamaForCausalLM", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("given", ["to the model", "to the config"])
def test_arguments_mean_what_they_mean_on_the_base(
    zoo: Zoo, tmp_path: Path, name: str, arguments: dict[str, Any], given: str
) -> None:
    """The model is of the same class and has the same config as that of the base, but for the base's name."""
    import transformers

    model_class = getattr(transformers, name)
    models = []
    for folder in (zoo.models("llama-tied").base, save_recipe(zoo, tmp_path / "recipe")):
        if given == "to the model":
            models.append(model_class.from_pretrained(folder, **arguments))
        else:
            config = transformers.AutoConfig.from_pretrained(folder, **arguments)
            models.append(model_class.from_pretrained(folder, config=config))
    base, merged = models
    assert type(merged) is type(base)
    assert merged.config.to_dict() == base.config.to_dict()
    assert merged.config._attn_implementation == base.config._attn_implementation
    assert merged.dtype == base.dtype
    assert list(merged.dem.coefficients.values()) == [0.3, 0.6]


PIPELINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nothing": ("llama-tied", "text-generation", {}),
    "dtype": ("llama-tied", "text-generation", {"dtype": "float32"}),
    "attention": ("llama-tied", "text-generation", {"attn_implementation": "eager", "use_cache": False}),
    "device map": ("llama-tied", "feature-extraction", {"device_map": "cpu", "output_hidden_states": True}),
    "labels": ("llama-tied", "text-classification", {"id2label": {0: "x", 1: "y", 2: "z"}}),
    "labels of tokens": ("bert", "token-classification", {"num_labels": 5}),
    "encoder": ("bert", "feature-extraction", {"dtype": "float16", "attn_implementation": "eager"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "task", "arguments"), PIPELINES.values(), ids=PIPELINES)
def test_model_kwargs_of_a_pipeline_mean_what_they_mean_on_the_base(
    zoo: Zoo, tmp_path: Path, family: str, task: str, arguments: dict[str, Any]
) -> None:
    from transformers import pipeline

    base = zoo.models(family).base
    recipe = save_recipe(zoo, tmp_path / "recipe", family)
    theirs = pipeline(task, model=str(base), tokenizer=str(base), device="cpu", model_kwargs=dict(arguments)).model
    ours = pipeline(task, model=str(recipe), device="cpu", model_kwargs=dict(arguments)).model
    assert type(ours) is type(theirs)
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.dtype == theirs.dtype
    assert list(ours.dem.coefficients.values()) == [0.3, 0.6]


@pytest.mark.filterwarnings("ignore")
def test_model_kwargs_that_no_model_has_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import pipeline

    recipe = save_recipe(zoo, tmp_path / "recipe")
    with pytest.raises(ValueError, match="unexpected keyword argument 'nonsense'"):
        pipeline("text-generation", model=str(recipe), model_kwargs={"nonsense": 1})


def test_the_recipes_own_generation_config(zoo: Zoo, tmp_path: Path) -> None:
    recipe = save_recipe(zoo, tmp_path / "recipe")
    edit_json(recipe / "generation_config.json", max_length=55)
    assert DEMModel.from_pretrained(recipe).generation_config.max_length == 55
    (recipe / "generation_config.json").unlink()
    assert DEMModel.from_pretrained(recipe).generation_config.max_length == 37


def test_a_tokenizer_that_names_no_class_is_that_of_the_base(zoo: Zoo, tmp_path: Path) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(zoo.models("bert").base, base)
    for path in base.glob("tokenizer*"):
        path.unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(59))]
    (base / "vocab.txt").write_text("\n".join(words))
    BertWordPieceTokenizer(str(base / "vocab.txt")).save(str(base / "tokenizer.json"))
    (base / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    recipe = tmp_path / "recipe"
    DEMModel.from_pretrained(base, vectors={str(zoo.vector("bert")): 0.5}).dem.save_pretrained(recipe)
    ours, theirs = AutoTokenizer.from_pretrained(recipe), AutoTokenizer.from_pretrained(base)
    assert type(ours) is type(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.mask_token == "[MASK]"
    assert ours("w1 w2")["input_ids"] == theirs("w1 w2")["input_ids"]


TOY_CONFIG = """from transformers import LlamaConfig
class ToyConfig(LlamaConfig):
    model_type = "toy"
"""
TOY_MODEL = """from transformers import LlamaForCausalLM, LlamaModel
from .configuration_toy import ToyConfig
class ToyModel(LlamaModel):
    config_class = ToyConfig
class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig
"""


@pytest.mark.filterwarnings("ignore")
def test_remote_code_takes_the_class_of_the_architecture(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(zoo.models("llama-tied").base, base)
    (base / "configuration_toy.py").write_text(TOY_CONFIG)
    (base / "modeling_toy.py").write_text(TOY_MODEL)
    auto_map = {
        "AutoConfig": "configuration_toy.ToyConfig",
        "AutoModel": "modeling_toy.ToyModel",
        "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM",
    }
    edit_json(base / "config.json", model_type="toy", architectures=["ToyForCausalLM"], auto_map=auto_map)
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    model = DEMModel.from_pretrained(base, vectors=vectors, trust_remote_code=True)
    assert type(model).__name__ == "ToyForCausalLM"
    model.dem.save_pretrained(tmp_path / "recipe")
    for auto_class, name in ((AutoModel, "ToyModel"), (AutoModelForCausalLM, "ToyForCausalLM")):
        loaded = auto_class.from_pretrained(tmp_path / "recipe", trust_remote_code=True)
        assert type(loaded).__name__ == name


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_trl_takes_a_recipe(zoo: Zoo, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    recipe = save_recipe(zoo, tmp_path / "recipe")
    config = SFTConfig(str(tmp_path / "run"), report_to="none", use_cpu=True, bf16=False)
    trainer = SFTTrainer(str(recipe), config, train_dataset=Dataset.from_list([{"text": "w1 w2"}]))
    assert list(trainer.model.dem.coefficients.values()) == [0.3, 0.6]


def test_recipe_is_the_config_class(zoo: Zoo, tmp_path: Path) -> None:
    recipe = DEMConfig.from_pretrained(save_recipe(zoo, tmp_path / "recipe"))
    assert recipe.architectures == ("LlamaForCausalLM",)
    assert (tmp_path / "recipe" / "config.json").stat().st_size < 5000
