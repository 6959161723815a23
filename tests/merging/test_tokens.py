"""Where new tokens are placed: each has one row, whatever the order of the vectors."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dem_hub.checkpoints.tokenizer import Token, Vocabulary
from dem_hub.merging.tokens import is_in_vocabulary, merged_tokens, place_tokens

SIZE = 10
BASE = Vocabulary({f"w{number}": number for number in range(SIZE)}, {})


def numbered(tokens: list[str]) -> dict[str, Token]:
    """The tokens as a tokenizer numbers them that gets them in this order."""
    return {text: Token(SIZE + number) for number, text in enumerate(tokens)}


vectors = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6).map(numbered), min_size=1, max_size=3)


@given(vectors)
def test_every_token_has_one_row_and_no_row_is_left_out(vectors: list[dict[str, Token]]) -> None:
    placed = place_tokens(BASE, vectors)
    texts = {text for tokens in vectors for text in tokens}
    assert set(placed) == texts
    assert sorted(token.id for token in placed.values()) == list(range(SIZE, SIZE + len(texts)))
    for other in permutations(vectors):
        assert place_tokens(BASE, list(other)) == placed


@given(vectors)
def test_tokens_of_one_vector_stay_where_they_are(vectors: list[dict[str, Token]]) -> None:
    assert place_tokens(BASE, vectors[:1]) == vectors[0]
    assert place_tokens(BASE, [vectors[0], None, {}, vectors[0]]) == vectors[0]


@given(vectors, st.lists(st.sampled_from([0.0, 0.5, -1.0]), min_size=3, max_size=3))
def test_a_tokenizer_has_no_gap_at_any_coefficients(vectors: list[dict[str, Token]], coefficients: list[float]) -> None:
    pairs = list(zip(vectors, coefficients, strict=False))
    merged = merged_tokens(BASE, pairs)
    assert sorted(token.id for token in merged.values()) == list(range(SIZE, SIZE + len(merged)))
    placed = place_tokens(BASE, vectors)
    assert merged.items() <= placed.items()
    for tokens, coefficient in pairs:
        assert not coefficient or set(tokens) <= set(merged)


def test_tokens_that_the_base_has_elsewhere() -> None:
    placed = place_tokens(BASE, [{"w3": Token(7), "new": Token(SIZE)}])
    assert placed["w3"].id == 3
    assert "w3" not in merged_tokens(BASE, [({"w3": Token(7), "new": Token(SIZE)}, 0.5)])


def test_a_reserved_token_that_two_vectors_rename() -> None:
    placed = place_tokens(BASE, [{"<tool>": Token(9)}, {"<think>": Token(9)}])
    assert {text: token.id for text, token in placed.items()} == {"<think>": 9, "<tool>": SIZE}


@pytest.mark.parametrize(
    ("coefficient", "expected"),
    [(0.5, True), (0.0, False), ({"embedding": 0.0, "rest": 1.0}, False), ({"mlp": 0.0, "rest": 1.0}, True),
     ({"embedding": 0.1, "rest": 0.0}, True)],
)  # fmt: skip
def test_which_coefficients_are_of_the_vocabulary(coefficient: float, expected: bool) -> None:
    assert is_in_vocabulary(coefficient) == expected
