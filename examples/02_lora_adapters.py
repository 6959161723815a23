"""Sum two LoRA adapters exactly, without SVD or conversion: every LoRA adapter is a distribution vector.

You will see: two adapters as PEFT saves them, one model that is their weighted sum, and the error of PEFT's own
`add_weighted_adapter(combination_type="linear")`, which adds the factors. Runs in seconds on a CPU.
"""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dem_hub import DEMModel

folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(config).save_pretrained(folder / "base")

# Two adapters of rank 4, as after training. (Their B is random here.)
for seed, name in enumerate(("maths", "chat")):
    torch.manual_seed(seed)
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    adapted = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    )
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / name)

# base + 0.5 * maths + 0.3 * chat, with unchanged adapters.
coefficients = {str(folder / "maths"): 0.5, str(folder / "chat"): 0.3}
model = DEMModel.from_pretrained(folder / "base", vectors=coefficients)

# Compute the same sum by hand in float64, and with PEFT.
peft = PeftModel.from_pretrained(
    LlamaForCausalLM.from_pretrained(folder / "base"), folder / "maths", adapter_name="maths"
)
peft.load_adapter(folder / "chat", adapter_name="chat")
layer = peft.base_model.model.model.layers[0].self_attn.q_proj
exact = layer.base_layer.weight.double()
for name, coefficient in (("maths", 0.5), ("chat", 0.3)):
    left = layer.lora_B[name].weight.double()
    right = layer.lora_A[name].weight.double()
    exact = exact + coefficient * layer.scaling[name] * left @ right
peft.add_weighted_adapter(["maths", "chat"], [0.5, 0.3], "sum", combination_type="linear")
linear = layer.base_layer.weight.double() + layer.get_delta_weight("sum").double()

size = (exact - layer.base_layer.weight.double()).norm()
ours = (model.model.layers[0].self_attn.q_proj.weight.double() - exact).norm() / size
theirs = (linear - exact).norm() / size
print(f"error of the summed delta: dem_hub {ours:.1e}, PEFT linear {theirs:.2f}")

assert ours < 1e-5 < 0.1 < theirs
