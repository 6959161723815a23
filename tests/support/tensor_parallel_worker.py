"""The program of every process of `test_tensor_parallel.py`: load a DEM in parts, and run it.

It is started with a JSON object, once for each rank. It writes into files the shapes of its own shards and the logits of the model.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig

from dem_hub import DEMModel


def main() -> None:
    """Load and run the model, and write the results of this rank."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    config = DistributedConfig(**task["parallel"])
    model = DEMModel.from_pretrained(
        task["base"], vectors=task["vectors"], dtype="float32", distributed_config=config
    ).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 7, 9, 11]])).logits
    logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
    shapes = {name: list(getattr(p, "to_local", lambda p=p: p)().shape) for name, p in model.named_parameters()}
    seen = {"logits": logits.tolist(), "shapes": shapes}
    Path(task["out"], f"{dist.get_rank()}.json").write_text(json.dumps(seen), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
