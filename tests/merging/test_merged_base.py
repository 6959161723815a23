"""Recipes on top of each other: what is merged from the bottom up is, bit for bit, what exports of each round give."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorSource, VectorStore, regmean
from dem_hub.checkpoints.fingerprint import tensor_digests
from dem_hub.checkpoints.opening import open_base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError
from dem_hub.files.names import MODEL_FILES, PROVENANCE_CONFIG
from dem_hub.hub.download import resolve
from dem_hub.merging.merged_base import MergedBase
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from dem_hub.merging.rounds import MOST_ROUNDS
from dem_hub.models.export import estimate_export, export
from dem_hub.models.planned import PlannedModel
from dem_hub.transformations import dare, ties
from tests.support.tiny_models import Zoo, add_tokens, edit_json, load_tensors, make_adapter, reshard, shake


def save_recipe(base: Path, vectors: Mapping[Path, Any], folder: Path, **fields: Any) -> Path:
    coefficients = {str(vector): coefficient for vector, coefficient in vectors.items()}
    recipe = open_base_and_vectors(VectorSource(str(base)), coefficients).recipe
    replace(recipe, **fields).save_pretrained(folder)
    return folder


def exported(recipe: Path, folder: Path) -> Path:
    export(PlannedModel.of(open_recipe(VectorSource(str(recipe)))), folder)
    return folder


def open_as_base(folder: Path) -> MergedBase:
    base = open_base(resolve(VectorSource(str(folder)), MODEL_FILES))
    assert isinstance(base, MergedBase)
    return base


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    first, second = load_tensors(ours), load_tensors(theirs)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


def assert_same_small_files(ours: Path, theirs: Path) -> None:
    """All files but the weights and what says where they are from."""
    kept = {"dem_files.json", PROVENANCE_CONFIG}
    names = [
        {path.name for path in folder.iterdir() if path.suffix != ".safetensors"} - kept for folder in (ours, theirs)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def train(base: Path, folder: Path, seed: int, dtype: str = "float32") -> Path:
    """A stand-in for training from an exported round."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    shake(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def vector_of(base: Path, seed: int, kind: str, folder: Path) -> Path:
    """A vector on an exported round: a LoRA of PEFT's, or the difference of all weights in a codec."""
    if kind == "lora":
        make_adapter(base, folder / "vector", seed=seed, target_modules=["q_proj", "v_proj"], r=3, lora_alpha=6)
        return folder / "vector"
    options = {"dtype": "float32"} if kind == "dense" else {}
    finetuned = train(base, folder / "finetuned", seed)
    DistributionVector.extract(base, finetuned, codec=kind, **options).save_pretrained(folder / "vector")
    return folder / "vector"


# What a recipe of a round is saved with, from the bottom up: its dtype, rounding and seed, and the kind of its vector.
ROUNDS = [
    pytest.param("llama-tied", "bfloat16", [(None, "stochastic", 0, "dense"), (None, "stochastic", 0, "dense")], id="bfloat16"),
    pytest.param("llama-untied", "bfloat16", [("float32", "stochastic", 0, "auto"), ("bfloat16", "nearest", 0, "lora"), (None, "stochastic", 7, "dense")],
                 id="up-and-down"),
    pytest.param("llama-tied", "float32", [(None, "nearest", 3, "lora"), ("float16", "stochastic", 3, "auto"), ("bfloat16", "stochastic", 5, "lora")],
                 id="three-levels"),
    pytest.param("mixtral", "bfloat16", [(None, "stochastic", 1, "lora"), ("bfloat16", "stochastic", 2, "dense")], id="experts"),
    pytest.param("llama-tied", "float32", [("bfloat16", "stochastic", 0, "exact"), (None, "stochastic", 0, "lowrank")], id="exact"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "dtype", "rounds"), ROUNDS)
def test_the_bits_are_those_of_exports(
    zoo: Zoo, tmp_path: Path, family: str, dtype: str, rounds: Sequence[tuple[str | None, Any, int, str]]
) -> None:
    """Each round is saved over the recipe of the round before it, and over that round's export: they are the same."""
    recipe = model = zoo.models(family, dtype).base
    for number, (into, rounding, seed, kind) in enumerate(rounds):
        folder = tmp_path / str(number)
        vector = vector_of(model, number, kind, folder)
        fields = {"dtype": into, "rounding": rounding, "rounding_seed": seed}
        over_model = save_recipe(model, {vector: 0.7}, folder / "over-model", **fields)
        recipe = save_recipe(recipe, {vector: 0.7}, folder / "over-recipe", **fields)
        model = exported(over_model, folder / "model")
        ours, theirs = (DEMConfig.from_pretrained(name) for name in (recipe, over_model))
        assert ours.base.fingerprint == theirs.base.fingerprint
        assert exported(recipe, folder / "same")
        assert_same_tensors(folder / "same", model)
        assert_same_small_files(folder / "same", model)
    base = open_as_base(recipe)
    checkpoint = Checkpoint(model)
    assert base.digests == tensor_digests(checkpoint)
    assert {name: (info.dtype, info.shape) for name, info in base.checkpoint.items()} == {
        name: (info.dtype, info.shape) for name, info in checkpoint.items()
    }
    for name, info in checkpoint.items():
        parts = [slice(size // 3, size // 3 + max(1, size // 2)) for size in info.shape]
        assert torch.equal(base.checkpoint.read(name, tuple(parts)), checkpoint.read(name, tuple(parts)))
    state = DEMModel.from_pretrained(recipe).state_dict()
    expected = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert AutoTokenizer.from_pretrained(recipe).get_vocab() == tokenizer.get_vocab()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that slices begin and end within them, and those of a round differ from the next one's."""
    monkeypatch.setattr("dem_hub.merging.merge.BLOCK", 200)
    monkeypatch.setattr("dem_hub.merging.merge.FACTORED_BLOCK", 500)


@pytest.fixture
def first(zoo: Zoo, tmp_path: Path) -> Path:
    """The recipe of a first round, over a bfloat16 base."""
    vectors = {zoo.vector("llama-tied"): 0.4, zoo.vector("llama-tied", kind="lowrank"): {"attention": 0.9, "rest": 0.3}}
    return save_recipe(zoo.models("llama-tied").base, vectors, tmp_path / "first", rounding_seed=3)


@pytest.fixture
def model(first: Path, tmp_path: Path) -> Path:
    """Its export."""
    return exported(first, tmp_path / "model")


@pytest.mark.parametrize("codec", ["auto", "dense", "exact", "lowrank"])
def test_extraction_against_a_recipe(first: Path, model: Path, tmp_path: Path, codec: str) -> None:
    finetuned = train(model, tmp_path / "finetuned", 5)
    ours, theirs = (DistributionVector.extract(base, finetuned, codec=codec) for base in (first, model))
    assert ours.config is not None
    assert theirs.config is not None
    assert ours.config.tensors == theirs.config.tensors
    named = {"adapter_config.json"}  # it has the name of the base
    assert {name: ours.config.files[name] for name in ours.config.files if name not in named} == {
        name: theirs.config.files[name] for name in theirs.config.files if name not in named
    }
    assert (ours.base.fingerprint, ours.base.repo_id) == (theirs.base.fingerprint, str(first))
    # Each is a vector of the other's base, too.
    for vector, base in ((ours, model), (theirs, first)):
        opened = open_base_and_vectors(VectorSource(str(base)), {str(vector.folder): 1.0})
        assert opened.merge(opened.recipe).terms
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(ours.decode(name, first), theirs.decode(name, model))


def test_all_bytes_are_hashed_on_demand(first: Path, model: Path, tmp_path: Path) -> None:
    finetuned = train(model, tmp_path / "finetuned", 5)
    ours, theirs = (DistributionVector.extract(base, finetuned, verify="full") for base in (first, model))
    assert ours.base.fingerprint == theirs.base.fingerprint
    assert str(ours.base.fingerprint).count("-") == 2


def test_a_vector_of_another_recipe_is_refused(first: Path, model: Path, tmp_path: Path) -> None:
    vector = vector_of(first, 1, "dense", tmp_path / "second")
    other = tmp_path / "other"
    recipe = DEMConfig.from_pretrained(first)
    replace(recipe, rounding_seed=4).save_pretrained(other)
    with pytest.raises(BaseMismatchError, match=f"was made from '{first}' .* and this base is '{other}'"):
        DEMModel.from_pretrained(other, vectors={str(vector): 0.5})
    # A recipe records its base too: the one that was below it is not there any more.
    second = save_recipe(first, {vector: 0.5}, tmp_path / "recipe")
    replace(recipe, rounding_seed=4).save_pretrained(first)
    with pytest.raises(BaseMismatchError, match=f"The recipe's base is '{first}'"):
        DEMModel.from_pretrained(second)


@pytest.mark.parametrize("kind", ["dense", "lora"])
def test_coefficients_in_place(first: Path, model: Path, tmp_path: Path, kind: str) -> None:
    vector = str(vector_of(model, 2, kind, tmp_path / "second"))
    merged = DEMModel.from_pretrained(first, vectors={vector: 0.5})
    for coefficient in (1.0, -0.3):
        merged.dem.set_coefficients({vector: coefficient})
        expected = DEMModel.from_pretrained(model, vectors={vector: coefficient})
        for name, tensor in expected.state_dict().items():
            assert torch.equal(merged.state_dict()[name], tensor), name
    merged.dem.save_pretrained(tmp_path / "second" / "recipe")
    loaded = DEMModel.from_pretrained(tmp_path / "second" / "recipe").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in merged.state_dict().items())


def test_a_recipe_is_changed_to_one_over_its_export(first: Path, model: Path, tmp_path: Path) -> None:
    vector = vector_of(model, 2, "dense", tmp_path / "second")
    over_model = save_recipe(model, {vector: 0.8}, tmp_path / "over-model")
    merged = DEMModel.from_pretrained(first, vectors={str(vector): 0.5})
    merged.dem.switch(over_model)
    assert list(merged.dem.coefficients.values()) == [0.8]


@pytest.mark.parametrize("grown", ["below", "above", "both"])
def test_new_tokens(zoo: Zoo, tmp_path: Path, grown: str) -> None:
    """A round whose vectors have new tokens has a larger vocabulary, and the next round adds to that."""
    models = zoo.models("llama-untied", "float32")
    below = grow(models.base, ["<a>", "<b>"], tmp_path / "below") if grown != "above" else models.full
    DistributionVector.extract(models.base, below, codec="dense").save_pretrained(tmp_path / "vector")
    recipe = save_recipe(models.base, {tmp_path / "vector": 0.5}, tmp_path / "recipe")
    model = exported(recipe, tmp_path / "model")
    above = grow(model, ["<c>"], tmp_path / "above") if grown != "below" else train(model, tmp_path / "above", 4)
    ours, theirs = (DistributionVector.extract(base, above, codec="dense") for base in (recipe, model))
    assert ours.sha256 == theirs.sha256
    ours.save_pretrained(tmp_path / "second")
    top, same = (
        save_recipe(base, {tmp_path / "second": 0.5}, tmp_path / f"top-{base.name}") for base in (recipe, model)
    )
    assert_same_tensors(exported(top, tmp_path / "ours"), exported(same, tmp_path / "theirs"))
    assert_same_small_files(tmp_path / "ours", tmp_path / "theirs")
    vocabulary = AutoTokenizer.from_pretrained(top).get_vocab()
    assert vocabulary == AutoTokenizer.from_pretrained(tmp_path / "theirs").get_vocab()
    assert len(vocabulary) == 64 + {"below": 2, "above": 1, "both": 3}[grown]


def grow(base: Path, tokens: list[str], folder: Path) -> Path:
    """A fine-tune with new tokens, whose rows and all others were trained."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + len(tokens), mean_resizing=False)
    shake(model, 8)
    model.save_pretrained(folder)
    add_tokens(base, folder, tokens)
    return folder


def test_a_store_of_a_round(first: Path, model: Path, tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path / "store", first)
    vector = vector_of(model, 1, "dense", tmp_path / "second")
    store.add("maths", DistributionVector.from_pretrained(vector))
    assert store.base.repo_id == str(first)
    assert len(store.compare().norms) == 1


@pytest.mark.parametrize("transformation", [regmean, ties, dare])
def test_vectors_of_a_round_are_transformed(
    first: Path, model: Path, tmp_path: Path, transformation: Callable[..., dict[str, DistributionVector]]
) -> None:
    vectors = [str(vector_of(model, seed, kind, tmp_path / kind)) for seed, kind in ((1, "dense"), (2, "lora"))]
    sources: Any = vectors
    if transformation is regmean:
        sources = {vectors[0]: [[5, 6, 7, 8, 9]] * 4, vectors[1]: [[20, 22, 24, 26]] * 4}
    ours, theirs = (transformation(base, sources, codec="dense") for base in (first, model))
    for name in vectors:
        assert ours[name].base.fingerprint == theirs[name].base.fingerprint
        for key in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
            assert torch.equal(ours[name].decode(key, first), theirs[name].decode(key, model)), (name, key)


def test_nothing_is_written_over_what_a_round_is_made_of(zoo: Zoo, first: Path, model: Path, tmp_path: Path) -> None:
    vector = vector_of(model, 1, "dense", tmp_path / "second")
    planned = PlannedModel.of(open_base_and_vectors(VectorSource(str(first)), {str(vector): 1.0}))
    for folder, what in (
        (first, "the base itself"),
        (zoo.models("llama-tied").base, f"the base of the recipe '{first}' itself"),
        (zoo.vector("llama-tied"), "the vector '.*' of the recipe '.*' itself"),
    ):
        with pytest.raises(ConfigError, match=what):
            export(planned, folder)


def test_a_file_below_that_changes_while_it_is_read(zoo: Zoo, tmp_path: Path) -> None:
    base = reshard(zoo.models("llama-tied").base, tmp_path / "base")
    recipe = save_recipe(base, {zoo.vector("llama-tied"): 0.5}, tmp_path / "first")
    opened = open_as_base(recipe)
    reshard(zoo.models("llama-tied").full, base)
    with pytest.raises(CheckpointError, match="has changed|was changed|replaced"):
        opened.checkpoint.read("model.norm.weight")


def test_a_dtype_that_no_export_has(first: Path) -> None:
    edit_json(first / "config.json", dtype="float64")
    with pytest.raises(ConfigError, match="dtype is 'float64'"):
        open_as_base(first)


# Recipes that go round in a circle, and too many of them.


def rebase(recipe: Path, base: Path) -> None:
    """Name another base in a recipe's file, as a hand might."""
    edit_json(recipe / "config.json", base={"path": str(base), "commit": None, "subfolder": "", "fingerprint": None})


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_is_refused(zoo: Zoo, first: Path, tmp_path: Path, length: int) -> None:
    folders = [tmp_path / f"round-{number}" for number in range(length)]
    for folder in folders:
        shutil.copytree(first, folder)
    for folder, base in zip(folders, [*folders[1:], folders[0]], strict=True):
        rebase(folder, base)
    message = "is based on itself: it is based on .*" + "which is based on ".join(
        f"'{folder}', " if number < length - 1 else f"'{folder}'"
        for number, folder in enumerate([*folders[1:], folders[0]])
    )
    with pytest.raises(ConfigError, match=message):
        DEMModel.from_pretrained(folders[0])
    with pytest.raises(ConfigError, match="is based on itself"):
        DistributionVector.extract(folders[0], zoo.models("llama-tied").full)
    with pytest.raises(ConfigError, match="is based on itself"):
        DEMConfig.from_pretrained(folders[0]).save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_recipe_that_is_in_its_own_folder(first: Path) -> None:
    edit_json(first / "config.json", base={"repo_id": ".", "commit": None, "subfolder": "", "fingerprint": None})
    with pytest.raises(ConfigError, match="is based on itself"):
        DEMModel.from_pretrained(first)


def test_the_depth_is_bounded(zoo: Zoo, tmp_path: Path) -> None:
    """A recipe has eight below it at most. Each of these is merged into the same weights with no vectors."""
    recipe = zoo.models("llama-tied").base
    for number in range(MOST_ROUNDS + 1):
        recipe = save_recipe(recipe, {}, tmp_path / str(number))
    assert_same_tensors(exported(recipe, tmp_path / "model"), zoo.models("llama-tied").base)
    with pytest.raises(ConfigError, match=r"is a recipe below 9 others .* at most 8 .*: dem-hub merge .*/0 -o MODEL"):
        open_base_and_vectors(VectorSource(str(recipe)), {})
    with pytest.raises(ConfigError, match="at most 8"):
        DistributionVector.extract(recipe, tmp_path / "model")
    rebase(tmp_path / "0", save_recipe(zoo.models("llama-tied").base, {}, tmp_path / "below"))
    with pytest.raises(ConfigError, match="at most 8"):
        DEMModel.from_pretrained(recipe)


def test_an_estimate_counts_all_rounds(zoo: Zoo, first: Path, model: Path, tmp_path: Path) -> None:
    """What is read is the model at the bottom and the vectors of each round; no base of a round is a file."""
    vector = vector_of(model, 1, "dense", tmp_path / "second")
    opened = [open_base_and_vectors(VectorSource(str(base)), {str(vector): 1.0}) for base in (first, model)]
    ours, theirs = (estimate_export(PlannedModel.of(each), tmp_path / "target") for each in opened)
    below = estimate_export(PlannedModel.of(open_recipe(VectorSource(str(first)))), tmp_path / "target")
    exported_bytes = sum(info.nbytes for info in Checkpoint(model).values())
    assert ours.reads == theirs.reads - exported_bytes + below.reads
    assert (ours.changed, ours.writes) == (theirs.changed, theirs.writes)
