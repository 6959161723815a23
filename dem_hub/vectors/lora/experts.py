"""LoRAs on mixture-of-experts layers, whose experts are one tensor in memory and one matrix each on disk.

PEFT (`target_parameters`) keeps the factors of E experts in two matrices, A of shape (E * K, C) and B of shape (R,
K * E), where K is the rank. Its `ParamWrapper` adds to expert e

    scale * B[:, e::E] @ A[e * K : (e + 1) * K]

transformers lays several matrices of an expert one below the other in memory (`gate_up_proj`), so a matrix on disk
is a range of the R rows. The delta of each matrix on disk is therefore a plain LoRA. Its factors are cut out of
those of all experts when they are read.
"""

from collections.abc import Iterator, Mapping

from dem_hub.checkpoints.key_names import Fused
from dem_hub.checkpoints.lazy import EveryNthColumn, LazyTensor, Rows
from dem_hub.checkpoints.reader import TensorInfo


def find_fused(
    module: str, fused: Mapping[str, Fused], base: Mapping[str, TensorInfo], a_shape: list[int], b_shape: list[int]
) -> str | None:
    """Find the fused parameter of a module that A and B are for. PEFT does not write it down, so the shapes must tell.

    Args:
        module (`str`): The module's name in the model.
        fused (`Mapping[str, Fused]`): The fused parameters of the model, as [`Architecture`] has them.
        base (`Mapping[str, TensorInfo]`): The base's tensors.
        a_shape, b_shape (`list[int]`): Shapes of the matrices A and B of all experts.

    Returns:
        `str` or `None`: The name of the parameter; `None` if no parameter fits, or several do.
    """
    candidates = []
    for name, parts in fused.items():
        if name.rpartition(".")[0] == module and _fits(parts, base, a_shape, b_shape):
            candidates.append(name)
    return candidates[0] if len(candidates) == 1 else None


def _fits(parts: Fused, base: Mapping[str, TensorInfo], a_shape: list[int], b_shape: list[int]) -> bool:
    """Check whether A (E * K, C) and B (R, K * E) have the shapes of a LoRA on this fused parameter: E experts with
    R rows and C columns each, and rank K.
    """
    # `parts` has the keys on disk by part (such as gate and up), and within a part by expert. The parts of an expert
    # lie one below the other, so their rows add up.
    experts = len(parts[0])
    rows = sum(base[keys[0]].shape[0] for keys in parts)
    columns = base[parts[0][0]].shape[1]
    has_one_rank = a_shape[0] == b_shape[1] and a_shape[0] % experts == 0
    return has_one_rank and b_shape[0] == rows and a_shape[1] == columns


def expert_factors(
    parts: Fused, base: Mapping[str, TensorInfo], a: LazyTensor, b: LazyTensor
) -> Iterator[tuple[str, LazyTensor, LazyTensor]]:
    """Yield the key on disk of each matrix in a fused parameter, with its own B and A.

    Args:
        parts (`Fused`): The keys, as [`Architecture`] has them.
        base (`Mapping[str, TensorInfo]`): The base's tensors.
        a, b (`LazyTensor`): A and B of all experts.
    """
    start = 0
    for keys in parts:
        stop = start + base[keys[0]].shape[0]
        rank = a.get_shape()[0] // len(keys)
        for expert, key in enumerate(keys):
            left = Rows(EveryNthColumn(b, expert, len(keys)), start, stop)
            right = Rows(a, expert * rank, (expert + 1) * rank)
            yield key, left, right
        start = stop
