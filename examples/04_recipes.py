"""Save a recipe, a file of a few kB that loads like any model, and export the merged model for others.

You will see: a recipe (base, vectors and coefficients) that transformers' own Auto class loads, and the same model
exported as an ordinary folder with `dem-hub merge`, equal bit for bit. Runs in a few seconds on a CPU.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dem_hub import DEMConfig, DEMModel, DistributionVector
from dem_hub.cli.app import main

folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, dtype="bfloat16"
)
base = LlamaForCausalLM(config).to(torch.bfloat16)
base.save_pretrained(folder / "base")
for name in ("maths", "chat"):
    finetuned = LlamaForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.003)
    finetuned.save_pretrained(folder / "finetuned")
    vector = DistributionVector.extract(folder / "base", folder / "finetuned", codec="lowrank", rank=8)
    vector.save_pretrained(folder / name)

# The recipe of a loaded model.
model = DEMModel.from_pretrained(folder / "base", vectors={str(folder / "maths"): 0.4, str(folder / "chat"): 0.3})
model.dem.save_pretrained(folder / "recipe")
recipe = DEMConfig.from_pretrained(folder / "recipe")
size = sum(path.stat().st_size for path in (folder / "recipe").iterdir())
print(f"recipe: {size:,} bytes, {list(recipe.coefficients.values())}")

# transformers loads the recipe, because dem_hub is imported. The merged model loads without dem_hub.
loaded = AutoModelForCausalLM.from_pretrained(folder / "recipe")
status = main(["merge", str(folder / "recipe"), "-o", str(folder / "merged")])
merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
triples = list(zip(model.parameters(), loaded.parameters(), merged.parameters(), strict=True))
print(f"{type(loaded).__name__} three times, {len(triples)} tensors each")

assert status == 0
assert all(torch.equal(ours, theirs) and torch.equal(ours, exported) for ours, theirs, exported in triples)
