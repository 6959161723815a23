"""`dem-hub search`: the same result as in Python, in a folder, in a table, in JSON."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from dem_hub import DEMModel, SearchResult
from dem_hub.cli.app import main
from dem_hub.search.pictures import picture_kinds
from tests.support.counting_models import Counters


@pytest.fixture
def command(counters: Counters, tmp_path: Path) -> list[str]:
    arguments = ["search", str(counters.base), "-o", str(tmp_path / "found")]
    for name in ("up", "down"):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in counters.data[name]))
        arguments += ["--vector", counters.vectors[name], "--data", f"{name}={file}"]
    return arguments


def test_a_search(command: list[str], counters: Counters, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    assert main([*command, "--plot", str(pictures), "--theme", "dark"]) == 0
    out = capsys.readouterr().out
    result = SearchResult.from_pretrained(tmp_path / "found")
    assert result.method == "gauss_newton"
    assert DEMModel.from_pretrained(tmp_path / "found").dem.coefficients == result.coefficients
    # The same text as in Python, but for where it is saved and the next command.
    printed = str(result).rpartition("\n\n")[0]
    assert out.startswith(
        f"{printed}\n\nSaved in {tmp_path / 'found'}: the recipe and all that was measured.\n"
        f"Drawn in {pictures}: losses, coefficients, landscape, front, trials.\nNext: dem-hub merge "
    )
    names = [f"{kind}.{ending}" for kind in picture_kinds(result) for ending in ("png", "svg")]
    assert sorted(path.name for path in pictures.iterdir()) == sorted(names)
    result.plot("losses", tmp_path / "losses.svg", theme="dark")
    assert (pictures / "losses.svg").read_bytes() == (tmp_path / "losses.svg").read_bytes()


def test_a_picture_that_cannot_be_drawn_is_refused_first(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*command, "--plot", str(tmp_path / "pictures")]) == 2
    assert "pip install 'dem-hub[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()


def test_a_result_is_replaced_only_with_overwrite(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [*command, "--method", "uniform", "--max-forward", "1", "--held-out", "0"]
    folder = tmp_path / "found"
    assert main([*quick, "--cache", str(folder / "cache")]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as context:
        never = Mock(side_effect=AssertionError("hours of work come first"))
        context.setattr("dem_hub.models.loading.DEMModel.from_pretrained", never)
        assert main(quick) == 2
        assert (
            "found' holds a recipe already. Choose another folder, or replace it: --overwrite"
            in capsys.readouterr().err
        )
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        (pictures / "trials.png").touch()
        other = [str(tmp_path / "other") if part == str(folder) else part for part in quick]
        assert main([*other, "--plot", str(pictures)]) == 2
        assert (
            "trials.png' is there already. Choose another name, or replace it: --overwrite" in capsys.readouterr().err
        )
        assert main([*other, "--plot", str(tmp_path / "plot.png"), "--overwrite"]) == 2
        assert "is a file, and several pictures are drawn. Give it a folder." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "notes.txt").write_text("mine")
    assert main([*quick, "--seed", "1", "--overwrite", "--plot", str(pictures)]) == 0
    assert SearchResult.from_pretrained(folder).config.search["seed"] == 1
    assert (folder / "notes.txt").read_text() == "mine"
    assert (pictures / "trials.png").stat().st_size > 0


def test_a_search_goes_on_in_the_folder_of_a_killed_one(command: list[str], tmp_path: Path) -> None:
    quick = [*command, "--method", "uniform", "--max-forward", "1", "--held-out", "0"]
    folder = tmp_path / "found"
    assert main([*quick, "--cache", str(folder / "cache")]) == 0
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    assert main([*quick, "--cache", str(folder / "cache")]) == 0
    assert SearchResult.from_pretrained(folder).method == "uniform"


def test_json_and_options(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--json",
        "--method",
        "quadratic",
        "--objective",
        "worst",
        "--weight",
        "down=0.5",
        "--bounds",
        "0",
        "0.4",
        "--max-sum",
        "0.6",
    ]
    assert main([*command, *options, "--max-forward", "9", "--held-out", "0", "--seed", "3", "--batch-size", "5"]) == 0
    data = json.loads(capsys.readouterr().out)
    result = SearchResult.from_pretrained(tmp_path / "found")
    assert data["coefficients"] == result.coefficients
    assert all(0 <= value <= 0.4 for value in data["coefficients"].values())
    assert sum(data["coefficients"].values()) <= 0.6 + 1e-9
    assert (data["method"], data["num_forward"], data["held_out_loss"], data["chosen"]) == (
        "quadratic",
        9,
        None,
        "found",
    )
    assert (result.objective.kind, result.objective.weights) == ("worst", {"down": 0.5})
    assert data["loss"] == pytest.approx(max(data["losses"]["up"], 0.5 * data["losses"]["down"]))


def test_going_on_from_an_earlier_search(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--with-logits"]) == 0
    again = [part if part != str(tmp_path / "found") else str(tmp_path / "again") for part in command]
    assert main([*again, "--resume-from", str(tmp_path / "found"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert data["num_forward"] < SearchResult.from_pretrained(tmp_path / "found").num_forward


def test_a_sampler(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([*command, "--sampler", "tpe", "--storage", str(tmp_path / "journal.log"), "--max-forward", "6", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["method"] == "optuna"
    assert (tmp_path / "journal.log").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "method is 'magic'; it must be auto, or one of"),
        (["--weight", "up=much"], "The weight of 'up' is 'much', which is not a number"),
        (["--weight", "left=1"], "weights name 'left'; the distributions are 'up', 'down'"),
        (
            ["--sampler", "tpe", "--method", "grid"],
            "--sampler and --storage are for --method optuna, and the method is grid",
        ),
        (["--data", "file.jsonl"], "'file.jsonl' is not NAME=VALUE"),
        (["--bounds", "1", "0"], "each must be a finite (lower, upper) pair"),
        (["--resume-from", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_mistakes_are_one_message(
    command: list[str], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def crossed_command(crossed: Counters, tmp_path: Path) -> list[str]:
    """A search of two vectors whose data have other names than they."""
    arguments = ["search", str(crossed.base), "-o", str(tmp_path / "found"), "--max-forward", "4", "--regmean"]
    for name, data in (("first", "one"), ("second", "second")):
        file = tmp_path / f"{data}.jsonl"
        file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in crossed.data[name]))
        arguments += ["--vector", crossed.vectors[name], "--data", f"{data}={file}"]
    return arguments


def test_regmean(
    crossed_command: list[str], crossed: Counters, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of the two is kept, by how much, and the figures of the other one, in a text and as JSON."""
    own = ["--own-data", "first=one"]
    assert main([*crossed_command, *own]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "found"
    result = SearchResult.from_pretrained(folder)
    assert result.regmean is not None
    assert result.regmean.note() in out
    assert result.regmean.note().endswith("kept.")
    rows = out.split("\n\n")[1].splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [[name, "+1.0000"] for name in crossed.vectors]
    first, second = result.plain.coefficients.values()
    assert f"The plain DEM: {first:+.4f} * first, {second:+.4f} * second" in out
    assert DEMModel.from_pretrained(folder).dem.coefficients == result.coefficients

    assert main([*crossed_command, *own, "--json", "--overwrite"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["coefficients"] == {f"{folder}//vectors/{name}": 1.0 for name in crossed.vectors}
    assert data["regmean"] == {
        "kept": True,
        "gain": -result.regmean.contender.difference,
        "error": result.regmean.contender.error,
        "held_out_loss": data["held_out_loss"],
        "plain_held_out_loss": data["baselines"]["plain"],
        "plain_coefficients": {crossed.vectors["first"]: first, crossed.vectors["second"]: second},
        "own_data": {crossed.vectors["first"]: "one", crossed.vectors["second"]: "second"},
    }


def test_regmean_does_not_guess_whose_data_is_whose(
    crossed_command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(crossed_command) == 2
    assert "/first' was trained on is not known" in capsys.readouterr().err
    assert main([*crossed_command, "--own-data", "first"]) == 2
    assert "--own-data 'first' is not NAME=VALUE" in capsys.readouterr().err
    crossed_command.remove("--regmean")
    assert main([*crossed_command, "--own-data", "first=one"]) == 2
    assert "--own-data is for --regmean" in capsys.readouterr().err
