"""Extract the vector of a fine-tune, add it to its base again, and change its coefficient.

You will see: a vector extracted from two checkpoints without building a model, the fine-tune rebuilt from it bit for
bit, and the coefficient changed in place. The models are tiny and made here. Runs in a few seconds on a CPU.
"""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dem_hub import DEMModel, DistributionVector

folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, dtype="bfloat16"
)

# A base, and a "fine-tune" of it: every weight moved a little.
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(folder / "base")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.003)
model.save_pretrained(folder / "finetuned")

# theta_i - theta_0, complete and in float32. For a small file use codec="lowrank", rank=16.
vector = DistributionVector.extract(folder / "base", folder / "finetuned", codec="dense", dtype="float32")
vector.save_pretrained(folder / "vector")
print(f"vector: {vector.nbytes:,} bytes, {len(vector.config.tensors)} tensors")

# Coefficient 1 is the fine-tune again.
name = str(folder / "vector")
merged = DEMModel.from_pretrained(folder / "base", vectors={name: 1.0})
finetuned = LlamaForCausalLM.from_pretrained(folder / "finetuned")
same = all(torch.equal(ours, theirs) for ours, theirs in zip(merged.parameters(), finetuned.parameters(), strict=True))
print(f"{type(merged).__name__} in {merged.dtype}, the fine-tune bit for bit: {same}")

# Change the coefficient in place. The result has the same bits as a fresh load.
merged.dem.set_coefficients({name: 0.4})
fresh = DEMModel.from_pretrained(folder / "base", vectors={name: 0.4})
exact = all(torch.equal(ours, theirs) for ours, theirs in zip(merged.parameters(), fresh.parameters(), strict=True))
print(f"after set_coefficients: {merged.dem.coefficients}, same as a fresh load: {exact}")

assert same and exact
