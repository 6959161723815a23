"""Models of several vectors that bring tokens: each token keeps its row's meaning, and the tokenizer has it."""

import json
from pathlib import Path

import pytest
import torch

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorSource
from dem_hub.errors import BaseMismatchError
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from tests.models.helpers import same_tensors, state_of
from tests.support.new_tokens import INPUT, OUTPUT, assert_by_token, finetune, ids_of, make_base
from tests.support.tiny_models import Zoo, edit_json, load_tensors

TOKENS = {
    "different": (["<a>"], ["<b>"]),
    "the same": (["<a>", "<b>"], ["<a>", "<b>"]),
    "in another order": (["<a>", "<b>"], ["<b>", "<a>"]),
    "overlapping": (["<a>", "<x>"], ["<x>", "<b>", "<c>"]),
    "in one alone": (["<a>", "<b>"], []),
}


def two(
    zoo: Zoo, folder: Path, family: str, count: int, tokens: tuple[list[str], list[str]]
) -> tuple[Path, list[Path]]:
    base = make_base(zoo.models(family, "float32").base, folder / "base", count)
    finetunes = []
    for number, added in enumerate(tokens):
        finetunes.append(finetune(base, folder / f"finetuned-{number}", added, seed=number))
        vector = DistributionVector.extract(base, finetunes[-1], codec="dense", dtype="float32")
        vector.save_pretrained(folder / f"vector-{number}")
    return base, finetunes


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("count", [64, 62, 61], ids=["new rows", "padding and new rows", "padding"])
@pytest.mark.parametrize("family", ["llama-tied", "llama-untied"])
def test_rows_follow_their_tokens(
    zoo: Zoo, tmp_path: Path, family: str, count: int, tokens: tuple[list[str], list[str]]
) -> None:
    base, finetunes = two(zoo, tmp_path, family, count, tokens)
    vectors = [str(tmp_path / f"vector-{number}") for number in range(2)]
    coefficients = dict(zip(vectors, (0.5, -0.3), strict=True))
    export(PlannedModel.of(open_base_and_vectors(VectorSource(str(base)), coefficients)), tmp_path / "merged")
    ids = ids_of(tmp_path / "merged")
    assert set(ids) == set(ids_of(base)) | set(tokens[0]) | set(tokens[1])
    assert sorted(ids.values()) == list(range(len(ids)))
    merged = load_tensors(tmp_path / "merged")
    for name in {INPUT, OUTPUT} & set(merged):
        assert_by_token(name, merged[name], base, dict(zip(finetunes, (0.5, -0.3), strict=True)), ids)

    model = DEMModel.from_pretrained(base, vectors=coefficients)
    assert torch.equal(model.get_input_embeddings().weight, merged[INPUT])
    model.dem.save_pretrained(tmp_path / "recipe")
    assert ids_of(tmp_path / "recipe") == ids
    model.dem.set_coefficients({vectors[0]: 0.25, vectors[1]: 0.75})
    fresh = DEMModel.from_pretrained(base, vectors=dict(zip(vectors, (0.25, 0.75), strict=True)))
    assert same_tensors(state_of(model), state_of(fresh))


def test_the_order_of_the_vectors_does_not_matter(zoo: Zoo, tmp_path: Path) -> None:
    base, _ = two(zoo, tmp_path, "llama-untied", 62, TOKENS["overlapping"])
    vectors = {str(tmp_path / f"vector-{number}"): 0.5 for number in range(2)}
    first = DEMModel.from_pretrained(base, vectors=vectors)
    second = DEMModel.from_pretrained(base, vectors=dict(reversed(vectors.items())))
    assert same_tensors(state_of(first), state_of(second))
    for number, model in enumerate((first, second)):
        model.dem.save_pretrained(tmp_path / f"recipe-{number}")
    assert ids_of(tmp_path / "recipe-0") == ids_of(tmp_path / "recipe-1")


def test_a_vector_out_of_use_brings_no_token(zoo: Zoo, tmp_path: Path) -> None:
    base, _ = two(zoo, tmp_path, "llama-tied", 64, TOKENS["different"])
    vectors = [str(tmp_path / f"vector-{number}") for number in range(2)]
    model = DEMModel.from_pretrained(base, vectors={vectors[0]: 0.5, vectors[1]: 0.0})
    model.dem.save_pretrained(tmp_path / "recipe")
    assert ids_of(tmp_path / "recipe") == ids_of(tmp_path / "finetuned-0")
    assert model.config.vocab_size == 65


def test_a_recipe_keeps_the_tokens_of_its_vectors(zoo: Zoo, tmp_path: Path) -> None:
    """It is written and pushed where no vector is."""
    base, _ = two(zoo, tmp_path, "llama-tied", 64, TOKENS["different"])
    vectors = {str(tmp_path / f"vector-{number}"): 0.5 for number in range(2)}
    DEMModel.from_pretrained(base, vectors=vectors).dem.save_pretrained(tmp_path / "recipe")
    recipe = DEMConfig.from_pretrained(tmp_path / "recipe")
    assert [set(record.tokens or ()) for record in recipe.vectors] == [{"<a>"}, {"<b>"}]
    recipe.save_pretrained(tmp_path / "again")
    assert ids_of(tmp_path / "again") == ids_of(tmp_path / "recipe")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "recipe" / "config.json").read_text()


@pytest.mark.parametrize("known", [0, 1])
def test_rows_of_unknown_tokens(zoo: Zoo, tmp_path: Path, known: int) -> None:
    """A vector that does not say what its rows stand for is taken alone, and refused beside another one."""
    base = make_base(zoo.models("llama-tied", "float32").base, tmp_path / "base", 64)
    vectors = []
    for number in range(2):
        folder = finetune(base, tmp_path / f"finetuned-{number}", [f"<{number}>"], seed=number)
        if number >= known:
            (folder / "tokenizer.json").unlink()
        vectors.append(DistributionVector.extract(base, folder, codec="dense"))
        vectors[-1].save_pretrained(tmp_path / f"vector-{number}")
    assert vectors[1].config is not None and vectors[1].config.tokens is None
    names = [str(tmp_path / f"vector-{number}") for number in range(2)]
    alone = DEMModel.from_pretrained(base, vectors={names[0]: 0.0, names[1]: 0.5})
    assert torch.equal(alone.get_input_embeddings().weight[64], load_tensors(tmp_path / "finetuned-1")[INPUT][64])
    with pytest.raises(BaseMismatchError, match=r"(?s)not known which tokens.*vector-1' has rows.*tokenizer\.json"):
        DEMModel.from_pretrained(base, vectors=dict.fromkeys(names, 0.5))


def test_a_reserved_token_with_a_new_name(zoo: Zoo, tmp_path: Path) -> None:
    """Hermes 3 calls reserved tokens of Llama 3 by names of its own. Another fine-tune may choose others."""
    base = make_base(zoo.models("llama-untied", "float32").base, tmp_path / "base", 64, ["<r0>", "<r1>"])
    finetunes = []
    for number, name in enumerate(("<tool>", "<think>")):
        folder = finetune(base, tmp_path / f"finetuned-{number}", [], seed=number)
        for path in folder.glob("tokenizer*.json"):
            path.write_text(path.read_text().replace("<r0>", name))
        assert ids_of(folder)[name] == 62
        finetunes.append(folder)
        DistributionVector.extract(base, folder, codec="dense").save_pretrained(tmp_path / f"vector-{number}")
    vectors = {str(tmp_path / f"vector-{number}"): 0.5 for number in range(2)}
    alone = open_base_and_vectors(VectorSource(str(base)), {str(tmp_path / "vector-0"): 0.5})
    export(PlannedModel.of(alone), tmp_path / "alone")
    assert ids_of(tmp_path / "alone") == ids_of(finetunes[0])
    export(PlannedModel.of(open_base_and_vectors(VectorSource(str(base)), vectors)), tmp_path / "merged")
    ids = ids_of(tmp_path / "merged")
    assert (ids["<think>"], ids["<tool>"], ids["<r1>"]) == (62, 64, 63)
    merged = load_tensors(tmp_path / "merged")
    for name in (INPUT, OUTPUT):
        assert_by_token(name, merged[name], base, dict.fromkeys(finetunes, 0.5), ids)


@pytest.mark.parametrize("rename", [{"<r0>": "<r1>", "<r1>": "<r0>"}, {"<r0>": "<tool>"}], ids=["swapped", "renamed"])
def test_tokens_of_the_base_that_one_vector_has_elsewhere(zoo: Zoo, tmp_path: Path, rename: dict[str, str]) -> None:
    """The changes of the other vector stay with the tokens of the base."""
    base = make_base(zoo.models("llama-untied", "float32").base, tmp_path / "base", 64, ["<r0>", "<r1>"])
    finetunes = [finetune(base, tmp_path / f"finetuned-{number}", [], seed=number) for number in range(2)]
    data = json.loads((finetunes[0] / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["content"] = rename.get(token["content"], token["content"])
    data["added_tokens"].sort(key=lambda token: token["id"])
    (finetunes[0] / "tokenizer.json").write_text(json.dumps(data))
    edit_json(finetunes[0] / "tokenizer_config.json", extra_special_tokens=[])
    for number, folder in enumerate(finetunes):
        DistributionVector.extract(base, folder, codec="dense").save_pretrained(tmp_path / f"vector-{number}")
    vectors = {str(tmp_path / f"vector-{number}"): 0.5 for number in range(2)}
    export(PlannedModel.of(open_base_and_vectors(VectorSource(str(base)), vectors)), tmp_path / "merged")
    ids = ids_of(tmp_path / "merged")
    merged = load_tensors(tmp_path / "merged")
    for name in (INPUT, OUTPUT):
        assert_by_token(name, merged[name], base, dict.fromkeys(finetunes, 0.5), ids)
