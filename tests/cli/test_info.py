"""`dem-hub info`: vectors, adapters and recipes for a person and for a program."""

import json
import math
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from dem_hub import DEMModel, DistributionVector
from tests.cli.running import run
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models, Zoo, load_tensors, read_deltas


def test_info_of_a_vector(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    folder = zoo.vector("llama-tied", "bfloat16", "lossy")
    out = run(capsys, "info", folder)
    assert f"base    {zoo.models('llama-tied').base}" in out
    assert "lowrank dtype=float32 rank=4" in out
    deltas = read_deltas(folder)
    table = {line.split()[0]: line.split() for line in out.splitlines()[6:]}
    assert list(table) == ["model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.norm.weight"]
    assert table["model.layers.0"][1] == "dense+lowrank"
    config = DistributionVector.from_pretrained(folder).config
    assert config is not None
    norm = math.sqrt(
        sum(record.norm**2 for name, record in config.tensors.items() if name.startswith("model.layers.0."))
    )
    assert float(table["model.layers.0"][4]) == pytest.approx(norm, rel=1e-3)
    assert float(table["model.norm.weight"][4]) == pytest.approx(float(deltas["model.norm.weight"].norm()), rel=1e-3)


def test_info_of_each_tensor(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    """Its codec with options, and as many bytes as lie in the files."""
    folder = zoo.vector("llama-tied", "bfloat16", "lossy")
    out = run(capsys, "info", "--tensors", folder)
    line = next(line for line in out.splitlines() if line.startswith("model.layers.1.mlp.up_proj.weight"))
    assert line.split()[1:4] == ["lowrank", "dtype=float32", "rank=4"]
    items = json.loads(run(capsys, "info", "--json", folder))["items"][0]
    stored = load_tensors(folder)
    assert sum(entry["bytes"] for entry in items["tensors"].values()) == sum(
        tensor.nbytes for tensor in stored.values()
    )
    assert items["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_info_compares_vectors(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [zoo.vector("gpt2", "bfloat16", kind) for kind in ("dense", "lossy", "lowrank")]
    report = json.loads(run(capsys, "info", "--json", *folders))
    deltas = [read_deltas(folder) for folder in folders]
    names = sorted(set().union(*deltas))
    flat = [torch.cat([d.get(n, torch.zeros_like(deltas[0][n])).flatten() for n in names]) for d in deltas]
    for i in range(3):
        assert report["comparison"]["norms"][i] == pytest.approx(float(flat[i].norm()), rel=1e-5)
        for j in range(3):
            expected = float(flat[i] @ flat[j] / flat[i].norm() / flat[j].norm())
            assert report["comparison"]["cosines"][i][j] == pytest.approx(expected, abs=1e-5)
    assert [item["kind"] for item in report["items"]] == ["vector"] * 3
    assert "cosines" in run(capsys, "info", *folders)


@pytest.mark.parametrize("kind", ["adapter", "vector"])
def test_info_compares_what_is_still_on_the_hub(
    hub: Hub, zoo: Zoo, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cosines need the weights. The stand-ins that describe a vector from its headers have zeros."""
    base = zoo.models("gpt2", "float32").base
    vector = DistributionVector.from_pretrained(
        zoo.adapter("gpt2") if kind == "adapter" else zoo.vector("gpt2", "float32", "lossy")
    )
    HfApi().create_repo("ann/base")
    HfApi().upload_folder(repo_id="ann/base", folder_path=base)
    for name in ("ann/one", "ann/two"):
        vector.push_to_hub(name, base_model="ann/base")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    report = json.loads(run(capsys, "info", "--json", "ann/one", "ann/two", "--base", "ann/base"))["comparison"]
    here = json.loads(run(capsys, "info", "--json", vector.folder, vector.folder, "--base", base))["comparison"]
    assert report["norms"] == here["norms"] and min(report["norms"]) > 0
    assert report["cosines"] == here["cosines"] and report["cosines"][0][1] > 0.9


def test_info_of_an_adapter_and_a_vector(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    base = zoo.models("gpt2", "float32").base
    out = run(capsys, "info", zoo.adapter("gpt2"), zoo.vector("gpt2", "float32", "lossy"), "--base", base)
    assert "lora (a PEFT adapter, read as it is)" in out
    assert "1.0000" in out


def test_info_of_a_recipe(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.4}).dem.save_pretrained(
        tmp_path / "recipe"
    )
    out = run(capsys, "info", tmp_path / "recipe")
    assert re.search(rf"^{zoo.vector('llama-tied')} +\+0\.4000$", out, re.MULTILINE)
    assert "stochastic rounding, seed 0" in out
    report = json.loads(run(capsys, "info", "--json", tmp_path / "recipe"))
    assert report["items"][0]["kind"] == "recipe"
    assert report["comparison"] is None


def test_info_of_an_adapter_by_layer(tmp_path: Path, zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    """Layer 2 before layer 10; ranks and norms as those of PEFT's own scale * B @ A."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, rank in [(10, 3), (2, 2), (0, 2)]:
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{name}A.weight"] = torch.randn(rank, 8, generator=generator)
        tensors[f"{name}B.weight"] = torch.randn(8, rank, generator=generator)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "rank_pattern": {"layers.10.self_attn.q_proj": 3}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lines = run(capsys, "info", tmp_path).split("\n\n")[2].splitlines()
    assert lines[0].split() == ["layer", "rank", "size", "norm"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["model.layers.0", "2"],
        ["model.layers.2", "2"],
        ["model.layers.10", "3"],
    ]
    for line, layer, rank in zip(lines[1:], (0, 2, 10), (2, 2, 3), strict=True):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        delta = 6 / rank * tensors[f"{name}B.weight"].double() @ tensors[f"{name}A.weight"].double()
        assert float(line.split()[-1]) == pytest.approx(float(delta.norm()), rel=1e-3)
    modules = json.loads(run(capsys, "info", "--json", tmp_path))["items"][0]["modules"]
    assert modules["model.layers.10.self_attn.q_proj"]["rank"] == 3


def test_info_compares_two_recipes(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector = str(zoo.vector("llama-tied"))
    recipe = DEMModel.from_pretrained(llama.base, vectors={vector: 0.4}).dem.config
    recipe.save_pretrained(tmp_path / "one")
    recipe.with_coefficients({vector: 0.5}).save_pretrained(tmp_path / "two")
    last = run(capsys, "info", tmp_path / "one", tmp_path / "two").split("\n\n")[-1]
    assert [line.split() for line in last.splitlines()[1:]] == [[vector, "+0.4000", "+0.5000"]]
    recipe.save_pretrained(tmp_path / "two")
    assert "Nothing that decides about the merged weights differs." in run(
        capsys, "info", tmp_path / "one", tmp_path / "two"
    )
