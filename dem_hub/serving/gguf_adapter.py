"""A LoRA adapter in GGUF, which llama.cpp and Ollama read.

    lora_a = A, lora_b = B, adapter.lora.alpha = rank, so that llama.cpp's scale (alpha / rank) is 1

Names come from the name maps of the package `gguf`. llama.cpp rotates halves of a head where transformers rotates
neighbours, so its converter permutes the rows of Llama's q and k; the same is done to B. llama.cpp's own
`convert_lora_to_gguf.py` knows all architectures and is no package; here are those whose converter does nothing else to
a linear layer.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.errors import AdapterError, MissingDependencyError, refuse
from dem_hub.files.atomic import atomic_file
from dem_hub.serving.adapter_factors import architecture_in, read_factors


@dataclass(frozen=True)
class _Family:
    """What llama.cpp calls an architecture, and whether its converter permutes the rows of q and k."""

    name: str
    is_permuted: bool = False


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", is_permuted=True),
    "MistralForCausalLM": _Family("llama", is_permuted=True),
    "Qwen2ForCausalLM": _Family("qwen2"),
    "Qwen3ForCausalLM": _Family("qwen3"),
    "GemmaForCausalLM": _Family("gemma"),
    "Gemma2ForCausalLM": _Family("gemma2"),
    "Gemma3ForCausalLM": _Family("gemma3"),
}


def check_gguf(base: Base) -> None:
    """Check that adapters of a base can be written.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If the package `gguf` is not installed.
        [`~dem_hub.errors.AdapterError`]: If the base is of another architecture.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("GGUF needs the package gguf: pip install 'dem-hub[gguf]'") from error
    _family_of(base)


def write_gguf(adapter: Path, base: Base, target: Path) -> None:
    """Write a PEFT adapter that [`export_adapter`] has made as a GGUF file.

    Args:
        adapter (`Path`): Folder of the adapter. All of its modules have one rank, and the scale is 1.
        base ([`Base`]): The base.
        target (`Path`): The file, which appears complete or not at all.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If the package `gguf` is not installed.
        [`~dem_hub.errors.AdapterError`]: If the base is of another architecture, or llama.cpp has no tensor for a module.
    """
    check_gguf(base)
    import gguf

    family = _family_of(base)
    config = read_config(base.folder)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    factors = read_factors(adapter)
    unknown = [module for module in factors if names.get_name(module) is None]
    if unknown:
        refuse(AdapterError, f"llama.cpp's {family.name} has no tensor for some modules.", unknown, _OTHER_WAY)
    rank = next(iter(factors.values()))[0].shape[0]
    with atomic_file(target) as partial, closing(gguf.GGUFWriter(partial, family.name)) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        for module, (a, b) in factors.items():
            heads = _permuted_heads(module, config) if family.is_permuted else None
            rows = b if heads is None else permuted_rows(b, heads)
            name = f"{names.get_name(module)}.weight"
            _add(writer, f"{name}.lora_a", a)
            _add(writer, f"{name}.lora_b", rows)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


_OTHER_WAY = (
    "Export a PEFT adapter, and convert it with llama.cpp's own script: dem-hub export MODEL -o adapter, then "
    "convert_lora_to_gguf.py adapter --base BASE_FOLDER."
)


def _family_of(base: Base) -> _Family:
    """Return the family of a base, or refuse it."""
    return _FAMILIES[architecture_in(base, _FAMILIES, "GGUF adapters", _OTHER_WAY)]


def _permuted_heads(module: str, config: dict[str, Any]) -> int | None:
    """Return the number of heads of a module whose rows are permuted; `None` if they are not."""
    if module.endswith(".q_proj"):
        return int(config["num_attention_heads"])
    if module.endswith(".k_proj"):
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def permuted_rows(values: Tensor, heads: int) -> Tensor:
    """Return the rows of a matrix (R, C) in llama.cpp's order: within each head, both halves in turns.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.serving.gguf_adapter import permuted_rows
    >>> permuted_rows(torch.arange(8).reshape(8, 1), heads=2).flatten().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]

    ```
    """
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add(writer: Any, name: str, values: Tensor) -> None:
    """Add a tensor in its own dtype. numpy has no bfloat16, so its bytes are handed over."""
    import gguf

    if values.dtype == torch.bfloat16:
        array = values.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, array.view(_WrittenByPython), raw_dtype=gguf.GGMLQuantizationType.BF16)
        return
    writer.add_tensor(name, values.contiguous().numpy().view(_WrittenByPython))


class _WrittenByPython(np.ndarray[Any, Any]):
    """An array that is written like any bytes. numpy's own `tofile` is silent if its buffer does not fit on the disk."""

    def tofile(self, file: Any, sep: str = "", format: str = "%s") -> None:  # noqa: ARG002  numpy's
        """Write the elements into a file that is open."""
        file.write(self.tobytes())
