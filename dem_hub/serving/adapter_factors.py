"""The factors of a PEFT adapter that was exported, for those that write it in another format."""

from collections.abc import Collection
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.errors import AdapterError
from dem_hub.files.names import ADAPTER_WEIGHTS
from dem_hub.vectors.lora.writer import PEFT_PREFIX

_A = ".lora_A.weight"
_B = ".lora_B.weight"


def read_factors(adapter: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read A (rank, in) and B (out, rank) of each module, by the names of the modules in alphabetical order.

    Args:
        adapter (`Path`): Folder of an adapter that [`export_adapter`] has made.
    """
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    modules = sorted(name.removeprefix(PEFT_PREFIX).removesuffix(_A) for name in tensors if name.endswith(_A))
    return {
        module: (tensors[f"{PEFT_PREFIX}{module}{_A}"], tensors[f"{PEFT_PREFIX}{module}{_B}"]) for module in modules
    }


def architecture_in(base: Base, known: Collection[str], what: str, other_way: str) -> str:
    """Return the architecture of a base, if it is one of those that a format is written for.

    Args:
        base ([`Base`]): The base.
        known (`Collection[str]`): Names of architectures, such as `"LlamaForCausalLM"`.
        what (`str`): What is written, in the plural, for the message.
        other_way (`str`): What to do with another architecture, for the message.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If it is another one.
    """
    architectures = read_config(base.folder).get("architectures") or ["no architecture"]
    if architectures[0] not in known:
        raise AdapterError(
            f"'{base}' is {architectures[0]}; {what} are written for {', '.join(sorted(known))}. {other_way}"
        )
    return str(architectures[0])
