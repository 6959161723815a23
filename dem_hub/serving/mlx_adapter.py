"""A LoRA adapter in the form of mlx-lm, which loads it on a Mac with `load_adapters`.

    lora_a = A^T (in, rank), lora_b = B^T (rank, out), scale = 1

mlx-lm takes one rank and one scale for all modules, and the names of its own models. Those of the families below are the
names of transformers. `keys` has the full name of each module, so that no other module gets a LoRA.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.errors import AdapterError
from dem_hub.files.atomic import atomic_folder, write_text
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MLX_WEIGHTS
from dem_hub.files.strict_json import dump_json
from dem_hub.vectors.lora.writer import PEFT_PREFIX

_A = ".lora_A.weight"
_B = ".lora_B.weight"

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
    architectures = read_config(base.folder).get("architectures") or ["no architecture"]
    if architectures[0] not in _FAMILIES:
        raise AdapterError(
            f"'{base}' is {architectures[0]}; adapters of mlx-lm are written for {', '.join(_FAMILIES)}. Merge a model "
            "(dem-hub merge), and convert that with mlx_lm.convert."
        )


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
    factors = load_file(adapter / ADAPTER_WEIGHTS)
    modules = sorted(name.removeprefix(PEFT_PREFIX).removesuffix(_A) for name in factors if name.endswith(_A))
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_a"] = factors[f"{PEFT_PREFIX}{module}{_A}"].T.contiguous()
        tensors[f"{module}.lora_b"] = factors[f"{PEFT_PREFIX}{module}{_B}"].T.contiguous()
    rank = tensors[f"{modules[0]}.lora_a"].shape[1]
    config = {
        "fine_tune_type": "lora",
        "model": base.record.repo_id,
        "num_layers": read_config(base.folder)["num_hidden_layers"],
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": modules},
    }
    # PEFT's weights of an older export would not belong to the new config.
    with atomic_folder(target, {ADAPTER_WEIGHTS}.__contains__) as folder:
        save_file(tensors, folder / MLX_WEIGHTS, {"format": "mlx"})
        write_text(folder / ADAPTER_CONFIG, dump_json(config))
