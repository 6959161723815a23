"""Extraction: finetuned - base tensor by tensor, whatever the files look like, and no tensor lost or invented."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.writer import write_file
from dem_hub.codecs.listing import OFFERED
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import CheckpointError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.hashes import digest
from dem_hub.hub.references import VectorSource
from dem_hub.merging.lazy import merged_tensor
from dem_hub.merging.merge import Merge
from dem_hub.vectors.extraction import extract
from tests.support.tiny_models import DTYPES, FAMILIES, RANK, Models, Zoo, edit_json, load_tensors, read_deltas, reshard


def differences(base: Path, finetuned: Path) -> dict[str, Tensor]:
    """The reference: finetuned - base of every tensor that differs, in float64."""
    before, after = load_tensors(base), load_tensors(finetuned)
    return {
        name: after[name].double() - before[name].double()
        for name in before
        if not torch.equal(before[name], after[name])
    }


def saved(folder: Path, base: Path, finetuned: Path, **options: Any) -> Path:
    DistributionVector.extract(base, finetuned, **options).save_pretrained(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_is_the_difference(zoo: Zoo, family: str, dtype: str) -> None:
    models = zoo.models(family, dtype)
    found, expected = read_deltas(zoo.vector(family, dtype, "dense")), differences(models.base, models.full)
    assert set(found) == set(expected)
    for name in expected:  # float32 differences of bf16 and fp16 are exact here; of float32, rounded once
        torch.testing.assert_close(found[name], expected[name], rtol=0 if dtype != "float32" else 2**-24, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_lowrank_of_a_low_rank_change_is_all_of_it(zoo: Zoo, family: str) -> None:
    models = zoo.models(family, "float32")
    found, expected = read_deltas(zoo.vector(family, "float32", "lowrank")), differences(models.base, models.low)
    assert set(found) == set(expected)
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 1e-4 * expected[
            name
        ].norm()  # the fine-tune itself was rounded to float32


@pytest.mark.parametrize("kind", ["dense", "short", "lowrank", "lossy"])
def test_records_say_how_true_each_tensor_is(zoo: Zoo, kind: str) -> None:
    models = zoo.models("gpt2", "bfloat16")
    vector = zoo.vector("gpt2", "bfloat16", kind)
    expected = differences(models.base, models.low if kind == "lowrank" else models.full)
    found = read_deltas(vector)
    config = DistributionVector.from_pretrained(vector).config
    assert config is not None
    for name, record in config.tensors.items():
        true, decoded = expected[name], found[name]
        assert record.norm == pytest.approx(float(true.norm()), rel=1e-5)
        assert record.relative_error == pytest.approx(float((decoded - true).norm() / true.norm()), rel=1e-3, abs=1e-7)
        assert record.projection == pytest.approx(float((decoded * true).sum() / true.square().sum()), rel=1e-5)


@pytest.mark.parametrize("shards", [(1, 3), (3, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("codec", ["dense", "lowrank"])
def test_sharding_makes_no_difference(llama: Models, tmp_path: Path, shards: tuple[int, int], codec: str) -> None:
    base, finetuned = (
        reshard(llama.base, tmp_path / "base", shards[0]),
        reshard(llama.full, tmp_path / "finetuned", shards[1]),
    )
    single = DistributionVector.extract(llama.base, llama.full, codec=codec)
    vector = DistributionVector.extract(base, finetuned, codec=codec)
    assert vector.config is not None
    assert single.config is not None
    tensors = {
        name for name in vector.config.files if name.endswith(".safetensors")
    }  # adapter_config.json has the path of the base
    assert {name: vector.config.files[name] for name in tensors} == {
        name: single.config.files[name] for name in tensors
    }
    assert vector.config.tensors == single.config.tensors


@pytest.mark.parametrize(
    "options", [{"codec": "dense"}, {"codec": "lowrank", "rank": 3}, {"codec": "lowrank", "energy": 0.7}], ids=str
)
def test_the_same_bytes_again(llama: Models, tmp_path: Path, options: dict[str, Any]) -> None:
    first, second = (saved(tmp_path / name, llama.base, llama.full, **options) for name in ("first", "second"))
    assert hashes(first) == hashes(second)


@pytest.mark.parametrize("codec", ["auto", "lowrank", "exact"])
def test_the_same_bytes_on_any_number_of_cores(llama: Models, tmp_path: Path, codec: str) -> None:
    """Small tensors are encoded side by side, each on one core, and written in the order of their names."""
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            found.append(hashes(saved(tmp_path / str(count), llama.base, llama.full, codec=codec)))
        finally:
            torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_unchanged_tensors_are_not_stored(zoo: Zoo) -> None:
    names = set(read_deltas(zoo.vector("llama-tied", "float32", "lowrank")))
    assert names
    assert not any("norm" in name or "embed" in name for name in names)


def test_identical_models_make_an_empty_vector(llama: Models, tmp_path: Path) -> None:
    folder = saved(tmp_path / "vector", llama.base, llama.base)
    assert [path.name for path in folder.iterdir()] == ["vector_config.json"]
    assert DistributionVector.from_pretrained(folder).nbytes == 0


def test_float32_fine_tune_of_a_bfloat16_base(zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.models("llama-tied", "bfloat16").base, zoo.models("llama-tied", "float32").full
    found = read_deltas(saved(tmp_path / "vector", base, finetuned, codec="dense"))
    for name, expected in differences(base, finetuned).items():
        torch.testing.assert_close(found[name], expected, rtol=2**-24, atol=0)


def duplicate(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


@pytest.mark.parametrize("side", ["finetuned", "base", "both"])
def test_tied_tensors_written_out(llama: Models, tmp_path: Path, side: str) -> None:
    base = reshard(llama.base, tmp_path / "base", change=duplicate) if side != "finetuned" else llama.base
    finetuned = reshard(llama.full, tmp_path / "finetuned", change=duplicate) if side != "base" else llama.full
    found = read_deltas(saved(tmp_path / "vector", base, finetuned, codec="dense"))
    expected = differences(llama.base, llama.full)
    if side != "finetuned":
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], delta) for name, delta in expected.items())


def untie(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def test_untied_by_fine_tuning_is_refused(llama: Models, tmp_path: Path) -> None:
    finetuned = reshard(llama.full, tmp_path / "finetuned", change=untie)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' \[64, 32\] is in the fine-tune only"):
        DistributionVector.extract(llama.base, finetuned)


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_lost_norm_is_not_taken_for_a_tied_one(zoo: Zoo, tmp_path: Path, side: str) -> None:
    # All norms of a new model are ones: equal, and still no copies of each other.
    models = zoo.models("llama-tied", "float32")
    folders = {"base": models.base, "finetuned": models.low}
    folders[side] = reshard(folders[side], tmp_path / side, change=lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' \[32\] is in the (base|fine-tune) only"):
        DistributionVector.extract(folders["base"], folders["finetuned"])


def with_counters(value: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["steps"] = torch.tensor([value, 2**40])
        tensors["seen"] = torch.tensor([bool(value), True])

    return change


def test_integers_are_replaced(llama: Models, tmp_path: Path) -> None:
    base = reshard(llama.base, tmp_path / "base", change=with_counters(0))
    finetuned = reshard(llama.full, tmp_path / "finetuned", change=with_counters(7))
    vector = saved(tmp_path / "vector", base, finetuned)
    config = DistributionVector.from_pretrained(vector).config
    assert config is not None
    assert config.tensors["steps"].codec == config.tensors["seen"].codec == "replace"
    stored = load_tensors(vector, "vector_model*")
    assert stored["steps::replace"].tolist() == [7, 2**40]
    assert stored["seen::replace"].tolist() == [True, True]


def test_integers_that_differ_in_their_last_bit(llama: Models, tmp_path: Path) -> None:
    def large(value: int) -> Callable[[dict[str, Tensor]], None]:
        return lambda tensors: tensors.update(steps=torch.tensor([value]))

    base = reshard(llama.base, tmp_path / "base", change=large(2**40))
    finetuned = reshard(llama.full, tmp_path / "finetuned", change=large(2**40 + 1))
    assert (
        load_tensors(saved(tmp_path / "vector", base, finetuned), "vector_model*")["steps::replace"].item() == 2**40 + 1
    )


def test_grown_vocabulary_is_stored_as_it_is(llama: Models, tmp_path: Path) -> None:
    new = torch.full((5, 32), 0.25, dtype=torch.bfloat16)

    def grow(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.cat([tensors["model.embed_tokens.weight"], new])

    finetuned = reshard(llama.full, tmp_path / "finetuned", change=grow)
    edit_json(finetuned / "config.json", vocab_size=69)
    vector = saved(tmp_path / "vector", llama.base, finetuned, codec="dense")
    assert torch.equal(load_tensors(vector, "vector_model*")["model.embed_tokens.weight::rows"], new)
    config = DistributionVector.from_pretrained(vector).config
    assert config is not None
    assert config.tensors["model.embed_tokens.weight"].rows == 5


def test_other_tensors_may_not_grow(zoo: Zoo, tmp_path: Path) -> None:
    def lengthen(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.wpe.weight"] = torch.cat([tensors["transformer.wpe.weight"]] * 2)

    models = zoo.models("gpt2")
    finetuned = reshard(models.full, tmp_path / "finetuned", change=lengthen)
    with pytest.raises(
        CheckpointError, match=r"'transformer.wpe.weight' is \[64, 32\] in the base and \[128, 32\] in the fine-tune"
    ):
        DistributionVector.extract(models.base, finetuned)


@pytest.mark.parametrize("codec", ["lowrank", "dense"])
def test_shards_of_a_vector(llama: Models, tmp_path: Path, codec: str) -> None:
    folder = tmp_path / "vector"
    folder.mkdir()
    sources = (resolve(VectorSource(str(path)), MODEL_FILES) for path in (llama.base, llama.full))
    extract(folder, *sources, encoder_from_name(codec, {}), max_shard_size="4KB")
    assert (folder / "vector_model.safetensors.index.json").is_file()
    vector = DistributionVector.from_pretrained(folder)
    whole = DistributionVector.extract(llama.base, llama.full, codec=codec)
    for name in ("model.norm.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(vector.decode(name, llama.base), whole.decode(name, llama.base))


def poison(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"][0] = torch.nan


def test_a_failure_leaves_nothing_behind(llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(CheckpointError, match="NaN or inf"):
        DistributionVector.extract(
            llama.base, reshard(llama.full, tmp_path / "finetuned", change=poison), codec="dense"
        )
    assert list(scratch.rglob("*")) == [scratch / f"dem_hub-{os.getuid()}"]  # where all of this user's folders lie


def test_a_vector_that_goes_takes_its_files_along(llama: Models) -> None:
    vector = DistributionVector.extract(llama.base, llama.full)
    folder = vector.folder
    assert folder.is_dir()
    del vector
    assert not folder.exists()


def test_auto_is_the_default(llama: Models) -> None:
    config = DistributionVector.extract(llama.base, llama.full).config
    assert config is not None
    assert (config.codec, dict(config.codec_options)) == ("auto", {})
    assert config.choice.startswith("a full fine-tune: ")
    assert config.tensors["model.norm.weight"].codec == "dense"


def test_what_a_vector_says_of_itself(zoo: Zoo) -> None:
    models = zoo.models("gpt2")
    config = DistributionVector.from_pretrained(zoo.vector("gpt2", "bfloat16", "lowrank")).config
    assert config is not None
    assert (config.codec, dict(config.codec_options)) == ("lowrank", {"rank": RANK, "dtype": "float32"})
    assert (config.base.repo_id, config.finetuned) == (str(models.base), str(models.low))
    record = config.tensors["transformer.h.0.attn.c_attn.weight"]
    assert (record.module, record.transposed, record.dtype, record.shape) == (
        "transformer.h.0.attn.c_attn",
        True,
        "BF16",
        (32, 96),
    )
    assert not (zoo.vector("gpt2", "bfloat16", "lowrank") / "config.json").exists()


SHAPES = {
    "matrix": (33, 65), "wide": (3, 200), "one row": (1, 70), "one column": (70, 1), "experts": (3, 16, 20), "convolution": (4, 3, 2, 2),
    "line": (17,), "point": (), "single": (1, 1), "no rows": (0, 4), "no columns": (4, 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["auto", *OFFERED])
def test_every_codec_takes_any_tensor(tmp_path: Path, codec: str, dtype: str) -> None:
    """Taken, saved, opened, merged; as many bytes as `info` says; the same bytes again; and nothing stored of what did not change."""
    generator = torch.Generator().manual_seed(0)
    sides: dict[str, dict[str, Tensor]] = {"base": {}, "finetuned": {}}
    for name, shape in SHAPES.items():
        sides["base"][name] = (torch.randn(shape, generator=generator) * 0.05).to(getattr(torch, dtype))
        sides["finetuned"][name] = (sides["base"][name] + 0.01 * torch.randn(shape, generator=generator)).to(
            getattr(torch, dtype)
        )
    sides["base"]["same"] = sides["finetuned"]["same"] = torch.ones(8, 8, dtype=getattr(torch, dtype))
    for name, tensors in sides.items():
        (tmp_path / name).mkdir()
        write_file(tmp_path / name / "model.safetensors", tensors)
    first = saved(tmp_path / "first", tmp_path / "base", tmp_path / "finetuned", codec=codec)
    second = saved(tmp_path / "second", tmp_path / "base", tmp_path / "finetuned", codec=codec)
    assert hashes(first) == hashes(second)
    vector = DistributionVector.from_pretrained(first)
    assert vector.config is not None
    assert set(vector.config.tensors) == {name for name, shape in SHAPES.items() if torch.Size(shape).numel()}
    assert sum(vector.tensor_bytes().values()) == sum(tensor.nbytes for tensor in load_tensors(first).values())
    merge = Merge.of(Base(resolve(VectorSource(str(tmp_path / "base")), MODEL_FILES)), [(vector, 1.0)])
    for name, base in sides["base"].items():
        merged = merged_tensor(merge, name)
        record = vector.config.tensors.get(name)
        bound = record.relative_error * record.norm if record is not None else 0.0
        step = torch.finfo(base.dtype).eps * float(
            base.double().norm() + sides["finetuned"][name].double().norm()
        )  # of rounding the sum
        assert float((merged.double() - sides["finetuned"][name].double()).norm()) <= 1.01 * bound + step


def test_an_adapter_beside_a_config(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    """axolotl writes the base's config.json there, which makes no model of an adapter."""
    adapter = zoo.adapter("llama-tied")
    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_bytes((llama.base / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="is a LoRA adapter already, which can be used as it is"):
        DistributionVector.extract(llama.base, tmp_path)
    with pytest.raises(CheckpointError, match="is a LoRA adapter, and a base is a model"):
        DistributionVector.extract(tmp_path, llama.full)
