"""A base as QLoRA saw it: linear layers quantized to 4 bits and dequantized, by bitsandbytes' own functions.

An adapter that was trained on a base in 4 bits has also learnt to make up for the error of its quantization. On the
unquantized base it is another model.

A tensor is quantized whole, since double quantization takes the mean scale of all of its blocks, and on the CPU, so
that the bits are the same on every device.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import Computed, LazyTensor
from dem_hub.checkpoints.quantized_layers import QuantizedLayers
from dem_hub.checkpoints.reader import TensorInfo, Tensors
from dem_hub.merging.base_quantization import BaseQuantization
from dem_hub.numerics.slices import Index

# Elements of a block with one scale: bitsandbytes' default, and transformers has no other.
_BLOCK = 64

# Dequantized tensors that are kept: a merge takes one after the other, in blocks of rows, on several threads.
_KEPT = 2

# What was worked out for a base, as long as it is open: a change of coefficients merges the same base twice.
_DEQUANTIZED: "WeakKeyDictionary[Base, dict[BaseQuantization, DequantizedTensors]]" = WeakKeyDictionary()


class DequantizedTensors(Tensors):
    """The tensors of a base, some of which were quantized and dequantized. Shapes and names are the base's."""

    def __init__(self, tensors: Tensors, layers: QuantizedLayers, settings: BaseQuantization) -> None:
        """Take the base's tensors. Nothing is quantized before it is read."""
        self.path = tensors.path
        self.layers = layers
        self._tensors = tensors
        self._settings = settings
        # One thread quantizes a tensor, and the others wait for it.
        self._lock = threading.Lock()
        self._values = lru_cache(maxsize=_KEPT)(self._dequantize)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def lazy(self, name: str) -> LazyTensor:
        """Return the tensor as a slice: a layer is quantized when it is indexed."""
        if name not in self.layers.is_transposed:
            return self._tensors.lazy(name)
        info = self[name]
        return Computed(info.shape, info.dtype, partial(self.part, name))

    def check_unchanged(self) -> None:
        """Check that the files are still those that were opened."""
        self._tensors.check_unchanged()

    def part(self, name: str, index: Index) -> Tensor:
        """Return a slice of a layer's weight, on the CPU. Do not write into it."""
        with self._lock:
            return self._values(name)[index].contiguous()

    def _dequantize(self, name: str) -> Tensor:
        settings = self._settings
        weight = self._tensors.read(name)
        if settings.dtype is not None:
            weight = weight.to(getattr(torch, settings.dtype))
        is_transposed = self.layers.is_transposed[name]
        values = _round_trip(weight.T if is_transposed else weight, settings)
        compute_dtype = getattr(torch, settings.bnb_4bit_compute_dtype)
        if compute_dtype.itemsize <= values.dtype.itemsize:
            values = values.to(compute_dtype)
        return values.T.contiguous() if is_transposed else values


def dequantized(base: Base, settings: BaseQuantization) -> DequantizedTensors:
    """Return the tensors of a base as they are after its quantization.

    Raises:
        [`~dem_hub.errors.ConfigError`]: What [`QuantizedLayers.of`] raises.
    """
    known = _DEQUANTIZED.setdefault(base, {})
    if settings not in known:
        known[settings] = DequantizedTensors(
            base.checkpoint, QuantizedLayers.of(base, settings.of_transformers), settings
        )
    return known[settings]


def recorded(settings: BaseQuantization, base: Base) -> BaseQuantization:
    """Return settings as a recipe records them: with the modules that are not quantized, by name.

    Another version of transformers may leave out others.

    Raises:
        [`~dem_hub.errors.ConfigError`]: What [`QuantizedLayers.of`] raises.
    """
    return replace(settings, llm_int8_skip_modules=QuantizedLayers.of(base, settings.of_transformers).skipped)


def _round_trip(weight: Tensor, settings: BaseQuantization) -> Tensor:
    """Quantize and dequantize a weight with bitsandbytes."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    # As one row: bitsandbytes' kernel for the CPU (0.50.2) gives each row blocks of its own when it dequantizes, and so
    # takes wrong scales in matrices whose rows are not whole blocks. A GPU takes the elements as they lie.
    row = weight.reshape(1, -1)
    packed, state = quantize_4bit(
        row,
        blocksize=_BLOCK,
        compress_statistics=settings.bnb_4bit_use_double_quant,
        quant_type=settings.bnb_4bit_quant_type,
    )
    return dequantize_4bit(packed, state).reshape(weight.shape)
