"""Exports that are killed: nothing that loads is left, and the next run resumes and gives the same bits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import dem_hub.checkpoints.writer
import dem_hub.files.resumable
from dem_hub import DistributionVector
from dem_hub.errors import BusyError
from dem_hub.hub.hashes import digest
from dem_hub.hub.references import VectorSource
from dem_hub.merging.merge import Merge
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import estimate_export, export
from dem_hub.models.planned import PlannedModel
from tests.support.processes import run
from tests.support.tiny_models import Zoo, load_tensors, reshard

# Kills itself at the n-th call of a function, once for each point, in a process of its own each time. What is written
# is recorded at once.
KILLED = """
import importlib, json, os, signal, sys
from pathlib import Path
import torch
import dem_hub.models.export, dem_hub.files.resumable
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.planned import PlannedModel
from dem_hub.hub.references import VectorSource

torch.set_num_threads(1)
base, vectors, root, points, size = sys.argv[1], *map(json.loads, sys.argv[2:3]), Path(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5]
dem_hub.files.resumable.STRIDE = 1
note = dem_hub.files.resumable.PartialFolder.record
dem_hub.files.resumable.PartialFolder.record = lambda self, written: (note(self, written), self.wait())
opened = open_base_and_vectors(VectorSource(base), vectors)

def die_at(module, name, count):
    owner = importlib.import_module(module)
    *outer, name = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []
    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, dying)

for number, (module, name, count) in enumerate(points):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # makes its pool anew before two threads do so at once, and find none
        die_at(module, name, count)
        model = PlannedModel.of(opened, max_shard_size=size)
        dem_hub.models.export.export(model, root / str(number) / "merged")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, (module, name, count)
"""
MERGING = ("dem_hub.merging.merge", "Merge.tensor")
POINTS = {  # the module, the function, the call; there are 20 blocks, in six files
    "before the first block": (*MERGING, 1),
    "in the first file": (*MERGING, 3),
    "at the ninth block": (*MERGING, 9),
    "at the last block": (*MERGING, 20),
    "before a note": ("dem_hub.files.resumable", "write_text", 4),
    "at the tokenizer": ("shutil", "copyfile", 1),
    "at the second text": ("dem_hub.models.export", "write_text", 2),
    "before the index": ("dem_hub.models.export", "write_text", 3),
    "before its name": ("dem_hub.files.resumable", "_move_into_place", 1),
}
OVER = {  # into a folder that has an older model
    "at the ninth block": (*MERGING, 9),
    "before its name": ("dem_hub.files.resumable", "_move_into_place", 1),
    "while the notes are linked": ("os", "link", 1),
    "before the exchange": ("dem_hub.files.replacing", "exchange", 1),
    "after the exchange": ("dem_hub.files.replacing", "_rescue", 1),
}
SIZE = "8KB"


def recipe(zoo: Zoo, coefficient: float = 0.3) -> OpenedRecipe:
    vectors = {
        str(zoo.vector("llama-tied", kind="dense")): coefficient,
        str(zoo.vector("llama-tied", kind="lowrank")): 0.6,
    }
    return open_base_and_vectors(VectorSource(str(zoo.models("llama-tied").base)), vectors)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir()}


def loads(folder: Path, base: Path) -> bool:
    """Even to somebody who knows what it is to be, and needs no config."""
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(base)
    try:
        LlamaForCausalLM.from_pretrained(folder, config=config, local_files_only=True)
    except (OSError, SafetensorError):  # no weights, no index, or a file that is not whole
        return False
    return True


def killed(zoo: Zoo, root: Path, points: dict[str, tuple[str, str, int]]) -> dict[str, Path]:
    """The folder that each killed export was for."""
    opened = recipe(zoo)
    arguments = [
        str(opened.base.folder),
        json.dumps(opened.recipe.coefficients),
        str(root),
        json.dumps(list(points.values())),
        SIZE,
    ]
    done = run(KILLED, *arguments)
    assert done.returncode == 0, done.stderr
    return {name: root / str(number) / "merged" for number, name in enumerate(points)}


@pytest.fixture(scope="module")
def whole(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The contents of an export that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "1" / "merged"
    export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), folder)
    return contents(folder)


@pytest.fixture(scope="module")
def fresh(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return killed(zoo, tmp_path_factory.mktemp("killed"), POINTS)


@pytest.fixture(scope="module")
def older(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, str]]:
    root = tmp_path_factory.mktemp("over")
    for number in range(len(OVER)):
        export(PlannedModel.of(recipe(zoo, 1.0), max_shard_size="16KB"), root / str(number) / "merged")
        (root / str(number) / "merged" / "notes.txt").write_text("mine")
    old = contents(root / "0" / "merged")
    return killed(zoo, root, OVER), old


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(zoo: Zoo, fresh: dict[str, Path], whole: dict[str, str], point: str) -> None:
    target = fresh[point]
    partial = target.parent / ".merged.partial"
    assert not target.exists()
    assert loads(partial, zoo.models("llama-tied").base) == (point == "before its name")
    export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), target)
    assert _but_paths(contents(target)) == _but_paths(whole)
    assert [path.name for path in target.parent.iterdir()] == ["merged"]


@pytest.mark.parametrize("point", OVER)
def test_killed_over_an_older_export(
    zoo: Zoo, older: tuple[dict[str, Path], dict[str, str]], whole: dict[str, str], point: str
) -> None:
    target, old = older[0][point], older[1]
    there = contents(target)
    if point == "after the exchange":
        assert there.pop("notes.txt")
        assert _but_paths(there) == _but_paths(whole)
    else:
        assert there == old
    export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), target)
    found = contents(target)
    assert found.pop("notes.txt")
    assert _but_paths(found) == _but_paths(whole)
    assert [path.name for path in target.parent.iterdir()] == ["merged"]


def _but_paths(files: dict[str, str]) -> dict[str, str]:
    """The recipe names base and vectors by their way from the folder, which is another for each."""
    return {name: sha256 for name, sha256 in files.items() if name != "dem_config.json"}


class Stopped(BaseException):
    """As a process is stopped from outside."""


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Stop a merge at a block, with everything before it noted; returns the names of the blocks asked for."""
    monkeypatch.setattr(dem_hub.files.resumable, "STRIDE", 1)
    note, tensor, asked = dem_hub.files.resumable.PartialFolder.record, Merge.tensor, []

    def note_at_once(self: dem_hub.files.resumable.PartialFolder, written: int) -> None:
        note(self, written)
        self.wait()

    def stopping(self: Merge, name: str, *rest: object) -> object:
        asked.append(name)
        if len(asked) == count:
            raise Stopped
        return tensor(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(dem_hub.files.resumable.PartialFolder, "record", note_at_once)
    monkeypatch.setattr(Merge, "tensor", stopping)
    return asked


def stop(zoo: Zoo, target: Path, monkeypatch: pytest.MonkeyPatch, count: int = 9) -> list[str]:
    asked = stop_at(monkeypatch, count)
    with pytest.raises(Stopped) as caught:
        export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), target)
    assert "are kept in" in caught.value.__notes__[0]
    return asked


def test_what_was_done_is_not_done_again(
    zoo: Zoo, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stop(zoo, tmp_path / "merged", monkeypatch)
    first = tmp_path / ".merged.partial" / "model-00001-of-00006.safetensors"
    data = bytearray(first.read_bytes())
    data[-1] ^= 1  # had it been written again, it would be right again
    first.write_bytes(data)
    seen = estimate_export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged")
    assert "of which are there already" in str(seen)
    asked.clear()
    asked.extend(["-"] * 100)
    export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged")
    assert len(asked) == 100 + 20 - 8
    found = contents(tmp_path / "merged")
    others = {name for name in found if found[name] != whole[name]} - {"dem_config.json"}
    assert others == {first.name, "dem_files.json"}, "the manifest has the hash of the file as it is"


def test_goes_on_from_within_a_block(zoo: Zoo, tmp_path: Path) -> None:
    """As an older version, whose blocks were others, may have left it."""
    model = PlannedModel.of(recipe(zoo))
    shard = model.shards[0]
    list(model.write(tmp_path / "whole", shard))
    for start in (1, 1001, shard.nbytes - 1):
        file = tmp_path / str(start)
        file.write_bytes((tmp_path / "whole").read_bytes()[: len(shard.header) + start])
        list(model.write(file, shard, start))
        assert file.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("change", ["coefficient", "dtype", "seed", "size", "version", "vector"])
def test_another_export_begins_anew(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    from dataclasses import replace

    asked = stop(zoo, tmp_path / "merged", monkeypatch)
    asked.extend(["-"] * 100)
    (tmp_path / ".merged.partial" / "stray.txt").write_text("of the other")
    opened, options = recipe(zoo), {"max_shard_size": SIZE}
    if change == "coefficient":
        opened = recipe(zoo, 0.31)
    elif change == "seed":
        opened = replace(opened, recipe=replace(opened.recipe, rounding_seed=1))
    elif change == "version":
        monkeypatch.setattr("dem_hub.models.planned.__version__", "0.0.0")
    elif change == "vector":
        opened.vectors[0].__dict__["sha256"] = "0" * 64
    else:
        options |= {"dtype": "float32"} if change == "dtype" else {"max_shard_size": "9KB"}
    assert estimate_export(PlannedModel.of(opened, **options), tmp_path / "merged").written == 0  # type: ignore[arg-type]
    export(PlannedModel.of(opened, **options), tmp_path / "merged")  # type: ignore[arg-type]
    export(PlannedModel.of(opened, **options), tmp_path / "again")  # type: ignore[arg-type]
    assert contents(tmp_path / "merged") == contents(tmp_path / "again")
    assert len(asked) == 9 + 100 + 20 + 20


@pytest.mark.parametrize("harm", ["journal", "file"])
def test_a_folder_that_came_to_harm(
    zoo: Zoo, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    asked = stop(zoo, tmp_path / "merged", monkeypatch)
    asked.extend(["-"] * 100)
    partial = tmp_path / ".merged.partial"
    if harm == "journal":
        (partial / ".journal.json").write_text("{")
    else:
        (partial / "model-00001-of-00006.safetensors").unlink()
    export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged")
    assert len(asked) == 9 + 100 + 20
    assert _but_paths(contents(tmp_path / "merged")) == _but_paths(whole)


def test_two_at_once(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused, and does no harm to the first."""
    real, refused = Merge.tensor, []

    def meanwhile(self: Merge, *rest: object) -> object:
        if not refused:
            with pytest.raises(
                BusyError, match=r"Another process is writing '.*merged' \('.*.lock' is locked\). Wait for it"
            ):
                export(PlannedModel.of(recipe(zoo, 0.7)), tmp_path / "merged")
            refused.append(True)
        return real(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Merge, "tensor", meanwhile)
        export(PlannedModel.of(recipe(zoo)), tmp_path / "merged")
    export(PlannedModel.of(recipe(zoo)), tmp_path / "again")
    assert contents(tmp_path / "merged") == contents(tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "merged"]


def test_a_full_disk_counts_what_is_there(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that the killed run took is used again."""
    import shutil

    stop(zoo, tmp_path / "merged", monkeypatch)
    there = sum(path.stat().st_size for path in (tmp_path / ".merged.partial").iterdir())
    needed = estimate_export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged").writes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - there))
    assert estimate_export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged").free == needed


def test_written_out_twins_stay_tied(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tied embeddings that are both written out round alike, also if the export was killed between them."""

    def write_out(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    models = zoo.models("llama-tied")
    base, full = (
        reshard(folder, tmp_path / name, change=write_out)
        for name, folder in (("base", models.base), ("full", models.full))
    )
    DistributionVector.extract(base, full, codec="dense").save_pretrained(tmp_path / "vector")
    opened = open_base_and_vectors(VectorSource(str(base)), {str(tmp_path / "vector"): 0.3})
    asked = stop_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        export(PlannedModel.of(opened, max_shard_size=SIZE), tmp_path / "merged")
    assert asked == ["lm_head.weight", "model.embed_tokens.weight"]
    export(PlannedModel.of(opened, max_shard_size=SIZE), tmp_path / "merged")
    assert asked.count("lm_head.weight") == 1
    merged = load_tensors(tmp_path / "merged")
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], load_tensors(base)["lm_head.weight"])


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_and_a_full_disk(
    zoo: Zoo, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Blocks that were under way are lost, and nothing else; what was written stays for the next run."""
    real, written = dem_hub.checkpoints.writer._as_bytes, []

    def full(tensor: torch.Tensor) -> torch.Tensor:
        written.append(tensor)
        if len(written) == 12:
            raise OSError(28, "No space left on device")
        return real(tensor)

    monkeypatch.setattr(dem_hub.files.resumable, "STRIDE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(dem_hub.checkpoints.writer, "_as_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged")
    assert f"are kept in '{tmp_path / '.merged.partial'}'. The same command continues" in caught.value.__notes__[0]
    there = estimate_export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged").written
    assert 0 < there < sum(path.stat().st_size for path in (tmp_path / ".merged.partial").glob("*.safetensors"))
    export(PlannedModel.of(recipe(zoo), max_shard_size=SIZE), tmp_path / "merged")
    assert _but_paths(contents(tmp_path / "merged")) == _but_paths(whole)
