"""Write low-rank factors as a PEFT LoRA adapter, tensor by tensor.

The factors already contain every scale, so `lora_alpha` equals the rank of each module, and a reader adds exactly
B @ A. Readers differ in what they take for the scale of a module: PEFT takes `alpha_pattern / rank_pattern`, vLLM
takes `lora_alpha / r`, and llama.cpp takes `lora_alpha` divided by the rank of the tensor. All three are 1 if all
modules have one rank. So lower ranks are padded with zeros up to the highest one, which changes no product.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from dem_hub.checkpoints.architecture import Architecture, Module
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.tasks import task_of
from dem_hub.checkpoints.writer import UNLIMITED, TensorWriter
from dem_hub.files.atomic import write_text
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SAFETENSORS
from dem_hub.files.strict_json import dump_json
from dem_hub.hub.references import BaseRecord

logger = logging.getLogger(__name__)

# PEFT wraps a model twice (`PeftModel.base_model.model`), so the names of its parameters begin with this prefix.
PEFT_PREFIX = "base_model.model."

# The ends of the names of both factors.
_A = ".lora_A.weight"
_B = ".lora_B.weight"


class AdapterWriter:
    """Writer of the two files of an adapter. It leaves no file if no factors were written.

    Args:
        folder (`Path`): Folder for the files.
        architecture (`Architecture`, *optional*): The architecture of the base. Without it no tensor has a module.
    """

    def __init__(self, folder: Path, architecture: Architecture | None) -> None:
        self._folder = folder
        self._architecture = architecture
        # PEFT reads an adapter from a single file, so it is never split.
        self._factors = TensorWriter(folder, ADAPTER_WEIGHTS.removesuffix(SAFETENSORS), UNLIMITED)
        self._ranks: dict[str, int] = {}
        self._sizes: dict[str, int] = {}  # bytes of both factors of each module

    def module(self, key: str) -> Module | None:
        """Return the module whose LoRA can change a tensor of the checkpoint.

        Args:
            key (`str`): The tensor's key in the checkpoint.

        Returns:
            `Module` or `None`: `None` if no LoRA of matrices can change the tensor, for instance a norm or a convolution.
        """
        if self._architecture is None:
            return None
        module = self._architecture.modules.get(key)
        if module is None or module.kind in ("embedding", "convolution"):
            return None
        # PEFT would change one side of a tie alone, and the tensor is both.
        if module.name in self._architecture.tied:
            return None
        return module

    def write(self, module: Module, left: Tensor, right: Tensor) -> None:
        """Write the factors of one module.

        Args:
            module (`Module`): The module, from [`AdapterWriter.module`].
            left, right (`torch.Tensor`): Matrices (R, K) and (K, C). Their product is the delta of the tensor in
                the checkpoint.
        """
        a_name, b_name = factor_names(module.name)
        a = right
        b = left
        if module.transposed:
            a = left.T
            b = right.T
        self._factors.write(a_name, a)
        self._factors.write(b_name, b)
        self._ranks[module.name] = left.shape[1]
        self._sizes[module.name] = left.nbytes + right.nbytes

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each module that was written."""
        return tuple(self._ranks.values())

    def close(self, base: BaseRecord, *, most_padding: float = math.inf) -> list[Path]:
        """Finish the files.

        Args:
            base ([`BaseRecord`]): The base that the adapter's config names.
            most_padding (`float`, *optional*): The largest part of the factors' bytes that zeros may add to them.
                Beyond it, each module keeps its rank (`rank_pattern`). Without it all modules get one rank.

        Returns:
            `list[Path]`: The files that were written.
        """
        files = self._factors.close()
        if self._ranks:
            assert self._architecture is not None
            highest = max(self._ranks.values())
            if min(self._ranks.values()) < highest:
                padded_bytes = sum(size * highest // self._ranks[name] for name, size in self._sizes.items())
                if padded_bytes <= (1 + most_padding) * sum(self._sizes.values()):
                    self._pad(highest)
                else:
                    logger.warning(
                        "The adapter has ranks of %d to %d. PEFT and vLLM read it as it is, and llama.cpp scales the "
                        "lower ranks wrongly. dem-hub export without --rank-pattern writes one rank, for every reader.",
                        min(self._ranks.values()),
                        highest,
                    )
            path = self._folder / ADAPTER_CONFIG
            config = adapter_config(self._architecture, self._ranks, base.repo_id, base.commit)
            write_text(path, dump_json(config))
            files.append(path)
        return files

    def _pad(self, rank: int) -> None:
        """Write the factors again, with zeros added to the lower ranks."""
        name = ADAPTER_WEIGHTS
        unpadded = self._folder / f".unpadded.{name}"
        (self._folder / name).replace(unpadded)
        factors = Checkpoint(unpadded)
        padded = TensorWriter(self._folder, name.removesuffix(SAFETENSORS), UNLIMITED)
        for factor in factors:
            padded.write(factor, _padded(factors.read(factor), factor, rank))
        padded.close()
        unpadded.unlink()
        self._ranks = dict.fromkeys(self._ranks, rank)


def adapter_config(
    architecture: Architecture, ranks: Mapping[str, int], base_id: str | None, revision: str | None
) -> dict[str, Any]:
    """Return the `adapter_config.json` for factors that need no scale: alpha = rank for every module.

    Args:
        architecture (`Architecture`): The architecture of the base.
        ranks (`Mapping[str, int]`): The rank of each module, by its name in the model.
        base_id, revision (`str`, *optional*): The base that PEFT will load.

    Returns:
        `dict[str, Any]`: The content of the file.
    """
    highest_rank = max(ranks.values())
    lower_ranks = {name: rank for name, rank in sorted(ranks.items()) if rank != highest_rank}
    kinds = {module.name: module.kind for module in architecture.modules.values()}
    return {
        "peft_type": "LORA",
        "task_type": _task_type(architecture),
        "base_model_name_or_path": base_id,
        "revision": revision,
        "inference_mode": True,
        "r": highest_rank,
        "lora_alpha": highest_rank,
        "rank_pattern": lower_ranks,
        "alpha_pattern": lower_ranks,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(kinds[name] == "conv1d" for name in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": None,
    }


def _task_type(architecture: Architecture) -> str | None:
    """Return PEFT's `task_type` for a model, which decides the class that PEFT wraps the model in.

    Without one the class is a plain `PeftModel`, which hands every input on. The other classes hand on `input_ids`,
    which a speech model does not take, and the one for classifiers adds a head to train.
    """
    task = task_of(architecture.name)
    if task is None:
        return None
    if task.loader == "AutoModelForCausalLM":
        return "CAUSAL_LM"
    # transformers puts decoders that hear into the same mapping.
    if task.loader == "AutoModelForSeq2SeqLM" and architecture.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return None


def _padded(factor: Tensor, name: str, rank: int) -> Tensor:
    """Return A with zero rows, or B with zero columns, up to a rank."""
    if name.endswith(_A):
        return pad(factor, (0, 0, 0, rank - factor.shape[0]))
    return pad(factor, (0, rank - factor.shape[1]))


def factor_names(module: str) -> tuple[str, str]:
    """Return the names of A and B of a module in `adapter_model.safetensors`, as PEFT writes them."""
    return f"{PEFT_PREFIX}{module}{_A}", f"{PEFT_PREFIX}{module}{_B}"
