"""Where the vector of a run comes from: the base it is measured against, and whether it is an adapter or a difference of weights."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import refuse_quantized
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs.encoder import Encoder
from dem_hub.errors import AdapterError, CheckpointError, ConfigError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_FILES, TRAINER_STATE, VECTOR_CONFIG
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_recipe
from dem_hub.training.gathering import Gathering
from dem_hub.training.live_model import LiveModel
from dem_hub.vectors.extraction import extract_tensors
from dem_hub.vectors.lora.reader import read_adapter_config, saves_one_side
from dem_hub.vectors.lora.writer import PEFT_PREFIX
from dem_hub.vectors.matching import match_tensors
from dem_hub.vectors.sidecars import write_training
from dem_hub.vectors.vector import DistributionVector

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A base, found before training, and the kind of the vector: the adapter itself, or the difference of all weights."""

    base: Base
    is_adapter: bool

    @classmethod
    def of(cls, name: VectorSource, gathering: Gathering, options: HubOptions) -> "Source":
        """Find the base, and make sure that the model in training has a vector on it.

        Raises:
            `CheckpointError`: a quantised base, or tensors that differ in name or shape. `AdapterError`: an adapter that does not fit.
            Everything that opening a base raises.
        """
        found = resolve(name, MODEL_FILES, options)
        refuse_quantized(found.folder, "base")
        base = Base(found)
        logger.info("The base is '%s', with the fingerprint %s.", base, base.fingerprint)  # worked out now, and kept
        why = _why_no_adapter(gathering, base)
        if why is None:
            return cls(base, is_adapter=True)
        _check_whole(gathering, base, why)
        return cls(base, is_adapter=False)

    def look_at_start(self, gathering: Gathering) -> None:
        """Warn of a model that is not the base before its first step; which commit it was loaded from, transformers does not keep."""
        differing = [] if _is_quantized(gathering.model) else LiveModel(gathering, self.base).differing(self.base)
        if differing:
            logger.warning(
                "Before its first step the model is not the base '%s': '%s' differs. The vector will not be what this run alone learns on "
                "that base. If the model was loaded from another revision, name it: DEMCallback(base_model='org/base@REVISION').",
                self.base,
                differing[0],
            )

    def open_others(self, recipe: VectorSource) -> list[DistributionVector]:
        """The vectors of a recipe, known to be on this base."""
        vectors = list(open_recipe(recipe).vectors)
        for vector in vectors:
            vector.deltas(self.base)
        return vectors

    def write(
        self,
        folder: Path,
        gathering: Gathering,
        encoder: Encoder,
        facts: Mapping[str, Any],
        libraries: Mapping[str, str],
        device: str | torch.device | None,
    ) -> None:
        """Write the vector of the model as it is."""
        if self.is_adapter:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                saved = save_adapter(gathering, Path(scratch))
                for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                    (saved / name).replace(folder / name)
            write_training(folder, facts, libraries)
            return
        config = extract_tensors(folder, self.base, LiveModel(gathering, self.base), encoder, device=device)
        config = replace(config, training=dict(facts), libraries={**config.libraries, **libraries})
        write_text(folder / VECTOR_CONFIG, config.to_json())


def base_name(model: Any) -> str:
    """What the model says that it was loaded from.

    Raises:
        `ConfigError`: it does not say, or it was loaded from another run's checkpoint.
    """
    adapters = getattr(model, "peft_config", {})
    named = [getattr(config, "base_model_name_or_path", None) for config in adapters.values()]
    name = next((name for name in named if name), None) or getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ConfigError(
            "The model does not say which base it was loaded from. Name it: DEMCallback(base_model='org/base')."
        )
    if (Path(name) / TRAINER_STATE).is_file():
        raise ConfigError(
            f"The model was loaded from '{name}', a checkpoint of a training run and hardly its base. Name the base: "
            "DEMCallback(base_model='org/base')."
        )
    return str(name)


def save_adapter(gathering: Gathering, folder: Path) -> Path:
    """Save the active adapter as PEFT does; returns the folder it is in."""
    model, adapter = gathering.model, _active(gathering.model)
    state = None
    if gathering.is_sharded:
        state = {name: gathering.read(name) for name, tensor in gathering.tensors.items() if tensor.requires_grad}
    if hasattr(model, "get_base_model"):
        model.save_pretrained(str(folder), selected_adapters=[adapter], state_dict=state)
        return folder if adapter == "default" else folder / adapter
    model.save_pretrained(str(folder), state_dict=state)
    return folder


def _active(model: Any) -> str:
    """The one adapter that is trained."""
    active = model.active_adapters
    names = list(active() if callable(active) else active)
    if len(names) != 1:
        raise AdapterError(
            f"{len(names)} adapters are active ({', '.join(names)}), and a vector is one. Train one at a time."
        )
    return str(names[0])


def _why_no_adapter(gathering: Gathering, base: Base) -> str | None:
    """Why what is trained is not an adapter that is a vector already; `None` where it is."""
    model = gathering.model
    if not (hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False)):
        return "no adapter"
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
        raise AdapterError(
            f"The run trains a prompt ({model.active_peft_config.peft_type}), which changes no weight of the base: it has no vector. "
            "Train a LoRA, or all weights."
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_adapter(gathering, Path(scratch))
        try:
            DistributionVector(Resolved.local(folder), verify=False).deltas(base)
            _refuse_one_side(read_adapter_config(folder), base)
            _refuse_more(gathering, Checkpoint(folder, index=ADAPTER_WEIGHTS))
        except AdapterError as error:
            return str(error)
    return None


def _is_quantized(model: Any) -> bool:
    return (
        getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, "hf_quantizer", None) is not None
    )


def _refuse_one_side(config: Mapping[str, Any], base: Base) -> None:
    """Refuse what looks like no change as long as it is not trained."""
    architecture = base.architecture
    for module in architecture.tied if architecture is not None else ():
        if architecture is not None and saves_one_side(module, architecture, config):
            raise AdapterError(
                f"'{module}' is one tensor with another embedding, and PEFT changes one side alone (modules_to_save)."
            )


def _refuse_more(gathering: Gathering, saved: Checkpoint) -> None:
    """Refuse weights of the base itself that are trained beside the adapter, and that PEFT does not save with it."""
    known, adapter = {key.removeprefix(PEFT_PREFIX) for key in saved}, _active(gathering.model)
    trained = [
        name for name, tensor in gathering.tensors.items() if tensor.requires_grad and adapter not in name.split(".")
    ]
    missing = [name for name in trained if name.removeprefix(PEFT_PREFIX) not in known]
    if missing:
        raise AdapterError(
            f"'{missing[0]}' (one of {len(missing)}) is trained beside the adapter, which does not have it."
        )


def _check_whole(gathering: Gathering, base: Base, why: str) -> None:
    """Make sure that the difference of all weights can be taken."""
    model = gathering.model
    is_peft = hasattr(model, "get_base_model")
    if _is_quantized(model):
        raise CheckpointError(
            f"The model is quantised, so its weights have no difference to the base's, and it is no LoRA that could be the vector ({why}). "
            "Train a plain LoRA on it, or the model in bf16, fp16 or fp32."
        )
    if why != "no adapter":
        if gathering.is_sharded or not is_peft:
            raise AdapterError(
                f"{why}\nMerging it for the vector takes the model whole, as a PeftModel, on each process."
            )
        logger.info("The adapter is merged for the vector, layer by layer: %s", why)
    live = LiveModel(gathering, base)
    match_tensors(base.checkpoint, live)
    live.try_merging()
