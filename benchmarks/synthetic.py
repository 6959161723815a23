"""Synthetic Llama checkpoints and LoRAs of any size, written tensor by tensor: random weights, and changes like those
of fine-tunes.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.writer import TensorWriter
from dem_hub.files.atomic import atomic_folder

RANK = 16
Change = Literal["every", "lora"]


@dataclass(frozen=True)
class Size:
    """The shape of a Llama."""

    width: int
    inner: int
    vocabulary: int
    layers: int

    @property
    def largest(self) -> int:
        """Return the bytes of the largest tensor, an embedding, in float32."""
        return 4 * self.width * self.vocabulary


def make_checkpoint(
    folder: Path,
    size: Size,
    change: Change | None = None,
    base: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Write a checkpoint in bf16: random, or a base changed in "every" matrix or by a "lora". An existing one is
    kept. A device draws numbers of its own.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if folder.is_dir():
        return folder
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=16, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    source = Checkpoint(base) if base is not None else None
    generator = torch.Generator(device).manual_seed(3 * seed + {None: 0, "every": 1, "lora": 2}[change])
    print(f"writing {folder}", file=sys.stderr)
    with atomic_folder(folder) as partial:
        config.save_pretrained(partial)
        writer = TensorWriter(partial)
        for name, shape in shapes.items():
            tensor = torch.ones(shape) if source is None else source.read(name).to(device).float()
            if len(shape) == 2 and source is None:
                tensor = torch.randn(shape, generator=generator, device=device).mul_(0.02)
            elif len(shape) == 2 and change == "every":
                tensor += torch.randn(shape, generator=generator, device=device).mul_(0.0005)
            elif len(shape) == 2 and ".layers." in name:
                left = torch.randn(shape[0], RANK, generator=generator, device=device)
                right = torch.randn(RANK, shape[1], generator=generator, device=device)
                tensor.addmm_(left, right, alpha=0.001 / RANK**0.5)
            writer.write(name, tensor.bfloat16())
        writer.close()
    return folder


def make_adapter(folder: Path, base: Path, rank: int = RANK, seed: int = 0) -> Path:
    """Write a PEFT LoRA with random factors on all linear layers. An existing one is kept."""
    if folder.is_dir():
        return folder
    generator = torch.Generator().manual_seed(seed)
    tensors, modules = {}, set()
    for name, info in Checkpoint(base).items():
        if len(info.shape) == 2 and ".layers." in name:
            module = name.removesuffix(".weight")
            modules.add(module.rpartition(".")[2])
            for letter, shape in (("A", (rank, info.shape[1])), ("B", (info.shape[0], rank))):
                tensors[f"base_model.model.{module}.lora_{letter}.weight"] = (
                    torch.randn(shape, generator=generator) * 0.01
                )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(modules),
    }
    with atomic_folder(folder) as partial:
        save_file(tensors, partial / "adapter_model.safetensors")
        (partial / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    return folder
