"""The command line, in process: what each command prints, and that a mistake is one message and exit status 2."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMConfig, DEMModel, DistributionVector, __version__
from dem_hub.cli.app import _parser, main
from tests.fake_hub.server import Hub
from tests.support.published_repos import RECIPE, Published
from tests.support.tiny_models import Models, Zoo, edit_json, load_tensors, read_deltas, reshard

OPTIONS = {
    "extract": [
        "base",
        "finetuned",
        "--output",
        "--codec",
        "--max-bytes",
        "--max-error",
        "--rank",
        "--energy",
        "--group",
        "--density",
        "--bits",
        "--dtype",
        "--seed",
    ],
    "info": ["paths", "--base", "--tensors", "--json"],
    "merge": [
        "model",
        "--vector",
        "--output",
        "--push-to-hub",
        "--private",
        "--dtype",
        "--rounding",
        "--rounding-seed",
        "--max-shard-size",
        "--allow-base-mismatch",
        "--dry-run",
    ],
    "search": [
        "base",
        "--vector",
        "--data",
        "--output",
        "--method",
        "--sampler",
        "--storage",
        "--objective",
        "--weight",
        "--bounds",
        "--max-sum",
        "--granularity",
        "--max-forward",
        "--held-out",
        "--resume-from",
        "--with-logits",
        "--cache",
        "--seed",
        "--dtype",
        "--device-map",
        "--batch-size",
        "--max-length",
        "--packing",
        "--plot",
        "--json",
    ],
    "export": ["model", "--vector", "--output", "--peft", "--rank"],
    "eval": [
        "model",
        "--data",
        "--tasks",
        "--include-path",
        "--limit",
        "--dtype",
        "--device-map",
        "--batch-size",
        "--max-length",
        "--json",
    ],
    "push": [
        "folder",
        "repo_id",
        "--base-model",
        "--subfolder",
        "--include-vectors",
        "--private",
        "--revision",
        "--create-pr",
        "--commit-message",
    ],
    "list": ["--base", "--author", "--search", "--limit", "--json"],
    "demo": ["--output"],
}


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    return [
        action.option_strings[-1] if action.option_strings else action.dest
        for action in parser._actions
        if action.dest != "help"
    ]


def test_option_names_are_frozen() -> None:
    commands = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert {name: options_of(parser) for name, parser in commands.choices.items()} == OPTIONS


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines = [
        " ".join(f"w{int(i)}" for i in torch.randint(0, 60, (length,), generator=generator))
        for length in (3, 17, 40, 5, 29, 1, 12)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard output of a command that works."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"dem-hub {__version__}\n"


@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ([], "auto"),
        (["--max-error", "0.3"], "auto"),
        (["--codec", "lowrank", "--rank", "3"], "lowrank"),
        (["--codec", "lowrank", "--energy", "0.5"], "lowrank"),
        (["--codec", "lrsign", "--rank", "3", "--group", "4"], "lrsign"),
        (["--codec", "dense", "--dtype", "bfloat16"], "dense"),
    ],
    ids=str,
)
def test_extract(
    llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], codec: str
) -> None:
    out = run(capsys, "extract", llama.base, llama.full, "-o", tmp_path / "vector", *options)
    vector = DistributionVector.from_pretrained(tmp_path / "vector")
    assert vector.config is not None
    assert vector.config.codec == codec
    assert out.startswith(f"{tmp_path}/vector: {codec}")
    assert "relative error" in out
    assert out.count("\n") == (2 if codec == "auto" else 1)


def test_merge_base_and_vectors(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = {str(zoo.vector("llama-tied", kind=kind)): c for kind, c in (("dense", 0.25), ("lossy", -0.5))}
    arguments = [part for name, c in vectors.items() for part in ("--vector", f"{name}={c}")]
    out = run(
        capsys,
        "merge",
        llama.base,
        *arguments,
        "-o",
        tmp_path / "merged",
        "--rounding",
        "nearest",
        "--dtype",
        "float16",
    )
    assert out == f"{tmp_path}/merged\n"
    expected = DEMModel.from_pretrained(llama.base, vectors=vectors, rounding="nearest", dtype="float16").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_tensors(tmp_path / "merged").items())


def test_merge_a_recipe(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.4}, rounding_seed=3)
    model.dem.save_pretrained(tmp_path / "recipe")
    run(capsys, "merge", tmp_path / "recipe", "-o", tmp_path / "merged", "--max-shard-size", "10KB")
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_tensors(tmp_path / "merged").items()
    )


def test_merge_onto_another_base_by_hand(
    zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["merge", llama.full, "--vector", f"{zoo.vector('llama-tied')}=0.5", "-o", tmp_path / "merged"]
    assert main([str(argument) for argument in arguments]) == 2
    capsys.readouterr()
    run(capsys, *arguments, "--allow-base-mismatch")


def test_info_of_a_vector(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    folder = zoo.vector("llama-tied", "bfloat16", "lossy")
    out = run(capsys, "info", folder)
    assert f"base   {zoo.models('llama-tied').base}" in out
    assert "lowrank dtype=float32 rank=4" in out
    deltas = read_deltas(folder)
    table = {line.split()[0]: line.split() for line in out.splitlines()[4:]}
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
    assert f"+0.4000 * {zoo.vector('llama-tied')}" in out
    assert "stochastic rounding, seed 0" in out
    report = json.loads(run(capsys, "info", "--json", tmp_path / "recipe"))
    assert report["items"][0]["kind"] == "recipe"
    assert report["comparison"] is None


def test_eval_is_the_same_for_any_batch_size(zoo: Zoo, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.models("llama-tied", "float32").base
    results = []
    for size in (1, 3, 8):
        arguments = ["--data", f"words={texts}", "--batch-size", size, "--max-length", 16, "--json"]
        results.append(json.loads(run(capsys, "eval", model, *arguments))["words"])
    assert results[0]["tokens"] == results[1]["tokens"] == results[2]["tokens"] > 50
    assert (
        results[0]["loss"] == pytest.approx(results[1]["loss"], abs=1e-6) == pytest.approx(results[2]["loss"], abs=1e-6)
    )
    assert results[0]["perplexity"] == pytest.approx(math.exp(results[0]["loss"]))


def test_eval_of_a_recipe(
    zoo: Zoo, llama: Models, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 1.0}).dem.save_pretrained(
        tmp_path / "recipe"
    )
    reshard(llama.full, tmp_path / "full")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "full" / name).write_bytes((llama.base / name).read_bytes())
    tables = [
        run(capsys, "eval", folder, "--data", f"words={texts}", "--data", f"more={texts}")
        for folder in (tmp_path / "recipe", tmp_path / "full")
    ]
    assert tables[0] == tables[1]
    assert [line.split()[0] for line in tables[0].splitlines()] == ["data", "words", "more"]


def broken_json(llama: Models, folder: Path) -> Path:
    reshard(llama.base, folder)
    (folder / "config.json").write_text("{")
    return folder


def quantized(llama: Models, folder: Path) -> Path:
    edit_json(reshard(llama.base, folder) / "config.json", quantization_config={"quant_method": "awq"})
    return folder


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such base": (["extract", "absent/", "{base}", "-o", "out"], "'absent/' is not a local folder, and not a Hub id"),
    "no such repository": (["extract", "org/absent", "{base}", "-o", "out"], "'org/absent' is not a local folder, so it was looked up on the Hub"),
    "no such codec": (["extract", "{base}", "{full}", "-o", "out", "--codec", "zip"], "no codec 'zip'; choose one of auto, lrsign, sign"),
    "no such option": (["extract", "{base}", "{full}", "-o", "out", "--codec", "dense", "--rank", "3"], "no option 'rank'"),
    "rank and energy": (["extract", "{base}", "{full}", "-o", "out", "--codec", "lowrank", "--rank", "3", "--energy", "0.5"], "rank or energy, not both"),
    "quantised base": (["extract", "{quantized}", "{full}", "-o", "out"], "is quantised (awq)"),
    "another family": (["extract", "{base}", "{gpt2}", "-o", "out"], "is not a fine-tune of"),
    "a LoRA as a fine-tune": (["extract", "{base}", "{adapter}", "-o", "out"], "'{adapter}' is a LoRA adapter already, which can be used as it is"),
    "a vector as a fine-tune": (["extract", "{base}", "{vector}", "-o", "out"], "'{vector}' is a vector already, which can be used as it is"),
    "a vector as a base": (["extract", "{vector}", "{full}", "-o", "out"], "'{vector}' is a vector, and a base is a model"),
    "config.json that is broken": (["extract", "{broken}", "{full}", "-o", "out"], "config.json is not JSON"),
    "output is a file": (["extract", "{base}", "{full}", "-o", "{file}"], "{file}"),
    "no vector there": (["info", "{base}"], "it is not a distribution vector"),
    "a fine-tune as a vector": (["merge", "{base}", "--vector", "{full}=0.4", "-o", "out"], "If it is a fine-tune, take its vector first: dem-hub extract BASE"),
    "no coefficient": (["merge", "{base}", "--vector", "{vector}", "-o", "out"], "--vector '{vector}' is not NAME=VALUE"),
    "coefficient that is no number": (["merge", "{base}", "--vector", "{vector}=much", "-o", "out"], "is 'much', which is not a number"),
    "coefficient that is not finite": (["merge", "{base}", "--vector", "{vector}=nan", "-o", "out"], "must be a finite number"),
    "nowhere to put it": (["merge", "{base}", "--vector", "{vector}=1"], "Give a folder (-o), a repository (--push-to-hub), or both"),
    "not a recipe": (["merge", "{base}", "-o", "out"], "is not a recipe. Say which vectors to add to it: --vector ID=COEFFICIENT, in Python"),
    "dtype": (["merge", "{base}", "--vector", "{vector}=1", "-o", "out", "--dtype", "int4"], "dtype is 'int4'; choose one of"),
    "shard size": (["merge", "{base}", "--vector", "{vector}=1", "-o", "out", "--max-shard-size", "big"], "'big' is not a size"),
    "a file as output": (["merge", "{base}", "--vector", "{vector}=1", "-o", "{file}"], "is a file, and a merged model is a folder"),
    "a recipe as a fine-tune": (["extract", "{base}", "{recipe}", "-o", "out"], "is a recipe. Make the model of it first: dem-hub merge"),
    "a recipe as a vector": (["merge", "{base}", "--vector", "{recipe}=1", "-o", "out"], "'{recipe}' is a recipe, not a distribution vector. It names"),
    "a vector alone": (["merge", "{vector}", "-o", "out"], "is a vector, not a model. Name the base to put it on"),
    "another base": (["merge", "{full}", "--vector", "{vector}=1", "-o", "out"], "all the same, pass --allow-base-mismatch, in Python allow_base_mismatch=True; a search takes no other base"),
    "a base that others do not have": (["push", "{vector}", "me/maths"], "Say what the Hub calls it: --base-model org/base, in Python base_model="),
    "the same vector twice": (["merge", "{base}", "--vector", "{vector}=1", "--vector", "{vector}/=1", "-o", "out"], "named twice"),
    "another coefficient of the same vector": (["merge", "{base}", "--vector", "{vector}=0.4", "--vector", "{vector}=0.3", "-o", "out"], "--vector has '{vector}' named twice: 0.4 and 0.3"),
    "search: data named twice": (["search", "{base}", "--vector", "{vector}", "--data", "a={words}", "--data", "a={lines}", "-o", "out"], "--data has 'a' named twice: {words} and {lines}"),
    "eval: data named twice": (["eval", "{base}", "--data", "a={words}", "--data", "a={lines}"], "--data has 'a' named twice: {words} and {lines}"),
    "eval: no such file": (["eval", "{base}", "--data", "words=absent.txt"], "'words': 'absent.txt' is not there"),
    "search: no such file, and a folder": (["search", "absent", "--vector", "v", "--data", "a=absent.txt", "--data", "b={base}", "-o", "out"], "'a': 'absent.txt' is not there\n  - 'b': '{base}' is a folder"),
    "eval: no name": (["eval", "{base}", "--data", "{file}"], "is not NAME=VALUE"),
    "eval: not text": (["eval", "{base}", "--data", "words={latin}"], "is not UTF-8"),
    "eval: not JSON lines": (["eval", "{base}", "--data", "words={lines}"], "row 2: Rows have the columns words; give 'text', 'messages' or 'input_ids'"),
    "eval: empty": (["eval", "{base}", "--data", "words={file}"], "has no text in it"),
    "eval: batch size": (["eval", "{base}", "--data", "words={words}", "--batch-size", "0"], "batch_size is 0; it must be 1 or more"),
    "eval: window": (["eval", "{base}", "--data", "words={words}", "--max-length", "1"], "max_length is 1; it must be 2 or more"),
    "onto the base": (["merge", "{base}", "--vector", "{vector}=1", "-o", "{base}"], "is the base itself"),
    "onto a fine-tune": (["merge", "{base}", "--vector", "{vector}=1", "-o", "{full}"], "'{full}' holds a model's weights, and a merged model is to be"),
    "onto a fine-tune, dry": (["merge", "{base}", "--vector", "{vector}=1", "-o", "{full}", "--dry-run"], "'{full}' holds a model's weights"),
    "onto the vector": (["merge", "{base}", "--vector", "{vector}=1", "-o", "{vector}"], "is the vector '{vector}' itself"),
    "a vector onto the base": (["extract", "{base}", "{full}", "-o", "{base}"], "'{base}' holds a model's weights, and a vector is to be written"),
    "a recipe onto a fine-tune": (["search", "absent", "--vector", "v", "--data", "a=b", "-o", "{full}"], "'{full}' holds a model's weights, and a recipe"),
    "eval: dtype": (["eval", "{base}", "--data", "words={words}", "--dtype", "float31"], "float31"),
    "eval: a vector": (["eval", "{vector}", "--data", "words={words}"], "'{vector}' is a vector, and no model without its base. A vector is evaluated on its base: dem-hub merge"),
    "eval: no tokenizer": (["eval", "{full}", "--data", "words={words}"], "is not a model or recipe with a tokenizer"),
}  # fmt: skip


@pytest.fixture
def places(zoo: Zoo, llama: Models, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "words.txt").write_text("w1 w2 w3 w4")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "config.json").write_text('{"model_type": "dem"}')
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "lines.jsonl").write_text('{"text": "w1 w2"}\n{"words": 3}\n')
    return {
        "base": llama.base, "full": llama.full, "gpt2": zoo.models("gpt2").base,
        "vector": zoo.vector("llama-tied"), "adapter": zoo.adapter("llama-tied"), "file": tmp_path / "file.txt", "recipe": tmp_path / "recipe",
        "words": tmp_path / "words.txt", "latin": tmp_path / "latin.txt", "lines": tmp_path / "lines.jsonl",
        "broken": broken_json(llama, tmp_path / "broken"), "quantized": quantized(llama, tmp_path / "quantized"),
    }  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(
    places: dict[str, Any], capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert f"dem-hub {arguments[0]}: " in captured.err
    assert message.format(**places) in captured.err
    assert "Traceback" not in captured.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explode"],
        ["extract"],
        ["merge", "x", "-o", "y", "--rounding", "up"],
        ["extract", "a", "b", "-o", "c", "--rank", "x"],
    ],
    ids=str,
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: dem-hub" in capsys.readouterr().err


def test_recipes_keep_the_seed(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        capsys,
        "merge",
        llama.base,
        "--vector",
        f"{zoo.vector('llama-tied')}=0.5",
        "-o",
        tmp_path / "m",
        "--rounding-seed",
        "9",
    )
    assert DEMConfig.from_pretrained(tmp_path / "m").rounding_seed == 9


def test_push_list_and_info_on_the_hub(
    hub: Hub, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo("org/base")
    HfApi().upload_folder(repo_id="org/base", folder_path=llama.base)
    run(capsys, "extract", "org/base", llama.low, "-o", tmp_path / "vector", "--codec", "lowrank", "--rank", "3")
    assert run(capsys, "push", tmp_path / "vector", "ann/maths", "--commit-message", "Maths").startswith(
        f"{hub.endpoint}/ann/maths/commit/"
    )
    assert "/discussions/1" in run(
        capsys, "push", tmp_path / "vector", "ann/maths", "--create-pr", "--subfolder", "again"
    )
    lines = run(capsys, "list", "--base", "org/base").splitlines()
    assert (lines[0].split(), lines[1].split()[:2]) == (
        ["vector", "kind", "downloads", "changed"],
        ["ann/maths", "vector"],
    )
    assert [found["kind"] for found in json.loads(run(capsys, "list", "--base", "org/base", "--json"))] == ["vector"]

    def numbers(text: str) -> list[str]:
        return [
            line for line in text.splitlines()[1:] if "lowrank dtype" not in line
        ]  # the size of the file has its header in it

    hub.forget_requests()
    remote = run(capsys, "info", "ann/maths")
    assert numbers(remote) == numbers(run(capsys, "info", tmp_path / "vector"))
    assert all("range" in seen.headers for seen in hub.requests("GET", r"/resolve/.*safetensors")), (
        "only headers come down"
    )
    assert main(["push", str(llama.base), "ann/x"]) == 2
    assert "no vector, store, recipe or merged model" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["hub", "both", "dry"])
def test_merge_onto_the_hub(
    published: Published, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    arguments = ["merge", RECIPE, "--push-to-hub", "ann/merged", "--private", "--max-shard-size", "8KB"]
    more = {"hub": [], "both": ["-o", tmp_path / "merged"], "dry": ["--dry-run"]}[where]
    lines = run(capsys, *arguments, *more).splitlines()
    if where == "dry":
        assert (lines, ("models", "ann/merged") in hub.store.repos) == ([], False)
        return
    assert lines[-1].startswith(f"{hub.endpoint}/ann/merged/commit/")
    assert lines[:-1] == ([str(tmp_path / "merged")] if where == "both" else [])
    assert hub.store.repos["models", "ann/merged"].private
    expected = DEMModel.from_pretrained(RECIPE).state_dict()
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained("ann/merged").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("target", ["vector", "base"], ids=["done", "refused"])
def test_a_process_of_its_own_ends_in_order(llama: Models, tmp_path: Path, target: str) -> None:
    """It does not take torch apart, and leaves out nothing else."""
    places = {"vector": tmp_path / "vector", "base": llama.base}
    script = f"""
import atexit, sys
import torch
from dem_hub.cli.app import run
atexit.register(print, "told at the end")
sys.argv = ["dem-hub", "extract", {str(llama.base)!r}, {str(llama.full)!r}, "-o", {str(places[target])!r}, "--codec", "dense"]
run()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("told at the end\n")
    assert (
        done.returncode,
        done.stdout.startswith(f"{places[target]}: dense"),
        "dem-hub extract: " in done.stderr,
    ) == ((0, True, False) if target == "vector" else (2, False, True))


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_process_without_a_stream_ends_well(llama: Models, tmp_path: Path, closed: str) -> None:
    script = f'exec "$0" -m dem_hub.cli.app extract "$@" --codec dense {closed}'
    command = ["sh", "-c", script, sys.executable, str(llama.base), str(llama.full), "-o", str(tmp_path / "vector")]
    assert subprocess.run(command, capture_output=True).returncode == 0
