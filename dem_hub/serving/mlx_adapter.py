"""A LoRA adapter in the form of mlx-lm, which loads it on a Mac with `load_adapters`.

    lora_a = A^T (in, rank), lora_b = B^T (rank, out), scale = 1

mlx-lm takes one rank and one scale for all modules, and the names of its own models. Those of the families below are
the names of transformers. `keys` has the full name of each module, so that no other module gets a LoRA.
"""

from pathlib import Path

from safetensors.torch import save_file

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.writer import system_errors
from dem_hub.files.atomic import atomic_folder, write_text
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MLX_WEIGHTS
from dem_hub.files.strict_json import dump_json
from dem_hub.serving.adapter_factors import architecture_in, read_factors

_FAMILIES = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


def check_mlx(base: Base) -> None:
    """Check that adapters of a base can be written.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If it is of an architecture for which mlx-lm's names were not compared.
    """
    other_way = "Merge a model (dem-hub merge), and convert that with mlx_lm.convert."
    architecture_in(base, _FAMILIES, "adapters of mlx-lm", other_way)


def write_mlx(adapter: Path, base: Base, target: Path) -> None:
    """Write a PEFT adapter that [`export_adapter`] has made as mlx-lm reads it.

    Args:
        adapter (`Path`): Folder of the adapter. All of its modules have one rank, and the scale is 1.
        base ([`Base`]): The base.
        target (`Path`): The folder, which appears complete or not at all. An adapter in it is replaced.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If the base is of another architecture.
    """
    check_mlx(base)
    factors = read_factors(adapter)
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"{module}.lora_a"] = a.T.contiguous()
        tensors[f"{module}.lora_b"] = b.T.contiguous()
    rank = next(iter(factors.values()))[0].shape[0]
    config = {
        "fine_tune_type": "lora",
        "model": base.record.repo_id,
        "num_layers": read_config(base.folder)["num_hidden_layers"],
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": list(factors)},
    }
    # PEFT's weights of an older export would not belong to the new config.
    with atomic_folder(target, {ADAPTER_WEIGHTS}.__contains__) as folder, system_errors():
        save_file(tensors, folder / MLX_WEIGHTS, {"format": "mlx"})
        write_text(folder / ADAPTER_CONFIG, dump_json(config))
