"""`dem-hub regmean`, `ties` and `dare`: a store of vectors, and the command that merges them."""

import json
import shutil
from pathlib import Path

import pytest

from dem_hub import DistributionVector, VectorStore
from dem_hub.cli.app import main
from dem_hub.cli.transformed import keep
from dem_hub.input_statistics.statistics_file import InputStatistics
from tests.cli.running import run
from tests.support.killing import KILLED, run_and_die
from tests.support.tiny_models import Zoo

FAMILY = "llama-untied"


@pytest.fixture
def inputs(zoo: Zoo, tmp_path: Path) -> dict[str, Path]:
    data = tmp_path / "maths.jsonl"
    data.write_text("".join(json.dumps({"text": f"w{number} w{number + 1} w7 w8"}) + "\n" for number in range(40)))
    return {"base": zoo.models(FAMILY).base, "dense": zoo.vector(FAMILY), "lora": zoo.adapter(FAMILY), "data": data}


def test_regmean(inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "regmean"
    vectors = [f"--vector={inputs[name]}={inputs['data']}" for name in ("dense", "lora")]
    text = run(capsys, "regmean", inputs["base"], *vectors, "-o", out)
    store = VectorStore.from_pretrained(out)
    assert sorted(store) == ["adapter", "vector-dense"]
    assert {store[name].config.transformation["name"] for name in store} == {"regmean"}  # type: ignore[union-attr]
    command = text.splitlines()[-1].removeprefix("Merge them: dem-hub ").replace("FOLDER", str(tmp_path / "merged"))
    run(capsys, *command.split())
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_single_adapter_comes_back_as_it_is(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = f"--vector={inputs['lora']}={inputs['data']}"
    text = run(capsys, "regmean", inputs["base"], vector, "-o", tmp_path / "regmean")
    assert f"{tmp_path}/regmean//adapter: LoRA adapter, unchanged, " in text
    kept = VectorStore.from_pretrained(tmp_path / "regmean")["adapter"]
    assert kept.sha256 == DistributionVector.from_pretrained(inputs["lora"]).sha256


@pytest.mark.parametrize("command", ["regmean", "statistics"])
def test_the_same_text_in_other_columns(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Data are known by the hash of their tokens."""
    other = tmp_path / "other.jsonl"
    other.write_text(inputs["data"].read_text().replace('"text"', '"body"'))
    seen = []
    for data in (inputs["data"], other):
        folders = [Path(shutil.copytree(inputs[name], tmp_path / data.stem / name)) for name in ("dense", "lora")]
        options = [f"--vector={folder}={data}" for folder in folders]
        if data == other:
            options += [f"--columns={folder}=body" for folder in folders]
        if command == "statistics":
            run(capsys, command, inputs["base"], *options)
            seen.append([InputStatistics.from_pretrained(folder).data for folder in folders])
        else:
            out = tmp_path / data.stem / "out"
            run(capsys, command, inputs["base"], *options, "-o", out)
            seen.append(VectorStore.from_pretrained(out)["lora"].config.transformation["data"])  # type: ignore[union-attr,index]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("command", [["regmean", "-o", "{folder}/out"], ["statistics"]], ids=lambda command: command[0])
def test_columns_of_data_that_are_not_there(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    name, *options = (part.format(folder=tmp_path) for part in command)
    pair = f"--vector={inputs['lora']}={inputs['data']}"
    assert main([name, str(inputs["base"]), pair, "--columns=maths=body", *options]) == 2
    assert f"There are columns of 'maths', and the data are '{inputs['lora']}'" in capsys.readouterr().err


@pytest.mark.parametrize("normalize", [[], ["--no-normalize"]])
def test_ties(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], normalize: list[str]
) -> None:
    vectors = [f"--vector={inputs['dense']}=1", f"--vector={inputs['lora']}=0.5"]
    text = run(capsys, "ties", inputs["base"], *vectors, "--density", "0.4", "-o", tmp_path / "ties", *normalize)
    store = VectorStore.from_pretrained(tmp_path / "ties")
    record = store["adapter"].config.transformation  # type: ignore[union-attr]
    assert (record["density"], record["weights"], record["normalize"]) == (0.4, [1.0, 0.5], not normalize)
    assert "//adapter=0.5" in text.splitlines()[-1]


def test_dare(inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        capsys,
        "dare",
        inputs["base"],
        "--vector",
        inputs["dense"],
        "--density",
        "0.3",
        "--seed",
        "7",
        "-o",
        tmp_path / "d",
    )
    record = VectorStore.from_pretrained(tmp_path / "d")["vector-dense"].config.transformation  # type: ignore[union-attr]
    assert (record["density"], record["seed"]) == (0.3, 7)


def test_a_vector_named_twice_is_refused(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = [f"--vector={inputs['lora']}={inputs['data']}"] * 2
    assert main(["regmean", str(inputs["base"]), *twice, "-o", str(tmp_path / "x")]) == 2
    assert "named twice" in capsys.readouterr().err


@pytest.mark.parametrize("present", ["notes", "a store"])
def test_nothing_is_replaced(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], present: str
) -> None:
    out = tmp_path / "out"
    if present == "notes":
        out.mkdir()
        (out / "notes.txt").touch()
    else:
        VectorStore.create(out, inputs["base"])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for command in (["ties", "--vector", f"{inputs['lora']}=1"], ["dare", "--vector", str(inputs["lora"])]):
        assert main([command[0], str(inputs["base"]), *command[1:], "-o", str(out)]) == 2
        told = capsys.readouterr().err
        assert "already" in told
        assert "Choose an empty folder" in told
        assert "--overwrite" not in told  # which these commands do not have
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_that_is_killed_can_be_run_again(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store has all of its vectors, or is not there."""
    out = tmp_path / "store"
    vectors = dict.fromkeys(("one", "two"), DistributionVector.from_pretrained(inputs["dense"]))
    ones = dict.fromkeys(vectors, 1.0)
    for count in (1, 5, 12, 20, 30):
        status = run_and_die(lambda: keep(str(out), str(inputs["base"]), vectors, ones), count)
        assert status == KILLED
        assert not out.exists()
    keep(str(out), str(inputs["base"]), vectors, ones)
    assert sorted(VectorStore.from_pretrained(out)) == ["one", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maths.jsonl", "store"]


def test_statistics_take_the_place_of_data(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = [shutil.copytree(inputs[name], tmp_path / name) for name in ("dense", "lora")]
    pairs = [f"--vector={vector}={inputs['data']}" for vector in vectors]
    text = run(capsys, "statistics", inputs["base"], *pairs)
    # Four distinct inputs in each of two layers, and the output's.
    assert [line.partition(": ")[2] for line in text.splitlines()] == ["160 tokens, 9 inputs"] * 2
    run(capsys, "regmean", inputs["base"], *(f"--vector={vector}" for vector in vectors), "-o", tmp_path / "regmean")
    assert sorted(VectorStore.from_pretrained(tmp_path / "regmean")) == ["dense", "lora"]
