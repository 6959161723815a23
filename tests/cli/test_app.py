"""The command line as a whole: its options, its exit, and what it is as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from dem_hub import __version__
from dem_hub.cli.app import app, main
from tests.cli.running import parameters_of
from tests.support.tiny_models import Models

OPTIONS = {
    "extract": [
        "base",
        "finetuned",
        "--output",
        "--overwrite",
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
        "--verify",
    ],
    "info": ["paths", "--base", "--tensors", "--plot", "--theme", "--json", "--mergekit"],
    "merge": [
        "model",
        "--vector",
        "--output",
        "--push-to-hub",
        "--base-model",
        "--private",
        "--include-code",
        "--overwrite",
        "--dtype",
        "--rounding",
        "--rounding-seed",
        "--base-quantized",
        "--max-shard-size",
        "--allow-base-mismatch",
        "--by-ranks",
        "--dry-run",
        "--verify",
    ],
    "statistics": ["base", "--vector", "--columns", "--max-length", "--batch-size", "--dtype"],
    "regmean": [
        "base",
        "--vector",
        "--output",
        "--codec",
        "--columns",
        "--device",
        "--max-length",
        "--batch-size",
        "--dtype",
        "--verify",
    ],
    "ties": ["base", "--vector", "--output", "--codec", "--device", "--density", "--normalize", "--verify"],
    "dare": ["base", "--vector", "--output", "--codec", "--device", "--density", "--seed", "--verify"],
    "mix": [
        "model",
        "--vector",
        "--data",
        "--columns",
        "--max-length",
        "--batch-size",
        "--compare",
        "--dtype",
        "--device-map",
        "--verify",
        "--output",
        "--host",
        "--port",
    ],
    "search": [
        "base",
        "--vector",
        "--data",
        "--columns",
        "--output",
        "--method",
        "--sampler",
        "--storage",
        "--objective",
        "--weight",
        "--bounds",
        "--max-sum",
        "--granularity",
        "--regmean",
        "--own-data",
        "--max-forward",
        "--held-out",
        "--resume-from",
        "--overwrite",
        "--with-logits",
        "--cache",
        "--seed",
        "--dtype",
        "--device-map",
        "--batch-size",
        "--max-length",
        "--packing",
        "--plot",
        "--theme",
        "--json",
        "--verify",
    ],
    "export": [
        "model",
        "--vector",
        "--output",
        "--overwrite",
        "--gguf",
        "--mlx",
        "--scales",
        "--peft",
        "--rank",
        "--rank-pattern",
        "--dtype",
        "--verify",
    ],
    "eval": [
        "model",
        "--data",
        "--columns",
        "--tasks",
        "--include-path",
        "--limit",
        "--dtype",
        "--device-map",
        "--batch-size",
        "--max-length",
        "--json",
        "--verify",
    ],
    "plan": [
        "model",
        "--vector",
        "--load",
        "--search",
        "--merge",
        "--serve",
        "--memory",
        "--dtype",
        "--quantize",
        "--device-map",
        "--method",
        "--max-forward",
        "--batch-size",
        "--max-length",
        "--output",
        "--json",
    ],
    "check": [
        "model",
        "--against",
        "--base",
        "--data",
        "--columns",
        "--dtype",
        "--quantize",
        "--base-quantized",
        "--device-map",
        "--batch-size",
        "--max-length",
        "--json",
        "--verify",
    ],
    "push": [
        "folder",
        "repo_id",
        "--space",
        "--base-model",
        "--subfolder",
        "--include-vectors",
        "--include-statistics",
        "--include-code",
        "--dry-run",
        "--private",
        "--revision",
        "--create-pr",
        "--commit-message",
    ],
    "list": ["--base", "--author", "--search", "--limit", "--json"],
    "demo": ["--output"],
}


def options_of(name: str) -> list[str]:
    return [
        parameter.opts[-1] if isinstance(parameter, click.Option) else str(parameter.name)
        for parameter in parameters_of(name)
        if "--help" not in parameter.opts
    ]


def test_option_names_are_frozen() -> None:
    assert {name: sorted(options_of(name)) for name in app.commands} == {
        name: sorted(options) for name, options in OPTIONS.items()
    }


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"dem-hub {__version__}\n"


def test_a_shell_completes_commands_options_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = BashComplete(app, {}, "dem-hub", "_DEM_HUB_COMPLETE").get_completions
    assert {item.value for item in complete([], "ex")} == {"extract", "export"}
    assert {item.value for item in complete(["extract"], "--max")} == {"--max-bytes", "--max-error"}
    assert [item.value for item in complete(["merge", "--rounding"], "near")] == ["nearest"]
    assert [item.type for item in complete(["merge"], "fol")] == ["file"]


def test_a_shell_gets_its_script() -> None:
    environment = {**os.environ, "_DEM_HUB_COMPLETE": "bash_source"}
    done = subprocess.run([sys.executable, "-m", "dem_hub.cli"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "_DEM_HUB_COMPLETE=bash_complete" in done.stdout


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
    script = f'exec "$0" -m dem_hub.cli extract "$@" --codec dense {closed}'
    command = ["sh", "-c", script, sys.executable, str(llama.base), str(llama.full), "-o", str(tmp_path / "vector")]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("mat1 and mat2\nshapes"), "dem-hub info: RuntimeError: mat1 and mat2 (unexpected; "),
        (MemoryError(), "dem-hub info: MemoryError (unexpected; "),
        (KeyError("a"), "dem-hub info: KeyError: 'a' (unexpected; "),
        (RecursionError("too deep"), "dem-hub info: RecursionError: too deep (unexpected; "),
    ],
    ids=["RuntimeError", "MemoryError", "KeyError", "RecursionError"],
)
def test_an_error_that_nobody_expected_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app.commands["info"], "callback", fail)
    assert main(["info", "folder"]) == 1
    told = capsys.readouterr().err
    assert told == f"{said}DEM_HUB_TRACEBACK=1 in the environment shows where it happened)\n"
    monkeypatch.setenv("DEM_HUB_TRACEBACK", "1")
    assert main(["info", "folder"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last)")
    assert f"line {fail.__code__.co_firstlineno + 1}, in fail" in told


def test_ctrl_c_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.commands["info"], "callback", stop)
    assert main(["info", "folder"]) == 130
    assert capsys.readouterr().err == "dem-hub info: stopped by Ctrl-C.\n"
