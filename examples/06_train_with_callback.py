"""Train with your own Trainer and one callback, which saves a vector next to the checkpoints.

You will see: a full fine-tune and a LoRA of the same tiny base, each with `DEMCallback`; the growing norm of the vector
in the Trainer's logs; a vector that equals the one extracted from the saved checkpoint, bit for bit; and both vectors
loaded together. With `push_to_hub=True, hub_model_id="me/up-vector"` each save is also pushed, in the background.
Takes about 15 seconds on a CPU.
"""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dem_hub import DEMCallback, DEMModel, DistributionVector

folder = Path(tempfile.mkdtemp())
WORDS, LENGTH = 64, 32


def sequences(step: int, count: int) -> list[dict[str, list[int]]]:
    """Return rows of token ids that go up or down by `step`, from a random start."""
    starts = torch.randint(WORDS, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = []
    for start in starts:
        ids = [(start + step * place) % WORDS for place in range(LENGTH)]
        rows.append({"input_ids": ids, "labels": ids})
    return rows


def train(
    model: torch.nn.Module, name: str, step: int, callback: DEMCallback, learning_rate: float
) -> list[dict[str, float]]:
    """Thirty steps and three saves; returns what the callback logged."""
    arguments = TrainingArguments(
        str(folder / name), max_steps=30, save_steps=10, logging_steps=10, learning_rate=learning_rate, per_device_train_batch_size=16,
        lr_scheduler_type="constant", save_only_model=True, report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=sequences(step, 512))
    # trainer.add_callback(callback) works too. Attached, TensorBoard, W&B and trackio also show the callback's numbers.
    callback.attach(trainer)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "dem/norm" in entry]


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)
LlamaForCausalLM(config).save_pretrained(folder / "base")

# Train all weights. The vector is their difference to the base's weights, which are read from the checkpoint.
full = DEMCallback(folder / "base", when="save", codec="dense", dtype="float32", datasets=["counting up"])
for entry in train(LlamaForCausalLM.from_pretrained(folder / "base"), "up", 1, full, 2e-3):
    print(f"up    step {entry['step']:2}   norm {entry['dem/norm']:.3f}   {entry['dem/bytes'] / 1000:.0f} kB")

# Train a LoRA. The vector is the adapter itself, as PEFT saves it.
lora = DEMCallback(folder / "base", when="save", datasets=["counting down"])
adapted = get_peft_model(
    LlamaForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=8, target_modules="all-linear")
)
for entry in train(adapted, "down", -1, lora, 5e-3):
    print(f"down  step {entry['step']:2}   norm {entry['dem/norm']:.3f}   {entry['dem/bytes'] / 1000:.0f} kB")

model = DEMModel.from_pretrained(folder / "base", vectors={str(full.folder): 0.5, str(lora.folder): 0.5})
print(type(model).__name__, "with", len(model.dem.coefficients), "vectors;", full.vector.config.training["datasets"])

extracted = DistributionVector.extract(folder / "base", folder / "up" / "checkpoint-30", codec="dense", dtype="float32")
assert full.vector.sha256 == extracted.sha256
