"""The embeddings that an adapter changes, from the names and shapes of its tensors."""

from pathlib import Path

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.files.names import ADAPTER_WEIGHTS
from dem_hub.vectors.lora.names import FACTOR, current_parameters, parameter_of
from dem_hub.vectors.lora.reader import trained_architecture


def has_embedding(folder: Path) -> bool:
    """Check whether an adapter has a tensor that may be an embedding."""
    return any(map(_may_be_embedding, Checkpoint(folder, index=ADAPTER_WEIGHTS)))


def vocabulary_rows(folder: Path, base: Base) -> int:
    """Return the number of rows of the embeddings that an adapter changes; 0 if it changes none.

    Args:
        folder (`Path`): Folder of the adapter.
        base ([`Base`]): The base that the adapter is put on.
    """
    if base.architecture is None:
        return 0
    weights = Checkpoint(folder, index=ADAPTER_WEIGHTS)
    architecture = trained_architecture(weights, base)
    candidates = [parameter_of(name) for name in weights if _may_be_embedding(name)]
    renamed = current_parameters(candidates, base, architecture)
    rows = 0
    for name in weights:
        parameter = parameter_of(name)
        key = architecture.parameters.get(renamed.get(parameter, parameter))
        if key in architecture.vocabulary:
            of_adapter = 0 if FACTOR.fullmatch(name) else weights[name].shape[0]
            rows = max(rows, of_adapter, base.checkpoint[key].shape[0])
    return rows


def _may_be_embedding(name: str) -> bool:
    """Check whether a tensor is a whole one, or of the LoRA of an embedding."""
    match = FACTOR.fullmatch(name)
    return match is None or match["embedding"] is not None
