"""Recipes through transformers' Auto classes, its tokenizer and its pipeline."""

import json
import subprocess
import sys
from pathlib import Path

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
    assert results["config"] == "dem"
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


def test_recipe_is_the_config_class(zoo: Zoo, tmp_path: Path) -> None:
    recipe = DEMConfig.from_pretrained(save_recipe(zoo, tmp_path / "recipe"))
    assert recipe.architectures == ("LlamaForCausalLM",)
    assert (tmp_path / "recipe" / "config.json").stat().st_size < 5000
