"""New tokens: where those of several vectors are in one merged vocabulary.

Two fine-tunes number their new tokens alike, from the end of the base's tokenizer on. So a row says nothing, and the
token does: each token has one row in the merged model, whatever row it has in a vector. The rows depend on the tokens of
all vectors of a recipe and not on their order or coefficients. So a token keeps its row while coefficients change. Nothing
here imports torch: a recipe is written, with its tokenizer, on a machine that has no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dem_hub.checkpoints.tokenizer import Token, Vocabulary
from dem_hub.merging.coefficients import Coefficient

# The tokens of one vector; `None` if it is not known what its rows stand for.
Tokens = Mapping[str, Token] | None


def place_tokens(base: Vocabulary | None, vectors: Sequence[Tokens]) -> dict[str, Token]:
    """Return the new tokens of all vectors, each with its id in the merged vocabulary.

    A token keeps the lowest id that a vector has it at, if no token before it in the order of ids and texts has that
    one. The others follow at the end, without a gap: no tokenizer can leave out an id.

    Args:
        base ([`Vocabulary`], *optional*): The tokens of the base's tokenizer, if it has one.
        vectors (`Sequence`): The tokens of each vector.
    """
    lowest: dict[str, Token] = {}
    for tokens in vectors:
        for text, token in (tokens or {}).items():
            lowest[text] = min(token, lowest.get(text, token))
    known: Mapping[str, int] = {} if base is None else base.ids
    placed = {text: replace(token, id=known[text]) for text, token in lowest.items() if text in known}
    taken: set[int] = set()
    homeless = []
    for text, token in sorted(lowest.items(), key=lambda entry: (entry[1], entry[0])):
        if text in known:
            continue
        if token.id in taken:
            homeless.append(text)
        else:
            taken.add(token.id)
            placed[text] = token
    end = min(taken, default=0) if base is None else base.size
    free = end
    for text in homeless:
        while free in taken:
            free += 1
        taken.add(free)
        placed[text] = replace(lowest[text], id=free)
    if base is not None:
        appended = sorted((token.id, text) for text, token in placed.items() if token.id >= end)
        for id, (_, text) in enumerate(appended, end):
            placed[text] = replace(placed[text], id=id)
    return placed


def merged_tokens(base: Vocabulary | None, vectors: Sequence[tuple[Tokens, Coefficient]]) -> dict[str, Token]:
    """Return the tokens that a merged model has rows for and its base's tokenizer lacks, by their texts.

    A vector with coefficient 0 adds no rows. Its tokens are left out, but for those before the last one of another
    vector.

    Args:
        base ([`Vocabulary`], *optional*): The tokens of the base's tokenizer.
        vectors (`Sequence`): The tokens of each vector, and its coefficient.
    """
    placed = place_tokens(base, [tokens for tokens, _ in vectors])
    used = {text for tokens, coefficient in vectors if is_in_vocabulary(coefficient) for text in tokens or ()}
    first = 0 if base is None else base.size
    stop = max((1 + placed[text].id for text in used), default=0)
    known: Mapping[str, int] = {} if base is None else base.ids
    kept = {text for text, token in placed.items() if text in used or first <= token.id < stop}
    return {text: placed[text] for text in sorted(kept) if known.get(text) != placed[text].id}


def is_in_vocabulary(coefficient: Coefficient) -> bool:
    """Check whether a vector changes the embeddings at a coefficient."""
    if isinstance(coefficient, Mapping):
        return coefficient.get("embedding", coefficient.get("rest", 0.0)) != 0
    return coefficient != 0
