"""The arithmetic of a plan: bounds of memory, in bytes, as pure functions of sizes.

The memory of the libraries, and of a GPU's context, comes on top. `benchmarks/memory.py` measures real runs and fails
where they take more than `streaming_bound` and `loading_bound` say. Its runs are on the CPU; nothing here was measured
on a GPU.
"""

from dataclasses import dataclass

from dem_hub.evaluation.likelihood import rows_at_once
from dem_hub.merging.merge import DEVICE_BLOCK

# Bytes that extracting and exporting may take beside their tensors: blocks of rows, file buffers, compiled code.
# benchmarks/memory.py measured at most 1.11 GiB of a bound of 1.98 GiB.
_STREAMING = 1 << 30

# Tensors in float32, of the size of the largest, that loading may hold beside the model: transformers has four tensors
# in flight, most of them smaller. benchmarks/memory.py measured 0.3 GiB of 1.5 GiB.
_IN_FLIGHT = 3

# Tensors that transformers merges at a time.
_WORKERS = 4
# Bytes of an element of a block on an accelerator, beside the result. If all deltas are factors: the base (4), the sum
# in float64 (8), and the factors. If not: the base, the sum, a delta in float64 (8), and for each vector its delta (4).
# The tests count them in a merge without memory.
_FACTORED_BYTES = 13
_DECODED_BYTES = 20
_DELTA_BYTES = 4

# Bytes of an element of a 4-bit weight of bitsandbytes, and elements that share one scale in float32.
_HALF_BYTE = 0.5
_BLOCK = 64
# Bytes of the table that says what the 16 codes of a 4-bit weight mean.
_CODES = 64

# Copies of the logits that are in float32 at a time: themselves, their probabilities, and a temporary.
_FLOAT_COPIES = 3


@dataclass(frozen=True)
class PassShape:
    """The sizes that decide about the memory of a forward pass.

    `vocabulary` are the columns of the logits, `hidden` is the width between the layers, and `inner` that of the widest
    matrix in a layer.
    """

    vocabulary: int
    hidden: int
    inner: int


def streaming_bound(largest: int) -> int:
    """Return the most memory that extracting or exporting takes.

    Args:
        largest (`int`): Bytes of the largest tensor in float32.
    """
    return _STREAMING + 2 * largest


def in_flight(largest: int, vectors: int) -> int:
    """Return the most memory that loading takes beside the weights.

    Args:
        largest (`int`): Bytes of the largest tensor in float32.
        vectors (`int`): Bytes of the vectors' files.
    """
    return _IN_FLIGHT * largest + vectors


def block_bytes(elements: int, decoded: int) -> int:
    """Return the most memory that merging a block takes on an accelerator, beside the result.

    Args:
        elements (`int`): Elements of the block.
        decoded (`int`): Vectors whose deltas are not factors alone.
    """
    if not decoded:
        return _FACTORED_BYTES * elements
    return (_DECODED_BYTES + _DELTA_BYTES * decoded) * elements


def in_flight_on_accelerator(largest: int, vectors: int, decoded: int, quantized: int = 0) -> int:
    """Return the most memory that loading takes beside the weights on a GPU, which merges larger blocks than a CPU.

    Args:
        largest, vectors: As in [`in_flight`].
        decoded (`int`): Vectors whose deltas are not factors alone.
        quantized (`int`, *optional*, defaults to 0): Bytes in float32 of the largest weight that is quantised once it is
            merged.
    """
    blocks = block_bytes(min(DEVICE_BLOCK, largest // 4), decoded)
    return max(in_flight(largest, 0), _WORKERS * (blocks + quantized)) + vectors


def loading_bound(weights: int, largest: int, vectors: int) -> int:
    """Return the most memory that loading takes on the CPU, if it keeps `weights` bytes of the model there."""
    return weights + in_flight(largest, vectors)


def quantized_bytes(quantize: str, elements: int, rows: int) -> int:
    """Return what bitsandbytes keeps of a weight: its codes and its scales.

    Args:
        quantize (`str`): `4bit`, with a scale for 64 elements, or `8bit`, with a scale for each row.
        elements (`int`): Elements of the weight.
        rows (`int`): Rows of the weight.
    """
    if quantize == "4bit":
        return round(elements * _HALF_BYTE) + 4 * -(-elements // _BLOCK) + _CODES
    return elements + 4 * rows


def pass_bytes(tokens: int, itemsize: int, shape: PassShape) -> int:
    """Return about the most memory that a forward pass takes beside the weights, without derivatives.

    This counts the logits of a batch, or the widest layer: its input, four tensors of the inner width (an MLP's gate,
    its other half, and two of the activation between them), and what a norm computes in float32. It does not count what
    an implementation of attention keeps that is quadratic in the length.

    Args:
        tokens (`int`): Tokens of a batch, padding included.
        itemsize (`int`): Bytes of an element of the model.
        shape ([`PassShape`]): The model.
    """
    states = 2 * itemsize * shape.hidden
    layer = itemsize * (2 * shape.hidden + 4 * shape.inner) + 3 * 4 * shape.hidden
    head = itemsize * shape.vocabulary
    in_float = min(tokens, rows_at_once(shape.vocabulary))
    return tokens * (states + max(layer, head)) + _FLOAT_COPIES * 4 * in_float * shape.vocabulary


def cache_bytes(layers: int, heads: int, head_size: int, itemsize: int) -> int:
    """Return the bytes of a token in a cache of keys and values of all layers.

    Args:
        layers (`int`): Layers.
        heads (`int`): Heads of keys and values in a layer.
        head_size (`int`): Elements of a head.
        itemsize (`int`): Bytes of an element.
    """
    return 2 * layers * heads * head_size * itemsize
