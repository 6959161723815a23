"""Loading: native models, transformers' own arguments, the Auto classes, and coefficients changed in place."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorSource
from dem_hub.errors import BaseMismatchError, CheckpointError, CoefficientError, ConfigError, NotFoundError
from dem_hub.models.attached import AttachedRecipe
from tests.support.tiny_models import (
    FAMILIES,
    Models,
    Zoo,
    assert_around,
    build,
    edit_json,
    load_tensors,
    read_deltas,
    reference,
    reshard,
    shake,
)


def state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def two(zoo: Zoo, family: str, dtype: str = "bfloat16") -> tuple[Path, str, str]:
    """A base and the names of two vectors on it."""
    vectors = (str(zoo.vector(family, dtype, kind)) for kind in ("dense", "lowrank"))
    return zoo.models(family, dtype).base, *vectors  # type: ignore[return-value]


def recipe_of(zoo: Zoo, folder: Path, family: str = "llama-tied") -> Path:
    base, first, second = two(zoo, family)
    DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6}).dem.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_native_class_with_merged_weights(zoo: Zoo, family: str) -> None:
    base, first, second = two(zoo, family)
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    assert type(model) is type(build(family))
    exact = reference(base, [(read_deltas(Path(first)), 0.3), (read_deltas(Path(second)), 0.6)])
    for name, values in exact.items():
        assert_around(model.state_dict()[name], values)
    assert model.dem.coefficients == {first: 0.3, second: 0.6}
    assert model.name_or_path == str(base)
    assert not model.training


def test_the_base_generation_config_comes_along(llama: Models, zoo: Zoo) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.5})
    assert (model.generation_config.max_length, model.generation_config.eos_token_id) == (37, 2)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 5)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.bfloat16),
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        (torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16),
    ],
    ids=str,
)
def test_dtype(llama: Models, zoo: Zoo, dtype: Any, expected: torch.dtype) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.5}, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.dem.config.dtype == str(expected).removeprefix("torch.")


def test_no_such_dtype(llama: Models) -> None:
    with pytest.raises(ConfigError, match="dtype is 'float31'; give 'auto', a torch.dtype, or the name of one"):
        DEMModel.from_pretrained(llama.base, vectors={}, dtype="float31")


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(llama: Models, zoo: Zoo, device_map: Any) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    mapped = DEMModel.from_pretrained(llama.base, vectors=vectors, device_map=device_map)
    if torch.cuda.is_available():
        mapped = mapped.cpu()
    assert same(state(mapped), state(DEMModel.from_pretrained(llama.base, vectors=vectors)))


def test_offload_to_disk(llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    devices = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    offloaded = DEMModel.from_pretrained(llama.base, vectors=vectors, device_map=devices, offload_folder=tmp_path)
    whole = DEMModel.from_pretrained(llama.base, vectors=vectors)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(offloaded(tokens).logits, whole(tokens).logits)
    with pytest.raises(CoefficientError, match=r"'model.layers.1.* is offloaded.*Load it anew"):
        offloaded.dem.set_coefficients(dict.fromkeys(vectors, 0.2))


def test_subfolders(llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    reshard(llama.base, tmp_path / "many" / "small", 2)
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    expected = state(DEMModel.from_pretrained(llama.base, vectors=vectors))
    assert same(state(DEMModel.from_pretrained(tmp_path / "many", subfolder="small", vectors=vectors)), expected)
    shutil.copytree(zoo.vector("llama-tied"), tmp_path / "many" / "maths")
    source = VectorSource(str(tmp_path / "many"), subfolder="maths")
    model = DEMModel.from_pretrained(llama.base, vectors={source: 0.5})
    assert same(state(model), expected)
    model.dem.set_coefficients({f"{tmp_path}/many//maths": 0.0})
    assert torch.equal(model.model.norm.weight, load_tensors(llama.base)["model.norm.weight"])


def test_other_arguments_of_transformers(llama: Models, zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    model, info = DEMModel.from_pretrained(
        llama.base,
        vectors=vectors,
        attn_implementation="eager",
        output_loading_info=True,
        use_cache=False,
        low_cpu_mem_usage=True,
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False


def test_rounding_and_seed(llama: Models, zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.3}
    models = [
        DEMModel.from_pretrained(llama.base, vectors=vectors, **options)
        for options in ({}, {"rounding_seed": 1}, {"rounding": "nearest"})
    ]
    assert not any(same(state(models[i]), state(models[j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (models[1].dem.config.rounding_seed, models[2].dem.config.rounding) == (1, "nearest")
    with pytest.raises(ConfigError, match="rounding is 'up'"):
        DEMModel.from_pretrained(llama.base, vectors=vectors, rounding="up")


def test_no_vectors_is_the_base(llama: Models) -> None:
    assert torch.equal(
        DEMModel.from_pretrained(llama.base, vectors={}).model.norm.weight,
        load_tensors(llama.base)["model.norm.weight"],
    )


def test_never_instantiated() -> None:
    with pytest.raises(TypeError, match="DEMModel.from_pretrained"):
        DEMModel()


def test_a_recipe(zoo: Zoo, tmp_path: Path) -> None:
    base, first, second = two(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6}, rounding_seed=5)
    model.dem.save_pretrained(tmp_path / "recipe")
    names = {path.name for path in (tmp_path / "recipe").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    assert not any(name.endswith(".safetensors") for name in names)
    again = DEMModel.from_pretrained(tmp_path / "recipe")
    assert same(state(again), state(model))
    assert again.dem.coefficients == model.dem.coefficients
    assert repr(again.dem) == f"{base} + 0.3 * {first} + 0.6 * {second}"


def test_a_recipe_moves_with_what_it_names(zoo: Zoo, tmp_path: Path) -> None:
    here = tmp_path / "here"
    base, first, _ = two(zoo, "llama-tied")
    shutil.copytree(base, here / "base")
    shutil.copytree(first, here / "vectors" / "maths")
    model = DEMModel.from_pretrained(here / "base", vectors={str(here / "vectors" / "maths"): 0.4})
    model.dem.save_pretrained(here / "recipe")
    expected = state(model)
    there = here.rename(tmp_path / "there")
    moved = DEMModel.from_pretrained(there / "recipe")
    assert same(state(moved), expected)
    moved.dem.set_coefficients({str(there / "vectors" / "maths"): 0.0})


def test_relative_paths_outlive_a_change_of_directory(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, first, _ = two(zoo, "llama-tied")
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(first, tmp_path / "maths")
    model = DEMModel.from_pretrained("base", vectors={"maths": 0.4})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.dem.set_coefficients({str(tmp_path / "maths"): 0.2})
    model.dem.save_pretrained("recipe")
    assert same(state(DEMModel.from_pretrained("recipe")), state(model))


def test_recipe_and_vectors_exclude_each_other(zoo: Zoo, tmp_path: Path) -> None:
    recipe = recipe_of(zoo, tmp_path / "recipe")
    with pytest.raises(ConfigError, match="is a recipe and names its own vectors"):
        DEMModel.from_pretrained(recipe, vectors={str(zoo.vector("llama-tied")): 0.5})
    with pytest.raises(NotFoundError, match="is not a recipe. Say which vectors to add to it") as caught:
        DEMModel.from_pretrained(zoo.models("llama-tied").base)
    assert caught.type is NotFoundError


@pytest.mark.parametrize("vectors", [["maths-vector"], "maths-vector"], ids=str)
def test_vectors_without_coefficients(llama: Models, vectors: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"vectors is .*maths-vector.*; give the coefficient of each: vectors=\{'maths-vector': 0\.5\}",
    ):
        DEMModel.from_pretrained(llama.base, vectors=vectors)


def test_recipe_whose_base_or_vector_changed(zoo: Zoo, tmp_path: Path) -> None:
    base, first, _ = two(zoo, "llama-tied")
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(first, tmp_path / "maths")
    DEMModel.from_pretrained(tmp_path / "base", vectors={str(tmp_path / "maths"): 0.4}).dem.save_pretrained(
        tmp_path / "recipe"
    )
    shutil.rmtree(tmp_path / "maths")
    shutil.copytree(zoo.vector("llama-tied", kind="short"), tmp_path / "maths")
    with pytest.raises(
        CheckpointError, match=r"(?s)Vectors changed since the recipe was made.*has sha256 .*, the recipe says"
    ):
        DEMModel.from_pretrained(tmp_path / "recipe")
    reshard(zoo.models("llama-tied").low, tmp_path / "base")
    with pytest.raises(
        BaseMismatchError,
        match="another model, or another revision. Restore it, or pass --allow-base-mismatch, in Python allow_base",
    ):
        DEMModel.from_pretrained(tmp_path / "recipe")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
def test_a_device_that_is_not_there(zoo: Zoo) -> None:
    with pytest.raises(ConfigError, match="device_map is 'cuda', which is no device of this machine"):
        DEMModel.from_pretrained(
            zoo.models("llama-tied").base, vectors={zoo.vector("llama-tied"): 0.4}, device_map="cuda"
        )


def test_allow_base_mismatch(zoo: Zoo) -> None:
    other, first, _ = zoo.models("llama-tied").low, *two(zoo, "llama-tied")[1:]
    with pytest.raises(BaseMismatchError, match="allow_base_mismatch=True"):
        DEMModel.from_pretrained(other, vectors={first: 0.4})
    model = DEMModel.from_pretrained(other, vectors={first: 0.4}, allow_base_mismatch=True)
    exact = reference(other, [(read_deltas(Path(first)), 0.4)])
    for name, values in exact.items():
        assert_around(model.state_dict()[name], values)
    model.dem.set_coefficients({first: 0.0})


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_set_coefficients_is_a_fresh_load(zoo: Zoo, family: str) -> None:
    base, first, second = two(zoo, family)
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: -0.2})
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    for coefficients in ({first: 0.0, second: 1.0}, {first: -1.0}, {first: 0.3, second: 0.6}):
        model.dem.set_coefficients(coefficients)
    assert same(state(model), state(DEMModel.from_pretrained(base, vectors={second: 0.6, first: 0.3})))
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert model.dem.coefficients == {first: 0.3, second: 0.6}
    model.dem.set_coefficients({first: 0, second: 0})
    assert same(state(model), state(DEMModel.from_pretrained(base, vectors={})))


def test_mixtral_experts_are_merged_on_disk_names(zoo: Zoo) -> None:
    base, first, second = two(zoo, "mixtral")
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: -0.2})
    exact = reference(base, [(read_deltas(Path(first)), 0.9), (read_deltas(Path(second)), -0.2)])
    down = torch.stack(
        [exact[name] for name in sorted(exact) if "layers.1" in name and "experts" in name and ".w2." in name]
    )
    assert_around(model.state_dict()["model.layers.1.mlp.experts.down_proj"], down)


def test_unchanged_weights_lie_in_the_file_and_are_still_the_models_own(zoo: Zoo) -> None:
    base, first, second = two(zoo, "llama-tied")
    before = (base / "model.safetensors").read_bytes()
    model = DEMModel.from_pretrained(base, vectors={first: 0.0, second: 0.0})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (base / "model.safetensors").read_bytes() == before
    coefficients = {first: 0.3, second: 0.6}
    model.dem.set_coefficients(coefficients)
    assert same(model.state_dict(), DEMModel.from_pretrained(base, vectors=coefficients).state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_set_coefficients_in_another_dtype(zoo: Zoo, dtype: str) -> None:
    base, first, second = two(zoo, "gpt2")
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: -0.2}, dtype=dtype)
    model.dem.set_coefficients({first: 0.3})
    assert same(state(model), state(DEMModel.from_pretrained(base, vectors={first: 0.3, second: -0.2}, dtype=dtype)))


@pytest.mark.parametrize("prefix", ["transformer."])
def test_checkpoints_without_their_prefix(zoo: Zoo, tmp_path: Path, prefix: str) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    models = zoo.models("gpt2")
    base, finetuned = (
        reshard(models.base, tmp_path / "base", change=drop),
        reshard(models.full, tmp_path / "finetuned", change=drop),
    )
    DistributionVector.extract(base, finetuned, codec="dense").save_pretrained(tmp_path / "vector")
    model = DEMModel.from_pretrained(base, vectors={str(tmp_path / "vector"): 1.0})
    assert torch.equal(model.transformer.wte.weight, load_tensors(models.full)["transformer.wte.weight"])
    model.dem.set_coefficients({str(tmp_path / "vector"): 0.0})
    assert torch.equal(model.transformer.wte.weight, load_tensors(models.base)["transformer.wte.weight"])


def test_tied_tensors_written_out_in_the_base(llama: Models, tmp_path: Path) -> None:
    def duplicate(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    base = reshard(llama.base, tmp_path / "base", change=duplicate)
    DistributionVector.extract(base, llama.full, codec="dense").save_pretrained(tmp_path / "vector")
    name = str(tmp_path / "vector")
    model = DEMModel.from_pretrained(base, vectors={name: 0.3})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    fresh = state(DEMModel.from_pretrained(base, vectors={name: 0.6}))
    model.dem.set_coefficients({name: 0.6})
    assert same(state(model), fresh)


def test_a_failed_change_restores_the_model(zoo: Zoo) -> None:
    base, first, second = two(zoo, "llama-tied", "float16")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    before = state(model)
    with pytest.raises(CheckpointError, match="beyond the range of the target dtype"):
        model.dem.set_coefficients({first: 1e30})
    assert same(state(model), before)
    assert model.dem.coefficients == {first: 0.3, second: 0.6}
    with pytest.raises(CoefficientError, match="No vector of this recipe is called 'other'"):
        model.dem.set_coefficients({"other": 1.0})
    with pytest.raises(ConfigError, match="finite"):
        model.dem.set_coefficients({first: float("nan")})
    assert same(state(model), before)


def test_deepcopy(zoo: Zoo) -> None:
    base, first, second = two(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    model.dem.set_coefficients({first: 0.2})
    before = state(model)
    twin = copy.deepcopy(model)
    twin.dem.set_coefficients({first: 0.9})
    assert isinstance(twin.dem, AttachedRecipe)
    assert same(state(model), before)
    assert same(state(twin), state(DEMModel.from_pretrained(base, vectors={first: 0.9, second: 0.6})))


def grow(zoo: Zoo, folder: Path, family: str) -> str:
    """A vector whose fine-tune has five more tokens."""
    models = zoo.models(family)

    def more(tensors: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name], torch.full((5, 32), 0.5, dtype=tensors[name].dtype)])

    edit_json(reshard(models.full, folder / "finetuned", change=more) / "config.json", vocab_size=69)
    DistributionVector.extract(models.base, folder / "finetuned", codec="dense").save_pretrained(folder / "grown")
    return str(folder / "grown")


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied"])
def test_grown_vocabulary(zoo: Zoo, tmp_path: Path, family: str) -> None:
    vector = grow(zoo, tmp_path, family)
    model = DEMModel.from_pretrained(zoo.models(family).base, vectors={vector: 0.25})
    assert model.config.vocab_size == 69 == model.get_output_embeddings().weight.shape[0]
    assert bool((model.get_input_embeddings().weight[64:] == 0.5).all())
    assert model(torch.tensor([[68, 3]])).logits.shape == (1, 2, 69)
    model.dem.set_coefficients({vector: 0.5})
    before = state(model)
    with pytest.raises(CoefficientError, match=r"from \[69, 32\] to \[64, 32\].*Load the model anew"):
        model.dem.set_coefficients({vector: 0.0})
    assert same(state(model), before)


@pytest.mark.filterwarnings("ignore")
def test_quantized_model(zoo: Zoo) -> None:
    from bitsandbytes.functional import quantize_4bit
    from transformers import BitsAndBytesConfig

    base, first, _ = two(zoo, "llama-tied")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = DEMModel.from_pretrained(base, vectors={first: 0.5}, quantization_config=quantization, dtype=torch.float32)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    weight = model.model.layers[0].mlp.up_proj.weight
    merged = (
        DEMModel.from_pretrained(base, vectors={first: 0.5}, dtype=torch.float32).model.layers[0].mlp.up_proj.weight
    )
    expected, _ = quantize_4bit(
        merged.data, blocksize=weight.quant_state.blocksize, quant_type=weight.quant_state.quant_type
    )
    assert torch.equal(weight.data, expected)
    with pytest.raises(
        CoefficientError,
        match=r"is quantised \(.*bitsandbytes.*cannot be merged again in place. Load it anew with the new coefficients",
    ):
        model.dem.set_coefficients({first: 0.2})


AUTO = """
{imports}
import json, sys
import torch
recipe, masked, dtype = sys.argv[1:]
results = {{}}
results["config"] = type(AutoConfig.from_pretrained(recipe)).model_type
for name, path in (("AutoModelForCausalLM", recipe), ("AutoModel", recipe), ("AutoModelForMaskedLM", masked)):
    model = getattr(transformers, name).from_pretrained(path, dtype=dtype)
    first = next(parameter for key, parameter in model.named_parameters() if "embed" in key)
    results[name] = [type(model).__name__, str(first.dtype), float(first.double().sum()), sorted(model.dem.coefficients.values())]
tokenizer = AutoTokenizer.from_pretrained(recipe)
results["tokens"] = tokenizer("w1 w2")["input_ids"]
results["chat"] = tokenizer.apply_chat_template([{{"role": "user", "content": "w3"}}], tokenize=False)
generated = pipeline("text-generation", recipe, device="cpu")("w1 w2", max_new_tokens=2, do_sample=False)
results["pipeline"] = generated[0]["generated_text"]
print(json.dumps(results))
"""
IMPORTS = {
    "dem_hub first": "import dem_hub\nimport transformers\nfrom transformers import AutoConfig, AutoTokenizer, pipeline",
    "dem_hub last": "import transformers\nfrom transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline\nimport dem_hub",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_auto_classes(zoo: Zoo, tmp_path: Path, imports: str) -> None:
    recipe, masked = recipe_of(zoo, tmp_path / "recipe"), recipe_of(zoo, tmp_path / "masked", "bert")
    done = subprocess.run(
        [sys.executable, "-c", AUTO.format(imports=imports), recipe, masked, "float32"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    causal = DEMModel.from_pretrained(recipe, dtype="float32").model.embed_tokens.weight.detach()
    bert = DEMModel.from_pretrained(masked, dtype="float32").bert.embeddings.word_embeddings.weight.detach()
    assert results["config"] == "dem"
    assert results["AutoModelForCausalLM"] == [
        "LlamaForCausalLM",
        "torch.float32",
        float(causal.double().sum()),
        [0.3, 0.6],
    ]
    assert results["AutoModel"] == ["LlamaModel", "torch.float32", float(causal.double().sum()), [0.3, 0.6]]
    assert results["AutoModelForMaskedLM"] == [
        "BertForMaskedLM",
        "torch.float32",
        float(bert.double().sum()),
        [0.3, 0.6],
    ]
    assert (len(results["tokens"]), results["chat"]) == (2, "w3")
    assert results["pipeline"].startswith("w1 w2")


def test_headless_model_changes_its_coefficients(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(recipe_of(zoo, tmp_path / "recipe", "gpt2"))
    base, first, second = two(zoo, "gpt2")
    model.dem.set_coefficients({first: 0.0, second: 1.0})
    whole = DEMModel.from_pretrained(base, vectors={first: 0.0, second: 1.0})
    assert same(state(model), state(whole.transformer))


def test_saved_by_transformers_it_is_an_ordinary_model(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, first, _ = two(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3})
    model.save_pretrained(tmp_path / "saved")
    assert same(state(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), state(model))


def test_it_trains(zoo: Zoo) -> None:
    base, first, _ = two(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3}, dtype="float32").train()
    tokens = torch.arange(20)[None]
    model(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    shake(model, 0)


def test_recipes_hold_no_remote_code(zoo: Zoo, tmp_path: Path) -> None:
    edit_json(recipe_of(zoo, tmp_path / "recipe") / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    (tmp_path / "recipe" / "code.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(ConfigError, match="unknown key 'auto_map'"):
        DEMModel.from_pretrained(tmp_path / "recipe", trust_remote_code=True)


def test_recipe_is_the_config_class(zoo: Zoo, tmp_path: Path) -> None:
    recipe = DEMConfig.from_pretrained(recipe_of(zoo, tmp_path / "recipe"))
    assert recipe.architectures == ("LlamaForCausalLM",)
    assert (tmp_path / "recipe" / "config.json").stat().st_size < 5000


def test_switching_between_recipes(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    """One base in memory, several recipes with other vectors: each switch is a fresh load, whatever was there before."""
    vectors = {kind: str(zoo.vector("llama-tied", "bfloat16", kind)) for kind in ("dense", "lowrank", "short")}
    recipes = {
        "a": {vectors["dense"]: 0.4},
        "b": {vectors["lowrank"]: 0.7, vectors["short"]: -0.2},
        "c": {vectors["dense"]: -0.1},
    }
    for name, coefficients in recipes.items():
        DEMModel.from_pretrained(llama.base, vectors=coefficients, rounding_seed=len(name)).dem.save_pretrained(
            tmp_path / name
        )
    model = DEMModel.from_pretrained(tmp_path / "a")
    for name in ("b", "c", "a", "b"):
        model.dem.switch(tmp_path / name)
        assert model.dem.coefficients == recipes[name]
        fresh = DEMModel.from_pretrained(tmp_path / name)
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True)
        )
    model.dem.set_coefficients({vectors["short"]: 0.3})
    fresh = DEMModel.from_pretrained(
        llama.base, vectors={vectors["lowrank"]: 0.7, vectors["short"]: 0.3}, rounding_seed=1
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True))


def test_switching_to_another_base(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.4})
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    DistributionVector.extract(llama.full, llama.base, codec="dense").save_pretrained(tmp_path / "vector")
    DEMModel.from_pretrained(llama.full, vectors={str(tmp_path / "vector"): 0.5}).dem.save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(BaseMismatchError, match="Load it as a model of its own"):
        model.dem.switch(tmp_path / "other")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
