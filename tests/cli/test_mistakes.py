"""A mistake of the user is one message and exit status 2, whatever the command."""

from pathlib import Path
from typing import Any

import pytest

from dem_hub.cli.app import main
from tests.support.tiny_models import Models, Zoo, edit_json, reshard


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
    "no coefficient": (["merge", "{base}", "--vector", "{vector}", "-o", "out"], "--vector '{vector}' is not NAME=VALUE, such as maths-vector=0.5."),
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
    **{
        f"merge: {option[0]} without a push": (["merge", "{base}", "--vector", "{vector}=1", "-o", "out", *option], "are for --push-to-hub, which is not given")
        for option in (["--private"], ["--include-code"], ["--base-model", "org/base"])
    },
    **{
        f"eval: {option} without tasks": (["eval", "{base}", "--data", "a={words}", option, "3"], "--limit and --include-path are for --tasks, which is not given")
        for option in ("--limit", "--include-path")
    },
    "export: a rank of nothing": (["export", "{base}", "--vector", "{vector}=1", "-o", "out", "--rank", "0"], "rank is 0; it must be a whole number from 1"),
    "merge: a seed of 65 bits": (["merge", "{base}", "--vector", "{vector}=1", "-o", "out", "--rounding-seed", "18446744073709551616"], "rounding_seed is a number of 65 bits"),
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
    assert "Usage: dem-hub" in capsys.readouterr().err
