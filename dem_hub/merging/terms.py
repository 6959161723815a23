"""The terms of a merge: vectors, or groups of a vector's tensors, each with its coefficient.

A vector whose coefficient has groups is several terms with the same hash. A term with coefficient 0 is skipped, not
multiplied, so its deltas are not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tokenizer import Token
from dem_hub.codecs.component import StoredDelta
from dem_hub.errors import BaseMismatchError, CoefficientError, refuse
from dem_hub.files.shown import shown
from dem_hub.merging.coefficients import Coefficient, is_finite
from dem_hub.merging.groups import take_apart
from dem_hub.vectors.vector import DistributionVector


@dataclass(frozen=True)
class Term:
    """One summand of a merge: a vector, or a group of its tensors, with its coefficient. No delta is read yet.

    `tokens` has the row in the vector of each token that the base lacks; `None` if it is not known what the vector's rows
    stand for. `is_whole` is false for a group. `has_values` is false while the vector's weights are still on the Hub.
    """

    name: str
    sha256: str
    coefficient: float
    deltas: Mapping[str, StoredDelta]
    tokens: Mapping[str, int] | None = None
    is_whole: bool = True
    has_values: bool = True


def terms_of(
    vector: DistributionVector,
    coefficient: Coefficient,
    deltas: Mapping[str, StoredDelta],
    base: Base,
    tokens: Mapping[str, Token] | None = None,
) -> list[Term]:
    """Return a vector as one term, or as one for each group that has a coefficient of its own."""
    rows = None if tokens is None else {text: token.id for text, token in tokens.items()}
    whole = Term(vector.name, vector.sha256, 0.0, deltas, rows, has_values=vector.remote is None)
    if not isinstance(coefficient, Mapping):
        return [_scaled(whole, coefficient)]
    groups = take_apart(deltas, tuple(coefficient), base, vector.name)
    terms = []
    for group, number in coefficient.items():
        part = replace(whole, name=f"{vector.name} [{group}]", deltas=groups[group], is_whole=False)
        terms.append(_scaled(part, number))
    return terms


def _scaled(term: Term, coefficient: float) -> Term:
    if not is_finite(coefficient):
        raise CoefficientError(
            f"Vector '{term.name}' has coefficient {shown(coefficient)}; it must be a finite number."
        )
    return replace(term, coefficient=float(coefficient))


def active_terms(terms: Sequence[Term], name: str) -> list[Term]:
    """Return the terms that change a tensor."""
    return [term for term in terms if term.coefficient != 0 and name in term.deltas]


def check_replacements(terms: Sequence[Term]) -> None:
    """Refuse vectors that disagree on a buffer or an integer tensor, which is replaced and not scaled.

    The tensors of a vector that is still on the Hub are compared in the merge that is made once it is here.
    """
    names: set[str] = set()
    for term in terms:
        names.update(term.deltas)
    faults = []
    for name in sorted(names):
        faults += _disagreements(terms, name)
    if faults:
        refuse(
            BaseMismatchError,
            "Buffers and integers are replaced, not scaled, and these vectors disagree on them.",
            faults,
            "Give all but one of them the coefficient 0, or extract them from fine-tunes that share these tensors.",
        )


def _disagreements(terms: Sequence[Term], name: str) -> list[str]:
    replacing = []
    changing = []
    for term in active_terms(terms, name):
        value = term.deltas[name].replacement
        if value is None:
            changing.append(term.name)
        else:
            replacing.append((term, value))
    if not replacing:
        return []
    here = [(term.name, value) for term, value in replacing if term.has_values]
    faults = []
    for other, value in here[1:]:
        first, expected = here[0]
        if not torch.equal(value[...], expected[...]):
            faults.append(f"'{name}' differs between '{first}' and '{other}'")
    faults += [f"'{name}' is replaced by '{replacing[0][0].name}' and changed by '{other}'" for other in changing]
    return faults
