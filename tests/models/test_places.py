"""A change in place touches every tensor that it should, or none, whatever was done to the model meanwhile."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import CoefficientError
from tests.models.helpers import base_and_two_vectors, same_tensors, state_of
from tests.support.tiny_models import Zoo, reshard


def lora(model: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], **options}))


def compile_inside(model: Any) -> None:
    model.model = torch.compile(model.model, backend="eager")


def untie(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "peft": lora,
    "peft on all linears": lambda model: lora(model, target_modules="all-linear"),
    "peft that trains the norms beside": lambda model: lora(model, bias="all"),
    "dora": lambda model: lora(model, use_dora=True),
    "torch.compile of the model": lambda model: torch.compile(model, backend="eager"),
    "torch.compile of a part": compile_inside,
    "torch.compile of a peft model": lambda model: torch.compile(lora(model), backend="eager"),
    "a tie undone": untie,
}


def plain_state(model: Any) -> dict[str, Tensor]:
    """Return a model's own tensors by their plain names, without what wrappers add."""
    tensors = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if "lora_" not in name:
            tensors[name.replace("base_layer.", "").replace("_orig_mod.", "")] = tensor.detach().clone()
    return tensors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", FOLLOWED.values(), ids=FOLLOWED)
def test_wrappers_are_followed(zoo: Zoo, wrap: Callable[[Any], Any]) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.4, second: 0.3})
    wrapper = wrap(model)
    model.dem.set_coefficients({first: 1.0, second: -0.5})
    fresh = DEMModel.from_pretrained(base, vectors={first: 1.0, second: -0.5})
    assert same_tensors(plain_state(model), plain_state(fresh))
    assert model.dem.coefficients == {first: 1.0, second: -0.5}
    del wrapper


def quantize(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


def merge_adapter(model: Any) -> None:
    lora(model, init_lora_weights=False).merge_adapter()


def replace_head(model: Any) -> None:
    model.lm_head = torch.nn.Linear(32, 64, bias=False)


def parametrize(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def prune(model: Any) -> None:
    from torch.nn.utils import prune

    prune.random_unstructured(model.model.layers[1].mlp.up_proj, "weight", 0.5)


def to_integers(model: Any) -> None:
    projection = model.model.layers[0].mlp.up_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "quantized": (quantize, "q_proj.weight': its module was replaced or quantized"),
    "merged adapter": (merge_adapter, "Unmerge them first"),
    "pissa": (lambda model: lora(model.float(), init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "modules_to_save": (lambda model: lora(model, modules_to_save=["up_proj"]), "up_proj.weight': PEFT trains a copy"),
    "another head": (replace_head, "its module was replaced"),
    "weight norm": (parametrize, "layers.0.mlp.up_proj.weight': it is computed from other tensors"),
    "pruned": (prune, "layers.1.mlp.up_proj.weight': it is computed from other tensors"),
    "integers": (to_integers, "layers.0.mlp.up_proj.weight' is int8 now"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("how", ["set_coefficients", "switch"])
def test_what_cannot_be_placed_is_refused_and_nothing_changes(
    zoo: Zoo, tmp_path: Path, spoil: Callable[[Any], Any], message: str, how: str
) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    DEMModel.from_pretrained(base, vectors={first: 1.0}).dem.save_pretrained(tmp_path / "other")
    model = DEMModel.from_pretrained(base, vectors={first: 0.4, second: 0.3})
    wrapper = spoil(model)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with pytest.raises(CoefficientError, match=message):
        if how == "switch":
            model.dem.switch(tmp_path / "other")
        else:
            model.dem.set_coefficients({first: 1.0})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    assert model.dem.coefficients == {first: 0.4, second: 0.3}
    del wrapper


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gpt2"])
@pytest.mark.parametrize("rows", [50, 80])
@pytest.mark.filterwarnings("ignore")
def test_a_resized_vocabulary_keeps_its_size_and_its_new_rows(zoo: Zoo, family: str, rows: int) -> None:
    base, first, _ = base_and_two_vectors(zoo, family)
    model = DEMModel.from_pretrained(base, vectors={first: 0.4})
    model.resize_token_embeddings(rows)
    before = state_of(model)
    model.dem.set_coefficients({first: 1.0})
    for name, fresh in DEMModel.from_pretrained(base, vectors={first: 1.0}).state_dict().items():
        now = model.state_dict()[name]
        kept = min(len(now), len(fresh))
        assert torch.equal(now[:kept], fresh[:kept])
        assert torch.equal(now[kept:], before[name][kept:])


@pytest.mark.parametrize("family", ["llama-tied", "mixtral"])
def test_key_mapping(zoo: Zoo, tmp_path: Path, family: str) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.", "net.", 1)] = tensors.pop(name)

    models = zoo.models(family)
    base = reshard(models.base, tmp_path / "base", change=rename)
    finetuned = reshard(models.full, tmp_path / "finetuned", change=rename)
    DistributionVector.extract(base, finetuned, codec="dense", dtype="float32").save_pretrained(tmp_path / "vector")
    name, mapping = str(tmp_path / "vector"), {"^net": "model"}
    model = DEMModel.from_pretrained(base, vectors={name: 0.4}, key_mapping=mapping)
    model.dem.set_coefficients({name: 1.0})
    fresh = DEMModel.from_pretrained(base, vectors={name: 1.0}, key_mapping=mapping)
    assert same_tensors(state_of(model), state_of(fresh))


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_was_left_out_stays_as_it_is(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    models = zoo.models("llama-untied")
    for name, folder in (("base", models.base), ("finetuned", models.full)):
        model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=3)
        with torch.no_grad():
            model.score.weight.fill_(0.5 if name == "base" else 0.75)
        model.save_pretrained(tmp_path / name)
    vector = str(tmp_path / "vector")
    DistributionVector.extract(tmp_path / "base", tmp_path / "finetuned", codec="dense").save_pretrained(vector)
    model = DEMModel.from_pretrained(
        tmp_path / "base", vectors={vector: 0.4}, num_labels=5, ignore_mismatched_sizes=True
    )
    head = model.score.weight.detach().clone()
    model.dem.set_coefficients({vector: 1.0})
    assert torch.equal(model.score.weight, head)
    assert torch.equal(model.model.norm.weight, LlamaForSequenceClassification.from_pretrained(
        tmp_path / "finetuned").model.norm.weight)  # fmt: skip


def test_deleting_a_model_frees_it_at_once(zoo: Zoo) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.4})
    model.dem.set_coefficients({first: 1.0})
    alive, dem = weakref.ref(model), model.dem
    gc.collect()
    gc.disable()
    try:
        del model
        assert alive() is None
    finally:
        gc.enable()
    assert dem.coefficients == {first: 1.0}
    with pytest.raises(CoefficientError, match="not in memory any more"):
        dem.set_coefficients({first: 0.4})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["plain", "peft"])
def test_copies_change_alone(zoo: Zoo, copied: Callable[[Any], Any], wrap: Callable[[Any], Any]) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    model = wrap(DEMModel.from_pretrained(base, vectors={first: 0.4}))
    twin = copied(model)
    before = plain_state(model)
    twin.dem.set_coefficients({first: 1.0})
    assert same_tensors(plain_state(model), before)
    assert model.dem.coefficients == {first: 0.4}
    fresh = DEMModel.from_pretrained(base, vectors={first: 1.0})
    own = {name.removeprefix("base_model.model."): tensor for name, tensor in plain_state(twin).items()}
    assert same_tensors(own, plain_state(fresh))
