"""The interface of an encoder: what chooses a codec for each tensor of a vector, and encodes it.

Extraction knows no codec, only an encoder. It asks the encoder to get ready, and then hands it one tensor after
another. A budget (`codec="auto"`) looks at all tensors before it divides its bytes; a plain codec needs no such look,
and none is taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dem_hub.codecs.codec import Codec
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.first_look import FirstLook
from dem_hub.codecs.options import Options

Encoded = tuple[Codec, dict[str, Tensor]]  # the codec that a tensor got, and its parts


class StoredTensor(Protocol):
    """The facts about a stored tensor that [`TensorEncoder.explain`] reads."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def codec(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


class TensorEncoder(Protocol):
    """An encoder that is ready to encode the tensors of one vector."""

    def encode(self, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
        """Return the codec that is best for this tensor, and the tensor's parts in it.

        Args:
            key (`str`): the tensor's name.
            delta (`Tensor`): finetuned - base, in float32.
            base, finetuned (`Tensor`): both sides, in their own dtypes.
        """

    def explain(self, records: Mapping[str, StoredTensor], nbytes: int) -> str:
        """Return a line that says what was chosen and why, or an empty text if nothing was chosen.

        Args:
            records (`Mapping[str, StoredTensor]`): the tensors of the finished vector, by their names.
            nbytes (`int`): bytes of its tensor files.
        """


class Encoder(Protocol):
    """The choice that a user makes by `codec` and its options. `options` go into the vector's config."""

    @property
    def options(self) -> Options: ...

    def prepare(self, first_look: Callable[[], FirstLook]) -> TensorEncoder:
        """Return an encoder for the tensors of one vector.

        `first_look` reads all tensors, so it is called only where it is needed.
        """


@dataclass(frozen=True)
class CodecEncoder:
    """The encoder that stores all tensors with one codec, and with `dense` those that the codec does not take."""

    options: Codec

    def prepare(self, first_look: Callable[[], FirstLook]) -> "CodecEncoder":
        """Return itself, without a first look."""
        return self

    def encode(self, key: str, delta: Tensor, base: Tensor, finetuned: Tensor) -> Encoded:
        """Return the codec and the parts of one tensor; see [`TensorEncoder.encode`]."""
        codec: Codec = Dense()
        if self.options.takes(tuple(delta.shape)):
            codec = self.options.for_tensor(key, finetuned)
        return codec, codec.encode(delta, base, finetuned)

    def explain(self, records: Mapping[str, StoredTensor], nbytes: int) -> str:
        """Return an empty text: the user has chosen."""
        return ""
