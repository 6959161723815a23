"""The rows of a merge that its base lacks, because vectors were taken from fine-tunes with a larger vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.component import StoredDelta
from dem_hub.errors import CoefficientError
from dem_hub.merging.terms import Term
from dem_hub.merging.token_rows import TokenRows
from dem_hub.numerics.slices import Index, index_shape


def new_rows(
    name: str,
    index: Index,
    base: LazyTensor,
    active: Sequence[tuple[float, StoredDelta]],
    terms: Sequence[Term],
    tokens: TokenRows,
) -> Tensor:
    """Return rows that the base lacks: the mean of the vectors that have them, weighted by their coefficients.

    A row of a token is that of the vectors with the token. The others are padding, and rows whose token is not
    known.

    The weights are magnitudes. With weights of both signs, whose sum can be almost 0, the mean would not lie
    between the rows, but anywhere. A vector's own rows are not negated by its coefficient, either.

    Args:
        name (`str`): Name of the tensor.
        index (`tuple[slice, ...]`): The rows, in the merged tensor.
        base ([`LazyTensor`]): The base's tensor.
        active (`Sequence`): The coefficient and the stored delta of each term that changes the tensor.
        terms (`Sequence[Term]`): All terms of the merge.
        tokens ([`TokenRows`]): Which rows are of new tokens.

    Raises:
        [`~dem_hub.errors.CoefficientError`]: If the coefficients of the vectors that have a row sum to 0.
        [`~dem_hub.errors.BaseMismatchError`]: If a vector lacks the row of a token that it has.
    """
    base_rows = base.get_shape()[0]
    rows = slice(index[0].start - base_rows, index[0].stop - base_rows)
    columns = index[1:]
    total = torch.zeros(index_shape((rows, *columns)), dtype=torch.float64, device="cpu")
    weight = torch.zeros(total.shape[0], dtype=torch.float64, device="cpu")
    signed = torch.zeros(total.shape[0], dtype=torch.float64, device="cpu")
    for coefficient, stored in active:
        if stored.rows is None:
            continue
        stop = min(rows.stop, stored.rows.get_shape()[0])
        count = stop - rows.start
        if count <= 0:
            continue
        values = stored.rows[(slice(rows.start, stop), *columns)].double()
        total[:count] += abs(coefficient) * values
        weight[:count] += abs(coefficient)
        signed[:count] += coefficient
    for row in range(index[0].start, index[0].stop):
        if row in tokens.texts:
            place = row - index[0].start
            total[place] = tokens.new_row(name, base, terms, (slice(row, row + 1), *columns))[0]
            weight[place] = signed[place] = 1.0
    if not signed.all():
        raise CoefficientError(
            f"The coefficients of the vectors with new rows of '{name}' sum to 0, so their mean is undefined. "
            "Change one."
        )
    return total / weight.reshape(-1, *[1] * len(columns))
