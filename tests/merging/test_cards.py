"""Cards of recipes and of merged models: what they name, what they link to, and how they say the model is loaded."""

import re
from pathlib import Path

import pytest

from dem_hub import DEMConfig
from dem_hub.hub.cards import Card
from dem_hub.hub.references import BaseRecord
from dem_hub.merging.cards import recipe_card
from dem_hub.merging.records import HERE, VectorRecord

SEARCH = {"losses": {"maths": 1.0}}


def card_of(*names: str | tuple[str, str], base: str = "org/base", merged: bool = True) -> Card:
    """Return the card of vectors with the coefficients 1, 2 and so on; a pair has a subfolder."""
    vectors = []
    for number, name in enumerate(names, 1):
        repo_id, subfolder = (name, "") if isinstance(name, str) else name
        vectors.append(VectorRecord(repo_id, float(number), subfolder=subfolder))
    return recipe_card("me/dem", DEMConfig(BaseRecord(base), tuple(vectors)), {}, merged=merged)


def rows(card: Card) -> list[str]:
    """Return the first column of the table of coefficients, without the base's."""
    return re.findall(r"^\| (.*) \| \d+ \|$", card.text, re.MULTILINE)


def folders(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).mkdir(parents=True)
    return [str(root / name) for name in names]


def test_a_recipe_with_no_search_says_nothing_of_perplexity() -> None:
    vectors = (VectorRecord("me/maths", 0.5), VectorRecord("me/all", 0.25, subfolder="code"))
    licenses = {"org/base": "mit", "me/maths": "mit"}
    card = recipe_card("me/dem", DEMConfig(BaseRecord("org/base"), vectors), licenses)
    assert "erplexity" not in card.text
    assert "| [me/all//code](https://huggingface.co/me/all) | 0.25 |" in card.text
    assert card.metadata["base_model"] == ["org/base", "me/maths", "me/all"]
    assert card.metadata["license"] == "mit"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["maths/checkpoint-500", "chat/checkpoint-500"], ["`checkpoint-500 (maths)`", "`checkpoint-500 (chat)`"]),
        (["a/run/last", "b/run/last"], ["`last (a/run)`", "`last (b/run)`"]),
        (["a/run/last", "a/other/last", "code"], ["`last (run)`", "`last (other)`", "`code`"]),
        (["maths", "org/maths"], ["`maths (vectors)`", "`maths (org)`"]),
        (["one", "two"], ["`one`", "`two`"]),
    ],
)
def test_folders_have_names_of_their_own_and_no_links(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    card = card_of(*folders(tmp_path / "vectors", *names))
    assert rows(card) == expected
    assert str(tmp_path) not in card.text
    assert card.metadata["base_model"] == ["org/base"]


def test_a_folder_that_looks_like_a_repository(tmp_path: Path) -> None:
    """A relative path of two parts has the form of a Hub id. The tests' working directory is `tmp_path`."""
    folders(tmp_path, "org/base", "me/maths")
    card = card_of("me/maths", "me/chat", base="org/base")
    assert rows(card) == ["`maths`", "[me/chat](https://huggingface.co/me/chat)"]
    assert card.metadata["base_model"] == ["me/chat"]


def test_folders_that_are_gone(tmp_path: Path) -> None:
    """A merged model may be pushed after its vectors were deleted."""
    card = card_of(str(tmp_path / "maths/last"), (str(tmp_path / "gone"), "chat/last"), base=str(tmp_path / "base"))
    assert rows(card) == ["`last (maths)`", "`last (chat)`"]
    assert "base_model" not in card.metadata
    assert "](http" not in card.text.partition("Made with")[0]


def test_a_vector_in_the_repository_of_its_recipe(tmp_path: Path) -> None:
    """Its name has the repository's, also where a folder has the same one. The repository is not its own base."""
    folders(tmp_path, "me/dem")
    card = card_of((HERE, "vectors/maths"), merged=False)
    assert rows(card) == ["[me/dem//vectors/maths](https://huggingface.co/me/dem)"]
    assert card.metadata["base_model"] == ["org/base"]


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(
    ("architecture", "task", "loader"),
    [
        ("LlamaForCausalLM", "text-generation", "AutoModelForCausalLM"),
        ("T5ForConditionalGeneration", "text2text-generation", "AutoModelForSeq2SeqLM"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
        ("Gemma3ForConditionalGeneration", "image-text-to-text", "AutoModelForImageTextToText"),
        ("BertForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
        ("BertForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
        ("ViTForImageClassification", "image-classification", "AutoModelForImageClassification"),
        ("BertForPreTraining", None, "BertForPreTraining"),
        ("ToyForCausalLM", None, None),  # code of its own, which a card cannot know
        ("pipeline", None, None),  # a function of transformers, and no model
        (None, None, None),
    ],
)
def test_task_and_class(architecture: str | None, task: str | None, loader: str | None, merged: bool) -> None:
    architectures = (architecture,) if architecture else ()
    recipe = DEMConfig(
        BaseRecord("org/base"), (VectorRecord("me/maths", 0.5),), architectures=architectures, search=SEARCH
    )
    card = recipe_card("me/dem", recipe, {}, merged=merged)
    assert card.metadata.get("pipeline_tag") == task
    found = [result["task"]["type"] for entry in card.metadata.get("model-index", []) for result in entry["results"]]
    assert found == ([task] if task else [])
    loaders = set(re.findall(r"(\w+)\.from_pretrained", card.text)) - {"DEMModel"}
    assert loaders == ({loader} if loader else set())
    assert ("DEMModel" in card.text) is not merged
