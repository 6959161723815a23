"""Input statistics as a record, and as two files beside a vector.

`input_statistics.safetensors` has three tensors for each distinct input, named by the first layer that gets it:
`<key>::vectors` in bfloat16, `<key>::values` and `<key>::rest` in float32. `input_statistics.json` has everything else:
the number of tokens, a hash of the data, the vector, what it gains on the data if that is known, which layers share an
input, and the sha256 of the tensors.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.writer import write_file
from dem_hub.errors import CheckpointError, ConfigError, NotFoundError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import INPUT_STATISTICS, INPUT_STATISTICS_TENSORS
from dem_hub.files.shown import shown_list
from dem_hub.files.strict_json import FORMAT_VERSION, check_version, dump_json, read_json, read_record
from dem_hub.hub.hashes import digest
from dem_hub.input_statistics.moments import Moments

_SEPARATOR = "::"


@dataclass(frozen=True)
class LayerInput:
    """One distinct input of layers: the checkpoint keys of the layers that get it, and its second moments."""

    keys: tuple[str, ...]
    moments: Moments

    @property
    def name(self) -> str:
        """The name in the file: the first of the keys."""
        return self.keys[0]


@dataclass(frozen=True)
class InputStatistics:
    """The statistics of the inputs of a model's layers on one data distribution.

    Args:
        inputs (`tuple[LayerInput, ...]`): Each distinct input.
        tokens (`int`): Tokens that went through the model.
        data (`str`): A hash of them.
        vector (`str`): A hash of the vector whose fine-tune they went through, see [`contents_of`]; empty for a model
            without one.
        gain (`float`, *optional*): What that vector gains over the base on the data, in nats a token.
    """

    inputs: tuple[LayerInput, ...]
    tokens: int
    data: str
    vector: str = ""
    gain: float | None = None

    @cached_property
    def moments(self) -> Mapping[str, Moments]:
        """The moments by the checkpoint key of each layer's weight. A layer that saw no token is not in it."""
        return {key: item.moments for item in self.inputs for key in item.keys}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write both files into the folder of a vector, in place of older ones.

        Args:
            save_directory (`str` or `os.PathLike`): The folder. It must exist.
        """
        folder = Path(save_directory)
        tensors: dict[str, Tensor] = {}
        for item in self.inputs:
            prefix = item.name + _SEPARATOR
            moments = item.moments
            if len(moments.values):
                tensors[f"{prefix}vectors"] = moments.vectors.to(torch.bfloat16)
                tensors[f"{prefix}values"] = moments.values.float()
            tensors[f"{prefix}rest"] = moments.rest.float()
        path = folder / INPUT_STATISTICS_TENSORS
        write_file(path, tensors)
        record = {
            "format_version": FORMAT_VERSION,
            "tokens": self.tokens,
            "data": self.data,
            "vector": self.vector,
            "gain": self.gain,
            "inputs": {item.name: list(item.keys) for item in self.inputs},
            "sha256": digest(path),
        }
        write_text(folder / INPUT_STATISTICS, dump_json(record))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "InputStatistics":
        """Read the files of a folder.

        Args:
            folder (`str` or `os.PathLike`): The folder of a vector.

        Raises:
            [`~dem_hub.errors.NotFoundError`]: If the folder has none.
            [`~dem_hub.errors.ConfigError`]: If the record is damaged, or of a newer version.
            [`~dem_hub.errors.CheckpointError`]: If the tensors are damaged, or are not those of the record.
        """
        path = Path(folder) / INPUT_STATISTICS
        if not path.is_file():
            raise NotFoundError(f"'{folder}' has no input statistics ({INPUT_STATISTICS}). Gather them from data.")
        data = read_json(path)
        check_version(data, str(path))
        record = read_record(_Record, {key: value for key, value in data.items() if key != "format_version"}, str(path))
        tensors = Path(folder) / INPUT_STATISTICS_TENSORS
        fault = f"'{tensors}' is missing, or not the file that {INPUT_STATISTICS} is about."
        if not tensors.is_file():
            raise CheckpointError(fault)
        # Opened before it is hashed: each read checks that the file is still the one that was opened.
        checkpoint = Checkpoint(tensors)
        if digest(tensors) != record.sha256:
            raise CheckpointError(fault)
        inputs = []
        for name, keys in record.inputs.items():
            inputs.append(LayerInput(tuple(keys), _read_moments(checkpoint, name)))
        return cls(tuple(inputs), record.tokens, record.data, record.vector, record.gain)


@dataclass(frozen=True)
class _Record:
    """The content of `input_statistics.json` but for its version."""

    tokens: int
    data: str
    vector: str
    inputs: Mapping[str, tuple[str, ...]]
    sha256: str
    gain: float | None = None  # files of earlier versions have none

    def __post_init__(self) -> None:
        """Refuse values that no statistics have."""
        if self.tokens < 1:
            raise ConfigError(f"tokens is {self.tokens}; it must be 1 or more.")
        for name, keys in self.inputs.items():
            if name not in keys:
                raise ConfigError(f"the layers of the input '{name}' are {shown_list(keys)}, and not that one.")
        layers = Counter(key for keys in self.inputs.values() for key in keys)
        twice = [key for key, count in layers.items() if count > 1]
        if twice:
            raise ConfigError(f"the layers {shown_list(twice)} have more than one input.")


def _read_moments(checkpoint: Checkpoint, name: str) -> Moments:
    """Return the moments of one input in float64, after a check of their shapes and values."""
    prefix = name + _SEPARATOR
    if f"{prefix}rest" not in checkpoint:
        raise CheckpointError(f"'{checkpoint.path}' has no '{prefix}rest'. Gather the statistics again.")
    rest = checkpoint.read(f"{prefix}rest").double()
    moments = Moments.of_diagonal(rest)
    if f"{prefix}vectors" in checkpoint and f"{prefix}values" in checkpoint:
        vectors = checkpoint.read(f"{prefix}vectors").double()
        values = checkpoint.read(f"{prefix}values").double()
        moments = Moments(vectors, values, rest)
    shapes = (tuple(moments.vectors.shape), tuple(moments.values.shape), tuple(rest.shape))
    is_whole = rest.dim() == 1 and shapes[0] == (len(rest), len(moments.values)) and moments.values.dim() == 1
    if not is_whole:
        raise CheckpointError(f"'{checkpoint.path}' has moments of the shapes {shapes} for '{name}', which do not fit.")
    for part in (moments.vectors, moments.values, rest):
        if not bool(part.isfinite().all()):
            raise CheckpointError(f"'{checkpoint.path}' has NaN or inf for '{name}'. Gather the statistics again.")
    if bool((moments.values < 0).any()) or bool((rest < 0).any()):
        raise CheckpointError(f"'{checkpoint.path}' has negative moments for '{name}'. Gather the statistics again.")
    return moments
