"""The manifest of a merged model: what the merge wrote is replaced and pushed, and nothing else is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dem_hub import VectorSource
from dem_hub.errors import CheckpointError, ConfigError
from dem_hub.files.folders import MERGED, check_output
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export, is_exported, is_interrupted
from dem_hub.models.manifest import Manifest, merged_files, owned_files
from dem_hub.models.planned import PlannedModel
from tests.support.tiny_models import Zoo


def planned(zoo: Zoo, coefficient: float = 0.5, base: Path | None = None, **options: Any) -> PlannedModel:
    vector = str(zoo.vector("llama-tied", kind="lowrank"))
    source = VectorSource(str(base or zoo.models("llama-tied").base))
    return PlannedModel.of(open_base_and_vectors(source, {vector: coefficient}), **options)


@pytest.fixture
def merged(zoo: Zoo, tmp_path: Path) -> Path:
    export(planned(zoo), tmp_path / "merged")
    return tmp_path / "merged"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_names_all_that_was_written(zoo: Zoo, merged: Path) -> None:
    manifest = Manifest.read(merged)
    assert manifest is not None
    assert owned_files(merged) == names(merged) == {*manifest.files, "dem_files.json"}
    assert {name: size for name, size in manifest.files.items() if size is not None} == {
        "model.safetensors": (merged / "model.safetensors").stat().st_size
    }
    assert set(merged_files(merged)) == set(manifest.files)
    assert is_exported(planned(zoo), merged) and not is_exported(planned(zoo, 0.25), merged)


def test_another_merge_replaces_what_the_first_wrote(zoo: Zoo, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(zoo.models("llama-tied").base, base)
    (base / "modeling_odd.py").write_text("raise SystemExit")
    (base / "vocab.txt").write_text("w0")
    target = tmp_path / "merged"
    export(planned(zoo, base=base, max_shard_size="8KB"), target)
    mine = {".env": "key", "id_rsa": "key", "notes.txt": "mine", "strange.py": "mine", "model-mine.safetensors": "mine"}
    for name, text in mine.items():
        (target / name).write_text(text)
    assert not set(mine) & set(merged_files(target, include_code=True))
    assert "modeling_odd.py" in merged_files(target, include_code=True)
    assert "modeling_odd.py" not in merged_files(target)
    export(planned(zoo), target)
    export(planned(zoo), tmp_path / "fresh")
    assert names(target) == names(tmp_path / "fresh") | set(mine)
    assert {name: (target / name).read_text() for name in mine} == mine


def test_a_folder_with_no_manifest(merged: Path) -> None:
    """Of another version, or cloned: the names of a model's files, and no code."""
    whole = set(merged_files(merged))
    (merged / "dem_files.json").unlink()
    for name in (".env", "id_rsa", "notes.txt", "notes.json", "strange.py", "model-mine.safetensors"):
        (merged / name).write_text("mine")
    assert set(merged_files(merged, include_code=True)) == whole


@pytest.mark.parametrize(
    "name",
    [".env", "id_rsa", "../id_rsa", "sub/modeling.py", ".hidden.py", "notes.txt", "model-1.safetensors", "a\\b.py"],
)
def test_a_name_that_no_merge_writes(merged: Path, name: str) -> None:
    data = json.loads((merged / "dem_files.json").read_text())
    data["files"][name] = None
    (merged / "dem_files.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="is no file that a merge writes"):
        merged_files(merged)


@pytest.mark.parametrize("size", [-1, True, "1", 1.5, [], {}])
def test_a_size_that_no_file_has(merged: Path, size: object) -> None:
    data = json.loads((merged / "dem_files.json").read_text())
    (merged / "dem_files.json").write_text(json.dumps({**data, "files": {"model.safetensors": size}}))
    with pytest.raises(ConfigError, match="must be a number of bytes|whole number or nulls"):
        merged_files(merged)


def test_a_folder_that_is_not_whole(merged: Path) -> None:
    (merged / "tokenizer.json").unlink()
    (merged / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"'model.safetensors' has 5 bytes, .*\n  - 'tokenizer.json' is missing"):
        merged_files(merged)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("shards", [1, 6])
def test_weights_of_the_same_size_that_are_others(zoo: Zoo, tmp_path: Path, shards: int) -> None:
    """They are not this model, are not pushed, and are replaced only with `--overwrite`."""
    target = tmp_path / "merged"
    plan = planned(zoo, **({} if shards == 1 else {"max_shard_size": "8KB"}))
    export(plan, target)
    assert is_exported(plan, target)
    weights = sorted(target.glob("model*.safetensors"))[-1]
    flip_a_bit(weights)
    assert not is_exported(plan, target)
    assert not is_interrupted(target)
    with pytest.raises(
        CheckpointError, match=f"'{weights.name}' has sha256 .*, and was written with (?s:.*)Merge it again"
    ):
        merged_files(target)
    with pytest.raises(ConfigError, match="holds a merged model already"):
        check_output(target, MERGED, overwrite=is_interrupted(target))
    export(plan, target)
    assert is_exported(plan, target)


def test_weights_that_a_person_saved_there_are_not_what_a_killed_run_left(zoo: Zoo, merged: Path) -> None:
    (merged / "tokenizer.json").unlink()
    assert is_interrupted(merged)
    shutil.copyfile(zoo.models("llama-tied", "float32").full / "model.safetensors", merged / "model.safetensors")
    assert not is_interrupted(merged)


def test_a_manifest_without_hashes(zoo: Zoo, merged: Path) -> None:
    """Of an earlier version: the sizes count."""
    data = json.loads((merged / "dem_files.json").read_text())
    del data["weights"]
    (merged / "dem_files.json").write_text(json.dumps(data))
    flip_a_bit(merged / "model.safetensors")
    assert is_exported(planned(zoo), merged)


def test_a_person_may_edit_a_config(merged: Path) -> None:
    (merged / "generation_config.json").write_text("{}")
    assert merged_files(merged)["generation_config.json"].read_text() == "{}"


def test_weights_that_would_load_in_place_of_the_model(zoo: Zoo, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    export(planned(zoo, max_shard_size="8KB"), target)
    shutil.copyfile(zoo.models("llama-tied").full / "model.safetensors", target / "model.safetensors")
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="'model.safetensors' is not named in dem_files.json"):
        export(planned(zoo), target)
    assert (target / "model.safetensors").read_bytes() == before
