"""The source of a run's vector: its base, and whether the vector is the adapter itself or a difference of all weights.

A LoRA that is a plain sum of deltas is a vector already, so the adapter is kept as PEFT saves it. Everything else
(full fine-tuning, DoRA, a trained embedding beside a LoRA) is extracted: the model in training is read like a
checkpoint, with PEFT's changes merged. Which of the two it is, and whether it can work at all, is settled before
the first step.
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import refuse_quantized, refuse_quantized_tensors
from dem_hub.checkpoints.opening import open_base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.tokenizer import Vocabulary
from dem_hub.checkpoints.writer import system_errors
from dem_hub.codecs.encoder import Encoder
from dem_hub.errors import AdapterError, CheckpointError, ConfigError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MODEL_FILES,
    TOKENIZER,
    TRAINER_STATE,
    VECTOR_CONFIG,
    VECTOR_TOKENIZER,
)
from dem_hub.files.scratch import scratch_folder
from dem_hub.files.strict_json import dump_json, read_json
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import Resolved, resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.merged_base import MergedBase
from dem_hub.merging.opening import open_recipe
from dem_hub.training.gathering import Gathering
from dem_hub.training.live_model import LiveModel
from dem_hub.vectors.extraction import extract_tensors
from dem_hub.vectors.lora.config import read_adapter_config
from dem_hub.vectors.lora.embeddings import has_embedding
from dem_hub.vectors.lora.whole_tensors import saves_one_end
from dem_hub.vectors.lora.writer import PEFT_PREFIX
from dem_hub.vectors.matching import match_tensors
from dem_hub.vectors.sidecars import write_training
from dem_hub.vectors.vector import DistributionVector

logger = logging.getLogger(__name__)

_NO_ADAPTER = "no adapter"


@dataclass(frozen=True)
class Source:
    """The base of a run, and the kind of its vector: the adapter itself (`is_adapter`), or the difference of all
    weights. `tokenizer` is what the run's texts are tokenized with, if the Trainer knows it.
    """

    base: Base
    is_adapter: bool
    tokenizer: Any = None

    @classmethod
    def of(cls, name: VectorSource, gathering: Gathering, options: HubOptions) -> "Source":
        """Find the base, and check that the model in training has a vector on it.

        Args:
            name ([`VectorSource`]): The base.
            gathering ([`Gathering`]): The model in training.
            options ([`HubOptions`]): How to reach the Hub.

        Raises:
            `CheckpointError`: If the base is quantised, or tensors differ in name or shape.
            `AdapterError`: If the adapter does not fit the base.
            `Exception`: As opening a base raises it.
        """
        resolved = resolve(name, MODEL_FILES, options)
        refuse_quantized(resolved.folder, "base")
        base = open_base(resolved)
        refuse_quantized_tensors(base.checkpoint, resolved.folder, "base")
        # The fingerprint reads the whole base once. Computed here, it is cached before training begins.
        logger.info("The base is '%s', with the fingerprint %s.", base, base.fingerprint)
        why_no_adapter = _why_no_adapter(gathering, base)
        if why_no_adapter is None:
            return cls(base, is_adapter=True)
        _check_difference(gathering, base, why_no_adapter)
        return cls(base, is_adapter=False)

    def is_base(self, gathering: Gathering) -> bool:
        """Return whether the model is the base before its first step, and warn if not. transformers does not keep the
        commit a model was loaded from. A quantized model cannot be compared, and is taken for it.
        """
        if _is_quantized(gathering.model):
            return True
        differing = LiveModel(gathering, self.base).differing(self.base)
        if differing:
            logger.warning(
                "Before its first step the model is not the base '%s': '%s' differs. The vector will not be what "
                "this run alone learns on "
                "that base. If the model was loaded from another revision, name it: "
                "DEMCallback(base_model='org/base@REVISION').",
                self.base,
                differing[0],
            )
        return not differing

    def open_recipe_vectors(self, recipe: VectorSource) -> list[DistributionVector]:
        """Open the vectors of a recipe, and check that they belong on this base.

        Raises:
            `BaseMismatchError`: If one of them was made from another base.
        """
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
        """Write the vector of the model as it is now.

        Args:
            folder (`Path`): An empty folder.
            gathering ([`Gathering`]): The model in training.
            encoder ([`Encoder`]): How to store a difference of weights. An adapter is stored as it is.
            facts (`Mapping[str, Any]`): Training facts, for the config.
            libraries (`Mapping[str, str]`): Versions of the libraries, by name.
            device (`str` or `torch.device`, *optional*): Device to encode on.
        """
        if self.is_adapter:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                saved = save_adapter(gathering, Path(scratch))
                for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                    (saved / name).replace(folder / name)
                if isinstance(self.base, MergedBase):
                    _name_base(folder / ADAPTER_CONFIG, self.base)
                if self.tokenizer is not None and has_embedding(folder):
                    self.tokenizer.save_pretrained(scratch)
                    if Path(scratch, TOKENIZER).is_file():
                        Path(scratch, TOKENIZER).replace(folder / VECTOR_TOKENIZER)
            write_training(folder, facts, libraries)
            return
        vocabulary = None if self.tokenizer is None else Vocabulary.of(self.tokenizer)
        live = LiveModel(gathering, self.base)
        config = extract_tensors(folder, self.base, live, encoder, vocabulary=vocabulary, device=device)
        config = replace(config, training=dict(facts), libraries={**config.libraries, **libraries})
        write_text(folder / VECTOR_CONFIG, config.to_json())


def tokenizer_of(processing_class: Any) -> Any:
    """Return the tokenizer of a Trainer's `processing_class`, which may be a processor of images too, or `None`."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if hasattr(tokenizer, "added_tokens_decoder") else None


def base_name(model: Any) -> str:
    """Return the name that the model says it was loaded from.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model in training.

    Raises:
        `ConfigError`: If the model does not say it, was loaded from another run's checkpoint, or is a merge.
    """
    merge = getattr(model, "dem", None)
    if any(map(_is_active, getattr(merge, "coefficients", {}).values())):
        raise ConfigError(
            f"The model is a merge ({merge!r}), and training goes on from there. Name its recipe, which the vector "
            "then belongs on: DEMCallback(base_model='me/my-dem'). If it is saved nowhere: "
            "model.dem.save_pretrained('my-dem')."
        )
    name = ""
    for config in getattr(model, "peft_config", {}).values():
        name = name or getattr(config, "base_model_name_or_path", None) or ""
    if not name:
        name = getattr(getattr(model, "config", None), "_name_or_path", "")
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


def _is_active(coefficient: Coefficient) -> bool:
    """Check whether a coefficient, or that of one of its groups, is not 0."""
    if isinstance(coefficient, Mapping):
        return any(coefficient.values())
    return bool(coefficient)


def save_adapter(gathering: Gathering, folder: Path) -> Path:
    """Save the active adapter as PEFT does.

    Args:
        gathering ([`Gathering`]): The model in training.
        folder (`Path`): Where to save it.

    Returns:
        `Path`: The folder that the adapter is in. PEFT makes a subfolder for an adapter that is not called "default".
    """
    model = gathering.model
    adapter = _active_adapter(model)
    state = None
    if gathering.is_sharded:
        state = {name: gathering.read(name) for name, tensor in gathering.tensors.items() if tensor.requires_grad}
    if not _is_peft_model(model):
        # transformers' own `load_adapter` and `add_adapter`: `save_pretrained` writes the active adapter.
        with system_errors():
            model.save_pretrained(str(folder), state_dict=state)
        return folder
    with system_errors():
        model.save_pretrained(str(folder), selected_adapters=[adapter], state_dict=state)
    if adapter == "default":
        return folder
    return folder / adapter


def _name_base(adapter: Path, base: Base) -> None:
    """Name the base in an adapter's config: a model that was loaded from a recipe has the name of the model below it."""
    write_text(adapter, dump_json(read_json(adapter) | {"base_model_name_or_path": base.record.repo_id}))


def _is_peft_model(model: Any) -> bool:
    """Check whether PEFT wraps the model, which transformers' own adapter methods do not."""
    return hasattr(model, "get_base_model")


def _active_adapter(model: Any) -> str:
    """Return the name of the one adapter that is trained."""
    active = model.active_adapters
    if callable(active):  # a method in transformers, a property in PEFT
        active = active()
    names = list(active)
    if len(names) != 1:
        raise AdapterError(
            f"{len(names)} adapters are active ({', '.join(names)}), and a vector is one. Train one at a time."
        )
    return str(names[0])


def _why_no_adapter(gathering: Gathering, base: Base) -> str | None:
    """Return why the vector cannot be the adapter itself: `_NO_ADAPTER`, or the refusal. Return `None` if it can."""
    model = gathering.model
    if not (hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False)):
        return _NO_ADAPTER
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        raise AdapterError(
            f"The run trains a prompt ({config.peft_type}), which changes no weight of the base: it has no vector. "
            "Train a LoRA, or all weights."
        )
    # The adapter is saved and read once, as it will be at the end: what cannot be read then is found now.
    with scratch_folder() as scratch:
        folder = save_adapter(gathering, scratch)
        try:
            DistributionVector(Resolved.local(folder), verify=False).deltas(base)
            saved = Checkpoint(folder, index=ADAPTER_WEIGHTS)
            _check_tied(read_adapter_config(folder), base, saved)
            _check_all_saved(gathering, saved)
        except AdapterError as error:
            return str(error)
    return None


def _is_quantized(model: Any) -> bool:
    if _is_peft_model(model):
        model = model.get_base_model()
    return getattr(model, "hf_quantizer", None) is not None


def _check_tied(config: Mapping[str, Any], base: Base, saved: Checkpoint) -> None:
    """Refuse an adapter that trains a copy of one of two tied embeddings.

    Before training the copy still equals the base.
    """
    architecture = base.architecture
    if architecture is None:
        return
    for module in architecture.tied:
        if saves_one_end(module, architecture, config, saved):
            raise AdapterError(
                f"'{module}' is one tensor with another embedding, and PEFT changes one end alone (modules_to_save)."
            )


def _check_all_saved(gathering: Gathering, saved: Checkpoint) -> None:
    """Refuse weights of the base itself that are trained beside the adapter, and that PEFT does not save with it."""
    saved_names = {key.removeprefix(PEFT_PREFIX) for key in saved}
    adapter = _active_adapter(gathering.model)
    missing = []
    for name, tensor in gathering.tensors.items():
        is_of_base = tensor.requires_grad and adapter not in name.split(".")
        if is_of_base and name.removeprefix(PEFT_PREFIX) not in saved_names:
            missing.append(name)
    if missing:
        raise AdapterError(
            f"'{missing[0]}' (one of {len(missing)}) is trained beside the adapter, which does not have it."
        )


def _check_difference(gathering: Gathering, base: Base, why_no_adapter: str) -> None:
    """Check that the difference of all weights can be taken."""
    model = gathering.model
    if _is_quantized(model):
        raise CheckpointError(
            "The model is quantised, so its weights have no difference to the base's, and it is no LoRA that "
            "could be the vector "
            f"({why_no_adapter}). Train a plain LoRA on it, or the model in bf16, fp16 or fp32."
        )
    if why_no_adapter != _NO_ADAPTER:
        if gathering.is_sharded or not _is_peft_model(model):
            raise AdapterError(
                f"{why_no_adapter}\nMerging it for the vector takes the model whole, as a PeftModel, on each process."
            )
        logger.info("The adapter is merged for the vector, layer by layer: %s", why_no_adapter)
    live = LiveModel(gathering, base)
    match_tensors(base, live)
    live.try_merging()
