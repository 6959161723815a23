"""Checkpoints of real size as sparse files: real headers, and no data but the first bytes of each tensor."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIZES = {"BF16": 2, "F32": 4}
_LIMIT = 5 * 10**9  # bytes of one file


def write_sparse(folder: Path, shapes: Mapping[str, Sequence[int]], dtype: str, name: str = "model") -> None:
    """Write tensors of some shapes into files of at most 5 GB, with an index if there are several."""
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for key, shape in shapes.items():
        nbytes = SIZES[dtype] * math.prod(shape)
        if end + nbytes > _LIMIT:
            shards.append({})
            end = 0
        shards[-1][key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    weight_map = {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards, 1):
        file = f"{name}.safetensors" if len(shards) == 1 else f"{name}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write(path: Path, shard: Mapping[str, Any]) -> None:
    """Write one file. Tensors begin with different bytes, so that none is taken for a copy of another one."""
    header = json.dumps({"__metadata__": {"format": "pt"}, **shard}).encode()
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for number, record in enumerate(shard.values(), 1):
            file.seek(start + record["data_offsets"][0])
            file.write(number.to_bytes(2, "little"))
        file.truncate(start + max(record["data_offsets"][1] for record in shard.values()))


def llama_7b(folder: Path) -> Path:
    """Write a checkpoint with the shapes of Llama 2 of 7B, in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    write_sparse(folder, shapes, "BF16")
    config.save_pretrained(folder)
    return folder


def lora(folder: Path, shapes: Mapping[str, Sequence[int]], rank: int) -> Path:
    """Write a PEFT LoRA on matrices of some shapes, in float32."""
    factors = {}
    for name, (rows, columns) in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{module}.lora_A.weight"] = (rank, columns)
        factors[f"{module}.lora_B.weight"] = (rows, rank)
    write_sparse(folder, factors, "F32", "adapter_model")
    modules = sorted({name.split(".")[-2] for name in shapes})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    return folder
