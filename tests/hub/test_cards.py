"""Our part of a README is replaced, and a person's text and metadata stay."""

import pytest
from huggingface_hub import ModelCard

from dem_hub.hub.cards import BEGIN, END, Card, render
from dem_hub.vectors.cards import store_card

CARD = Card(
    "maths", {"library_name": "dem-hub", "tags": ["dem"], "license": "mit", "base_model": ["org/base"]}, "What we know."
)


def test_a_new_readme() -> None:
    card = ModelCard(render(CARD))
    assert card.text.strip() == f"# maths\n\n{BEGIN}\n\nWhat we know.\n\n{END}"
    assert card.data.to_dict() == dict(CARD.metadata)


@pytest.mark.parametrize(
    ("theirs", "key", "expected"),
    [
        ("license: apache-2.0", "license", "apache-2.0"),  # a person's word stands
        ("license: ''", "license", "mit"),
        ("tags: [mine, dem]", "tags", ["mine", "dem"]),
        ("tags: mine", "tags", ["mine", "dem"]),
        ("library_name: other", "library_name", "dem-hub"),  # what the repository is, we know
        ("base_model: org/old", "base_model", ["org/base"]),
        ("language: fr", "language", "fr"),
    ],
)
def test_metadata(theirs: str, key: str, expected: object) -> None:
    assert ModelCard(render(CARD, f"---\n{theirs}\n---\n# Mine\n")).data.to_dict()[key] == expected


@pytest.mark.parametrize(
    "before",
    [
        "# Mine\n\nMy text.\n",
        "My text.\n",
        "---\nlanguage: en\n---\n\nMy text.\n\n## More\n",
        f"My text.\n\n{BEGIN}\n\nold\n\n{END}\n\nMore text.\n",
    ],
)
def test_text_of_a_person_stays(before: str) -> None:
    once = render(CARD, before)
    assert render(CARD, once) == once
    assert "My text." in once
    assert ("More text." in before) == ("More text." in once)
    assert once.count("What we know.") == once.count(BEGIN) == 1
    assert "old" not in once


def test_broken_marks_lose_nothing() -> None:
    once = render(CARD, f"Before.\n{END}\nBetween.\n{BEGIN}\nAfter.")
    assert all(part in once for part in ("Before.", "Between.", "After.", "What we know."))


def test_a_store_shares_equally() -> None:
    card = store_card("me/all", "org/base", {"maths": ("auto", 10**6), "code": ("lora", 10**5)}, {})
    assert 'vectors={"me/all//code": 0.5, "me/all//maths": 0.5}' in card.text
    assert "license" not in card.metadata
