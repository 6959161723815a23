"""The export: an ordinary transformers folder that needs no dem_hub, with the bits that DEMModel loads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorSource
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import CheckpointError, ConfigError, DiskSpaceError
from dem_hub.hub.hashes import digest
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from dem_hub.models.export import estimate_export, export
from dem_hub.models.planned import PlannedModel
from tests.support.tiny_models import DTYPES, FAMILIES, Models, Zoo, edit_json, load_tensors, reshard


def opened(zoo: Zoo, family: str, dtype: str = "bfloat16", **coefficients: float) -> OpenedRecipe:
    vectors = {
        str(zoo.vector(family, dtype, kind)): value
        for kind, value in (coefficients or {"dense": 0.3, "lowrank": 0.6}).items()
    }
    return open_base_and_vectors(VectorSource(str(zoo.models(family, dtype).base)), vectors)


def state(model: Any) -> dict[str, Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_the_bits_of_a_load(zoo: Zoo, tmp_path: Path, family: str, dtype: str) -> None:
    import transformers

    recipe = opened(zoo, family)
    export(PlannedModel.of(recipe, dtype=dtype), tmp_path / "merged")
    ours = DEMModel.from_pretrained(recipe.base.folder, vectors=recipe.recipe.coefficients, dtype=dtype)
    theirs = getattr(transformers, type(ours).__name__).from_pretrained(tmp_path / "merged")
    assert theirs.dtype == getattr(torch, dtype)
    assert all(torch.equal(state(theirs)[name], tensor) for name, tensor in state(ours).items())


def test_keys_are_those_of_the_base(zoo: Zoo, tmp_path: Path) -> None:
    export(PlannedModel.of(opened(zoo, "gpt2")), tmp_path / "merged")
    base, merged = Checkpoint(zoo.models("gpt2").base), Checkpoint(tmp_path / "merged")
    assert {(name, info.dtype, info.shape) for name, info in base.items()} == {
        (name, info.dtype, info.shape) for name, info in merged.items()
    }


WITHOUT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dem_hub":
            raise ImportError("dem_hub is not installed here")
sys.meta_path.insert(0, Block())
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("w1 w2", return_tensors="pt")["input_ids"]
print(type(model).__name__, model.generation_config.max_length, float(model.lm_head.weight.double().sum()), ids.shape[1])
"""


def test_loads_with_no_dem_hub(zoo: Zoo, tmp_path: Path) -> None:
    export(PlannedModel.of(opened(zoo, "llama-untied"), max_shard_size="10KB"), tmp_path / "merged")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, tmp_path / "merged"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    expected = load_tensors(tmp_path / "merged")["lm_head.weight"].double().sum()
    assert done.stdout.split() == ["LlamaForCausalLM", "37", str(float(expected)), "2"]


def test_side_files_come_along(zoo: Zoo, tmp_path: Path) -> None:
    export(PlannedModel.of(opened(zoo, "llama-tied")), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "dem_config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "dem_files.json",
    }  # fmt: skip


def test_provenance_is_the_recipe(zoo: Zoo, tmp_path: Path) -> None:
    recipe = opened(zoo, "llama-tied")
    export(PlannedModel.of(recipe, dtype="float16"), tmp_path / "merged")
    found = DEMConfig.from_pretrained(tmp_path / "merged")
    assert found.coefficients == recipe.recipe.coefficients
    assert (found.dtype, found.base) == ("float16", recipe.recipe.base)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "llama"


def test_shards(zoo: Zoo, tmp_path: Path) -> None:
    for folder, size in (("one", "5GB"), ("many", "8KB")):
        export(PlannedModel.of(opened(zoo, "llama-tied"), max_shard_size=size), tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    one, many = load_tensors(tmp_path / "one"), load_tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_the_same_bytes_again(zoo: Zoo, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        export(PlannedModel.of(opened(zoo, "llama-tied")), tmp_path / folder)
    assert digest(tmp_path / "first" / "model.safetensors") == digest(tmp_path / "second" / "model.safetensors")


def test_over_an_older_export_in_shards(zoo: Zoo, tmp_path: Path) -> None:
    export(PlannedModel.of(opened(zoo, "llama-tied"), max_shard_size="8KB"), tmp_path / "merged")
    export(PlannedModel.of(opened(zoo, "llama-tied", dense=1.0)), tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").glob("model*")] == ["model.safetensors"]
    export(PlannedModel.of(opened(zoo, "llama-tied"), max_shard_size="8KB"), tmp_path / "merged")
    assert not (tmp_path / "merged" / "model.safetensors").exists()
    recipe = opened(zoo, "llama-tied")
    export(PlannedModel.of(recipe), tmp_path / "new")
    assert all(
        torch.equal(tensor, load_tensors(tmp_path / "merged")[name])
        for name, tensor in load_tensors(tmp_path / "new").items()
    )


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied"])
def test_grown_vocabulary(zoo: Zoo, tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    def more(tensors: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name], torch.full((5, 32), 0.5, dtype=tensors[name].dtype)])

    models = zoo.models(family)
    edit_json(reshard(models.full, tmp_path / "finetuned", change=more) / "config.json", vocab_size=69)
    DistributionVector.extract(models.base, tmp_path / "finetuned", codec="dense").save_pretrained(tmp_path / "vector")
    recipe = open_base_and_vectors(VectorSource(str(models.base)), {str(tmp_path / "vector"): 0.4})
    export(PlannedModel.of(recipe), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.config.vocab_size == 69
    assert bool((model.get_input_embeddings().weight[64:] == 0.5).all())
    assert bool((model.get_output_embeddings().weight[64:] == 0.5).all())


def test_from_a_recipe(zoo: Zoo, tmp_path: Path) -> None:
    recipe = opened(zoo, "llama-tied")
    recipe.recipe.save_pretrained(tmp_path / "recipe")
    export(PlannedModel.of(open_recipe(VectorSource(str(tmp_path / "recipe")))), tmp_path / "merged")
    ours = DEMModel.from_pretrained(tmp_path / "recipe")
    assert all(torch.equal(tensor, state(ours)[name]) for name, tensor in load_tensors(tmp_path / "merged").items())


def test_no_such_dtype(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'int8'; choose one of float32, float16, bfloat16"):
        export(PlannedModel.of(opened(zoo, "llama-tied"), dtype="int8"), tmp_path / "merged")


def test_a_failure_leaves_nothing_behind(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="beyond the range"):
        export(PlannedModel.of(opened(zoo, "llama-tied", "float16", dense=1e30)), tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_base_with_code_of_its_own(zoo: Zoo, tmp_path: Path) -> None:
    base = reshard(zoo.models("llama-tied").base, tmp_path / "base")
    edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    (base / "code.py").write_text("raise SystemExit('this code ran')")
    recipe = open_base_and_vectors(VectorSource(str(base)), {str(zoo.vector("llama-tied")): 0.4})
    export(PlannedModel.of(recipe), tmp_path / "merged")
    assert (tmp_path / "merged" / "code.py").is_file()


def test_a_preview_is_what_is_written(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    opened = open_base_and_vectors(
        VectorSource(str(llama.base)), {str(zoo.vector("llama-tied", "bfloat16", "lowrank")): 0.5}
    )
    seen = estimate_export(PlannedModel.of(opened, dtype="float32"), tmp_path / "not" / "there")
    assert not (tmp_path / "not").exists()
    export(PlannedModel.of(opened, dtype="float32"), tmp_path / "merged")
    tensors = load_tensors(tmp_path / "merged")
    assert (seen.tensors, seen.writes) == (len(tensors), sum(tensor.nbytes for tensor in tensors.values()))
    assert seen.changed == 14  # seven matrices in each of two layers
    inputs = [
        *load_tensors(llama.base).values(),
        *load_tensors(zoo.vector("llama-tied", "bfloat16", "lowrank")).values(),
    ]
    assert seen.reads == sum(tensor.nbytes for tensor in inputs)


def test_too_little_room_is_said_first(
    zoo: Zoo, llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    opened = open_base_and_vectors(VectorSource(str(llama.base)), {str(zoo.vector("llama-tied")): 0.5})
    with pytest.raises(DiskSpaceError, match=r"takes [\d.]+ kB in .*merged', and 1.0 kB are free there"):
        export(PlannedModel.of(opened), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
