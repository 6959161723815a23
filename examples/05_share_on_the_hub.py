"""Share everything on the Hub: train, push three vectors, search, push the recipe, and load it with an empty cache.

You will see: three small repositories of vectors, the coefficients that were found, and the same model loaded in a
fresh process that knows only the name of the recipe. Needs a login (`hf auth login`). Without one, `python -m
tests.fake_hub` in a checkout starts a Hub on your own machine and prints how to use it. Runs in half a minute on a CPU.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import LlamaConfig, LlamaForCausalLM

from dem_hub import DistributionVector, search_coefficients

me = HfApi().whoami()["name"]
random.seed(0)
torch.manual_seed(0)
sources = {
    "sums": lambda: "".join(
        f"{a}+{b}={a + b};" for a, b in ((random.randrange(50), random.randrange(50)) for _ in range(12))
    ),
    "words": lambda: " ".join(random.choice(["red", "green", "blue", "one", "two", "three"]) for _ in range(20)),
    "lists": lambda: "".join(f"[{','.join('xyz'[i % 3] for i in range(random.randrange(1, 9)))}]" for _ in range(8)),
}


def rows(name: str, count: int) -> list[list[int]]:
    """Return the token ids (bytes) of texts of one kind."""
    return [list(sources[name]().encode())[:64] for _ in range(count)]


def train(model: LlamaForCausalLM, data: list[list[int]], steps: int) -> LlamaForCausalLM:
    """Train a model for a few steps of AdamW, one text each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        ids = torch.tensor([data[step % len(data)]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# Push a base that was trained a little on all texts. Then fine-tune it on each kind of text, and push only the vector.
config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
base = train(LlamaForCausalLM(config), [row for name in sources for row in rows(name, 10)], 60)
base.push_to_hub(f"{me}/tiny-base")
for name in sources:
    with tempfile.TemporaryDirectory() as folder:
        train(LlamaForCausalLM.from_pretrained(f"{me}/tiny-base"), rows(name, 40), 80).save_pretrained(folder)
        vector = DistributionVector.extract(f"{me}/tiny-base", folder, codec="lrsign")
        print(name, vector.push_to_hub(f"{me}/tiny-{name}").commit_url)

# Search for the coefficients by perplexity on texts that nothing was trained on, and push the recipe.
validation = {name: [{"input_ids": row} for row in rows(name, 20)] for name in sources}
result = search_coefficients(f"{me}/tiny-base", [f"{me}/tiny-{name}" for name in sources], validation)
print({name: round(value, 2) for name, value in result.config.coefficients.items()})
print(result.config.push_to_hub(f"{me}/tiny-dem").commit_url)

# Load the recipe as another user would, on another machine.
program = (
    "from dem_hub import DEMModel\nfrom transformers import AutoModelForCausalLM\n"
    f"one, two = DEMModel.from_pretrained('{me}/tiny-dem'), AutoModelForCausalLM.from_pretrained('{me}/tiny-dem')\n"
    "assert all(first.equal(second) for first, second in zip(one.parameters(), two.parameters(), strict=True))\n"
    "print(type(two).__name__, two.dem)"
)
with tempfile.TemporaryDirectory() as home:
    token = {"HF_TOKEN": os.environ["HF_TOKEN"]} if "HF_TOKEN" in os.environ else {}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HF_HOME": str(Path(home)), **token}, text=True, stdout=-1
    )
print(done.stdout)

assert done.returncode == 0 and done.stdout.startswith("LlamaForCausalLM")
