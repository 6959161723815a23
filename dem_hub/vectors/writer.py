"""The writer of a vector's folder: tensor by tensor, each into the file where it belongs.

Factors that a PEFT adapter can hold go into one, so that PEFT reads them without dem_hub. All other parts go into
`vector_model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.writer import TensorWriter
from dem_hub.codecs.codec import Codec
from dem_hub.files.names import VECTOR_STEM
from dem_hub.hub.hashes import digest
from dem_hub.hub.references import BaseRecord
from dem_hub.vectors.config import SEPARATOR, TensorRecord
from dem_hub.vectors.lora.writer import AdapterWriter

# The most that zeros may add to the bytes of an adapter, as a part of them, so that all of its modules have one rank:
# at most they double it. Chosen by hand.
_MOST_PADDING = 1.0


@dataclass(frozen=True)
class EncodedTensor:
    """One tensor that changed. `codec` is `None` if nothing but new rows was learned; `rows` are these rows."""

    key: str
    record: TensorRecord
    codec: Codec | None
    parts: Mapping[str, Tensor]
    rows: Tensor | None = None


class VectorWriter:
    """The files of a vector in the making. `tensors` has the record of each tensor that was written."""

    def __init__(self, folder: Path, architecture: Architecture | None, max_shard_size: int | str) -> None:
        self.tensors: dict[str, TensorRecord] = {}
        self._rest = TensorWriter(folder, VECTOR_STEM, max_shard_size)
        self._adapter = AdapterWriter(folder, architecture)

    def write(self, encoded: EncodedTensor) -> None:
        """Write the parts of one tensor, and the rows that the base lacks."""
        key = encoded.key
        record = encoded.record
        module = None
        if encoded.codec is not None and encoded.codec.fits_peft:
            module = self._adapter.module(key)
        if module is not None:
            self._adapter.write(module, encoded.parts["left"], encoded.parts["right"])
            record = replace(record, module=module.name, transposed=module.transposed)
        else:
            for part, tensor in encoded.parts.items():
                self._rest.write(f"{key}{SEPARATOR}{part}", tensor)
        if encoded.rows is not None:
            self._rest.write(f"{key}{SEPARATOR}rows", encoded.rows)
        self.tensors[key] = record

    def close(self, base: BaseRecord, *, is_for_size: bool = False) -> dict[str, str]:
        """Finish the files, and return the sha256 of each by its name.

        Args:
            base ([`BaseRecord`]): The base of the vector.
            is_for_size (`bool`, *optional*, defaults to `False`): Whether the user asked for few bytes. Then nothing
                is padded.
        """
        most_padding = 0.0 if is_for_size else _MOST_PADDING
        files = self._rest.close() + self._adapter.close(base, most_padding=most_padding)
        return {path.name: digest(path) for path in files}
