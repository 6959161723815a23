"""Coefficients for groups of a vector's tensors: which tensors are in a group, and that each is merged by its own."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dem_hub import DEMConfig, DEMModel
from dem_hub.checkpoints.base_model import Base
from dem_hub.cli.app import main
from dem_hub.errors import CoefficientError, ConfigError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import BaseRecord, VectorSource
from dem_hub.merging.cards import recipe_card
from dem_hub.merging.coefficients import coefficient_text, level
from dem_hub.merging.groups import groups_of, take_apart
from dem_hub.merging.records import VectorRecord
from tests.support.tiny_models import FAMILIES, Models, Zoo, load_tensors

KINDS = {
    "llama-tied": {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.input_layernorm.weight": "other",
        "model.layers.1.self_attn.q_proj.weight": "attention",
        "model.layers.1.mlp.up_proj.weight": "mlp",
        "model.norm.weight": "other",
    },
    "llama-untied": {"lm_head.weight": "embedding"},
    "gpt2": {
        "transformer.wpe.weight": "embedding",
        "transformer.h.0.attn.c_attn.bias": "attention",
        "transformer.h.1.mlp.c_fc.weight": "mlp",
        "transformer.h.0.ln_1.weight": "other",
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight": "embedding",
        "bert.encoder.layer.0.attention.output.dense.weight": "attention",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight": "other",
        "bert.encoder.layer.1.intermediate.dense.weight": "mlp",
        "cls.predictions.transform.dense.weight": "other",
    },
}


def opened(folder: Path) -> Base:
    return Base(resolve(VectorSource(str(folder)), MODEL_FILES))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_tensors_are_for(zoo: Zoo, family: str) -> None:
    architecture = opened(zoo.models(family).base).architecture
    assert architecture is not None
    assert {key: architecture.groups[key] for key in KINDS[family]} == KINDS[family]
    assert set(architecture.groups) == set(load_tensors(zoo.models(family).base))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", ["block", "group"])
def test_every_tensor_is_in_one_group(zoo: Zoo, family: str, granularity: Any) -> None:
    base = opened(zoo.models(family).base)
    groups = groups_of(granularity, base.checkpoint, base)
    taken = take_apart(dict.fromkeys(base.checkpoint), groups, base, "v")
    assert list(taken) == list(groups)
    assert all(taken.values())
    assert sorted(key for keys in taken.values() for key in keys) == sorted(base.checkpoint)


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        (30, ("layers 0-6", "layers 7-14", "layers 15-21", "layers 22-29", "rest")),
        (4, ("layers 0-0", "layers 1-1", "layers 2-2", "layers 3-3", "rest")),
        (2, ("layers 0-0", "layers 1-1", "rest")),
        (0, ("rest",)),
    ],
)
def test_runs_of_layers(llama: Models, layers: int, groups: tuple[str, ...]) -> None:
    keys = ["model.norm.weight", *(f"model.layers.{number}.mlp.up_proj.weight" for number in range(layers))]
    assert groups_of("block", keys, opened(llama.base)) == groups
    assert groups_of("model", keys, opened(llama.base)) == ()


@pytest.mark.parametrize(
    ("encoder", "decoder", "runs"),
    [
        (4, 4, ("layers 0-0", "layers 1-1", "layers 2-2", "layers 3-3")),
        (2, 6, ("layers 0-0", "layers 1-2", "layers 3-3", "layers 4-5")),
    ],
)
def test_layers_of_an_encoder_decoder(llama: Models, encoder: int, decoder: int, runs: tuple[str, ...]) -> None:
    """Each stack counts its own, so that a run is of both, as far as both go."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    keys = T5ForConditionalGeneration(T5Config(**sizes, num_layers=encoder, num_decoder_layers=decoder)).state_dict()
    groups = groups_of("block", keys, opened(llama.base))
    assert groups == (*runs, "rest")
    taken = take_apart(dict.fromkeys(keys), groups, opened(llama.base), "v")
    for run in runs:
        first, last = map(int, run.removeprefix("layers ").split("-"))
        blocks = {(key.split(".")[0], int(key.split(".")[2])) for key in taken[run]}
        assert blocks == {
            (name, n)
            for name, count in (("encoder", encoder), ("decoder", decoder))
            for n in range(first, last + 1)
            if n < count
        }
    assert {key.split(".")[1] for key in taken["rest"]} <= {"weight", "embed_tokens", "final_layer_norm"}


COEFFICIENTS = [
    {"embedding": 0.1, "attention": 0.4, "mlp": 0.2, "other": 0.9},
    {"attention": 0.4, "rest": 0.0},
    {"layers 1-1": -0.5, "rest": 0.3},
    {"rest": 0.7},
]


@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_each_tensor_as_with_its_coefficient_alone(
    zoo: Zoo, tmp_path: Path, family: str, coefficients: dict[str, float]
) -> None:
    """Bit for bit: in memory, in place, from a recipe, through the Auto classes, and on disk."""
    from transformers import AutoModelForCausalLM

    base, vector = zoo.models(family).base, str(zoo.vector(family))
    groups = take_apart(dict.fromkeys(opened(base).checkpoint), tuple(coefficients), opened(base), "v")
    alone = {}
    for group, value in coefficients.items():
        main(["merge", str(base), "--vector", f"{vector}={value}", "-o", str(tmp_path / group)])
        tensors = load_tensors(tmp_path / group)
        alone |= {key: tensors[key] for key in groups[group]}
    model = DEMModel.from_pretrained(base, vectors={vector: coefficients})
    model.dem.save_pretrained(tmp_path / "recipe")
    main(["merge", str(tmp_path / "recipe"), "-o", str(tmp_path / "merged")])
    merged = load_tensors(tmp_path / "merged")
    assert set(merged) == set(alone)
    assert all(torch.equal(merged[key], alone[key]) for key in alone)
    changed = DEMModel.from_pretrained(base, vectors={vector: 0.5})
    changed.dem.set_coefficients({vector: coefficients})
    for other in (model, changed, AutoModelForCausalLM.from_pretrained(tmp_path / "recipe")):
        assert other.dem.coefficients == {vector: coefficients}
        found = other.state_dict()
        assert all(torch.equal(found[key], alone[key]) for key in alone)
    changed.dem.set_coefficients({vector: 0.5})
    plain = DEMModel.from_pretrained(base, vectors={vector: 0.5}).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in changed.state_dict().items())


def test_only_what_changes_is_merged_again(llama: Models, zoo: Zoo) -> None:
    """What somebody wrote over a tensor shows which ones were."""
    vector, before, after = (
        str(zoo.vector("llama-tied")),
        {"attention": 0.5, "rest": 0.2},
        {"attention": 0.3, "rest": 0.2},
    )
    model = DEMModel.from_pretrained(llama.base, vectors={vector: before})
    fresh = DEMModel.from_pretrained(llama.base, vectors={vector: after}).state_dict()
    model.dem.set_coefficients({vector: after}, only_changed=True)
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.dem.set_coefficients({vector: {"attention": 0.4, "rest": 0.2}}, only_changed=True)
    changed = {key for key, value in model.state_dict().items() if value.any()}
    assert changed == {key for key in fresh if "self_attn" in key}
    model.dem.set_coefficients({vector: after})
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())


def test_provenance_info_and_card(llama: Models, zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector, coefficients = str(zoo.vector("llama-tied")), {"attention": 0.25, "rest": -0.5}
    DEMModel.from_pretrained(llama.base, vectors={vector: coefficients}).dem.save_pretrained(tmp_path / "recipe")
    main(["merge", str(tmp_path / "recipe"), "-o", str(tmp_path / "merged")])
    with safe_open(next((tmp_path / "merged").glob("*.safetensors")), "pt") as file:
        assert set(file.keys()) == set(load_tensors(llama.base))
    for folder in ("recipe", "merged"):
        recipe = DEMConfig.from_pretrained(tmp_path / folder)
        assert recipe.coefficients == {vector: coefficients}
    assert "0.25" in repr(DEMModel.from_pretrained(tmp_path / "recipe").dem)
    capsys.readouterr()
    main(["info", str(tmp_path / "recipe")])
    out = capsys.readouterr().out
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines() if f"{vector} [" in line)
    assert {label.strip(): number for label, number in rows.items()} == {
        f"{vector} [attention]": "+0.2500",
        f"{vector} [rest]": "-0.5000",
    }
    vectors = (VectorRecord("me/maths", coefficients), VectorRecord("me/code", 0.5))
    card = recipe_card("me/dem", DEMConfig(BaseRecord("org/base"), vectors), {})
    assert "base + (attention 0.25, rest -0.5) * vector + 0.5 * vector" in card.text
    assert "attention 0.25, rest -0.5 |" in card.text


def test_a_recipe_keeps_a_copy() -> None:
    given = {"rest": 0.5}
    recipe = DEMConfig(BaseRecord("org/base"), (VectorRecord("me/maths", given),))
    given["rest"] = 0.7
    assert recipe.coefficients == {"me/maths": {"rest": 0.5}}
    assert DEMConfig.from_dict(recipe.to_dict(), "here") == recipe


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({}, "for the groups none; there are embedding, attention, mlp, other, or runs"),
        ({"heads": 1.0}, "for the groups 'heads'; there are"),
        ({"attention": 1.0, "layers 0-3": 1.0}, "which share tensors or have none"),
        ({"layers 0-3": 1.0, "layers 3-5": 1.0}, "which share tensors or have none"),
        ({"layers 5-3": 1.0}, "which share tensors or have none"),
        ({"layers 0-999999999": 1.0, "layers 5-6": 1.0}, "which share tensors or have none"),
        ({"layers 7-9": 1.0, "layers 0-3": 1.0, "layers 3-3": 1.0}, "which share tensors or have none"),
        ({"layers 0-99999999999": 1.0}, "for the groups 'layers 0-99999999999'; there are"),
        ({f"group {number}": 1.0 for number in range(99)}, "'group 9' and 89 others; there are"),
        ({"rest": 10**400}, "has coefficient a number of 1329 bits; it must be a finite number"),
        (
            {"attention": float("nan"), "rest": 1.0},
            "group 'attention', has coefficient nan; it must be a finite number",
        ),
        ({"attention": {"mlp": 1.0}}, "group 'attention', has coefficient {'mlp': 1.0}; it must be"),
        ({"attention": True}, "has coefficient True; it must be"),
    ],
)
def test_groups_that_are_refused(coefficients: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"Vector 'me/maths'.* {message}"):
        VectorRecord("me/maths", coefficients)


def test_a_run_of_layers_takes_no_memory() -> None:
    tracemalloc.start()
    VectorRecord("me/maths", {"layers 0-499999999": 1.0, "layers 500000000-999999999": 0.5, "rest": 1.0})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_tensors_that_no_group_has(llama: Models, zoo: Zoo) -> None:
    with pytest.raises(
        CoefficientError,
        match=r"are for 'attention', and \d+ tensors that it changes are in none.*Give 'rest' a coefficient",
    ):
        DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): {"attention": 0.5}})


def test_an_architecture_that_is_not_known(llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    base = opened(llama.base)
    base.architecture = None
    with pytest.raises(
        CoefficientError, match="it has no config.json, or code of its own. Give coefficients for runs of layers"
    ):
        groups_of("group", base.checkpoint, base)
    assert groups_of("block", base.checkpoint, base) == ("layers 0-0", "layers 1-1", "rest")


def test_level_and_text() -> None:
    assert (level(0.5), level({"mlp": 0.25, "rest": 0.75})) == (0.5, 0.5)
    assert (coefficient_text(0.5), coefficient_text({"mlp": 0.25, "rest": -1.0})) == ("0.5", "mlp 0.25, rest -1")
