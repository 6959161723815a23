"""The rows of new tokens in a merge: what is summed where vectors mean different tokens by one row.

The rows of a token that the base has a row for (padding, mostly, or a reserved token) are summed as any others, each from
the place that it has in its vector. Rows that the base lacks are a mean, as there is nothing to add a change to.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.checkpoints.tokenizer import Token
from dem_hub.codecs import add_deltas
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import Delta, Scaled
from dem_hub.errors import BaseMismatchError, CoefficientError, refuse
from dem_hub.files.shown import shown
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.terms import Term
from dem_hub.merging.tokens import Tokens, merged_tokens, place_tokens
from dem_hub.numerics.slices import Index


@dataclass(frozen=True)
class TokenRows:
    """The rows of new tokens in a merge, where a row says what a token says and not what its number says.

    `placed` are the tokens of all vectors with their merged ids, `merged` those of them that the merged model has, `old`
    those that the base has at another id than a vector, and `keys` the tensors that have a row for each token.
    """

    placed: Mapping[str, Token] = field(default_factory=dict)
    merged: Mapping[str, Token] = field(default_factory=dict)
    old: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        base: Base,
        vectors: Sequence[tuple[Tokens, Coefficient]],
        deltas: Sequence[Mapping[str, StoredDelta]],
    ) -> "TokenRows":
        """Place the tokens of vectors on a base.

        Args:
            base ([`Base`]): The base.
            vectors (`Sequence`): The tokens of each vector, and its coefficient.
            deltas (`Sequence`): The deltas of each vector.
        """
        if not any(tokens for tokens, _ in vectors):
            return cls()
        keys = {key for stored in deltas for key, delta in stored.items() if delta.rows is not None}
        if base.architecture is not None:
            keys |= base.architecture.vocabulary
        placed = place_tokens(base.vocabulary, [tokens for tokens, _ in vectors])
        known = () if base.vocabulary is None else base.vocabulary.ids
        old = frozenset(text for text in placed if text in known)
        return cls(placed, merged_tokens(base.vocabulary, vectors), old, frozenset(keys))

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """The new token of each merged row that has one."""
        return {token.id: text for text, token in self.placed.items()}

    def rows(self, name: str) -> int:
        """Return the number of rows that a merged tensor must have for its tokens; 0 if it has none."""
        if name not in self.keys:
            return 0
        return max((1 + token.id for token in self.merged.values()), default=0)

    def moved(self, name: str, terms: Sequence[Term]) -> frozenset[int]:
        """Return the rows of a tensor in which some vector means another token than the merged model does."""
        if name not in self.keys:
            return frozenset()
        known = [term.tokens for term in terms if term.tokens is not None and term.coefficient]
        rows = set(self.texts).union(*(tokens.values() for tokens in known))
        return frozenset(row for row in rows if any(self._source(tokens, row) != row for tokens in known))

    def _source(self, tokens: Mapping[str, int] | None, row: int) -> int | None:
        """Return the row that a vector has for what a merged row stands for; `None` if it has none."""
        if tokens is None:
            return row
        text = self.texts.get(row)
        if text is not None and text in tokens:
            return tokens[text]
        is_base_token = text is None or text in self.old
        return row if is_base_token and row not in tokens.values() else None

    def summands(
        self,
        name: str,
        base: LazyTensor,
        terms: Sequence[Term],
        index: Index,
        device: torch.device,
        dtype: torch.dtype,
    ) -> list[Scaled]:
        """Return the deltas of one row of the base, with their coefficients, each from where a vector has the token.

        The change of a token is its row in the fine-tune minus the base's row in its merged place. A vector without the
        token has no part in it.
        """
        row = index[0].start
        summands: list[Scaled] = []
        for term in terms:
            source = self._source(term.tokens, row)
            stored = _stored(term, name)
            if not term.coefficient or stored is None or source is None:
                continue
            if source == row:
                decoded = stored.decode(base, index, device)
                summands += [(term.coefficient * scale, delta) for scale, delta in decoded]
                continue
            values = _row(base, stored, source, index[1:])
            if values is not None:
                change = values - base[index].double()
                summands.append((term.coefficient, Delta(dense=change.to(dtype=dtype, device=device))))
        return summands

    def new_row(self, name: str, base: LazyTensor, terms: Sequence[Term], index: Index) -> Tensor:
        """Return one row that the base lacks: the mean of those of the vectors that have its token, in float64.

        The weights are the magnitudes of the coefficients, so that the mean lies between the rows. If all of them are 0,
        they weigh the same.
        """
        text = self.texts[index[0].start]
        found = []
        for term in terms:
            source = (term.tokens or {}).get(text)
            stored = _stored(term, name)
            if source is None or stored is None:
                continue
            values = _row(base, stored, source, index[1:])
            if values is not None:
                found.append((term.coefficient, values))
        if not found:
            raise BaseMismatchError(
                f"The merged model needs a row for the token {shown(text)} in '{name}', and the vector with this token "
                "has none there. Train or resize both embeddings, or give the vector the coefficient 0."
            )
        coefficients = [coefficient for coefficient, _ in found]
        weights = [abs(coefficient) for coefficient in coefficients]
        if not any(weights):
            weights = [1.0] * len(found)
        elif not sum(coefficients):
            raise CoefficientError(
                f"The coefficients of the vectors with the token {shown(text)} in '{name}' sum to 0, so their mean is "
                "undefined. Change one."
            )
        rows = [weight * values for weight, (_, values) in zip(weights, found, strict=True)]
        return torch.stack(rows).sum(dim=0) / sum(weights)


def _stored(term: Term, name: str) -> StoredDelta | None:
    """Return what a term changes in a tensor; `None` if the tensor is in another group of the vector."""
    stored = term.deltas.get(name)
    if stored is None and term.is_whole:
        return StoredDelta()
    return stored


def _row(base: LazyTensor, stored: StoredDelta, source: int, columns: Index) -> Tensor | None:
    """Return a row of a fine-tune, (1, ...) float64; `None` if it has no such row."""
    first_new = base.get_shape()[0]
    if source < first_new:
        index = (slice(source, source + 1), *columns)
        return add_deltas(base[index].double(), stored.decode(base, index))
    place = source - first_new
    if stored.rows is None or place >= stored.rows.get_shape()[0]:
        return None
    return stored.rows[(slice(place, place + 1), *columns)].double()


def split_rows(index: Index, alone: Collection[int]) -> list[Index]:
    """Split an index along the first dimension, so that each of some rows is a part of its own."""
    rows = index[0]
    borders = {rows.start, rows.stop}
    for row in alone:
        borders |= {border for border in (row, row + 1) if rows.start < border < rows.stop}
    return [(slice(start, stop), *index[1:]) for start, stop in pairwise(sorted(borders))]


def are_known(terms: Sequence[Term]) -> bool:
    """Check whether it is known what the new rows of all vectors stand for.

    Returns:
        `bool`: False if a single vector has new rows, and does not say what they stand for: they keep their places.

    Raises:
        [`~dem_hub.errors.BaseMismatchError`]: If another vector has new rows or tokens beside such a vector.
    """
    growing: dict[str, Term] = {}
    for term in terms:
        has_rows = any(delta.rows is not None for delta in term.deltas.values())
        if term.coefficient and (has_rows or term.tokens):
            growing.setdefault(term.sha256, term)
    unknown = [term for term in growing.values() if term.tokens is None]
    if unknown and len(growing) > 1:
        _refuse_unknown(growing.values())
    return not unknown


def _refuse_unknown(growing: Iterable[Term]) -> None:
    faults = []
    for term in growing:
        said = "has rows for new tokens, and does not say which" if term.tokens is None else "has new tokens, too"
        faults.append(f"'{term.name}' {said}")
    refuse(
        BaseMismatchError,
        "It is not known which tokens these vectors have in which rows: the same row can be another token in each.",
        faults,
        "Extract the vector again from a folder that has the fine-tune's tokenizer.json, or put that file beside the "
        "adapter; or give all vectors with new tokens but one the coefficient 0.",
    )
