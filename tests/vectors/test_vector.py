"""A vector on disk: saved, opened, checked, and named by its contents."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from dem_hub import DistributionVector, VectorSource
from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.errors import CheckpointError, CodecError, NotFoundError, VectorNotFoundError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.hashes import digest
from dem_hub.vectors.extraction import extract
from tests.support.tiny_models import Models, Zoo, edit_vector, load_tensors, read_deltas

KINDS = ["dense", "short", "lowrank", "lossy"]


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_open(zoo: Zoo, tmp_path: Path, kind: str) -> None:
    source = zoo.vector("gpt2", "bfloat16", kind)
    vector = DistributionVector.from_pretrained(source)
    vector.save_pretrained(tmp_path / "deep" / "copy")
    copy = DistributionVector.from_pretrained(tmp_path / "deep" / "copy")
    assert copy.config == vector.config
    assert copy.sha256 == vector.sha256
    assert str(copy.source) in repr(copy) and f"codec='{vector.config.codec if vector.config else 'lora'}'" in repr(
        copy
    )
    assert {path.name: digest(path) for path in source.iterdir()} == {
        path.name: digest(path) for path in copy.folder.iterdir()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_decode(zoo: Zoo, family: str, kind: str) -> None:
    vector, base = DistributionVector.from_pretrained(zoo.vector(family, "bfloat16", kind)), zoo.models(family).base
    for name, delta in read_deltas(vector.folder).items():
        torch.testing.assert_close(
            vector.decode(name, base).double(), delta, rtol=1e-5, atol=1e-8
        )  # products in float32


def test_decode_of_an_unchanged_tensor_is_zero(zoo: Zoo) -> None:
    vector = DistributionVector.from_pretrained(zoo.vector("gpt2", "bfloat16", "lowrank"))
    assert not vector.decode("transformer.ln_f.bias", zoo.models("gpt2").base).any()


def test_low_rank_parts_are_a_peft_adapter(zoo: Zoo) -> None:
    folder = zoo.vector("gpt2", "bfloat16", "lossy")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "vector_config.json",
        "vector_model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    rest = {name.split("::")[0] for name in load_tensors(folder, "vector_model")}
    assert "transformer.wte.weight" in rest
    assert "transformer.h.0.attn.c_attn.weight" not in rest


def test_json_is_plain(zoo: Zoo) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for kind in KINDS:
        json.loads(
            (zoo.vector("llama-tied", "bfloat16", kind) / "vector_config.json").read_text(), parse_constant=refuse
        )


def test_safetensors_headers_are_canonical(zoo: Zoo) -> None:
    data = (zoo.vector("llama-tied", "bfloat16", "lossy") / "vector_model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert data[8 : 8 + length].rstrip() == json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def test_sha256_is_that_of_its_files_and_of_how_they_are_read(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo.vector("llama-tied", "bfloat16", "lossy")
    vector = DistributionVector.from_pretrained(source)
    names = sorted(path.name for path in source.iterdir() if path.name != "vector_config.json")
    files = {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in names}
    tensors = json.loads((source / "vector_config.json").read_text())["tensors"]
    text = json.dumps({"files": files, "tensors": tensors}, sort_keys=True, separators=(",", ":"))
    assert vector.sha256 == hashlib.sha256(text.encode()).hexdigest()
    copy = DistributionVector.from_pretrained(copy_of(source, tmp_path / "copy"))
    assert copy.sha256 == vector.sha256
    assert copy.name != vector.name


def test_sha256_of_an_adapter(zoo: Zoo) -> None:
    adapter = DistributionVector.from_pretrained(zoo.adapter("llama-untied"))
    assert adapter.config is None
    assert len(adapter.sha256) == 64
    assert adapter.sha256 != DistributionVector.from_pretrained(zoo.adapter("gpt2")).sha256


def test_save_over_an_older_vector(zoo: Zoo, tmp_path: Path) -> None:
    lossy, dense = (
        DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", kind)) for kind in ("lossy", "dense")
    )
    lossy.save_pretrained(tmp_path / "vector")
    (tmp_path / "vector" / "README.md").write_text("mine")
    dense.save_pretrained(tmp_path / "vector")
    assert {path.name for path in (tmp_path / "vector").iterdir()} == {"README.md", *dense.file_names}
    assert DistributionVector.from_pretrained(tmp_path / "vector").sha256 == dense.sha256


def test_save_over_an_older_vector_in_shards(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    folder = tmp_path / "vector"
    folder.mkdir()
    sources = (resolve(VectorSource(str(path)), MODEL_FILES) for path in (llama.base, llama.low))
    extract(folder, *sources, encoder_from_name("dense", {}), max_shard_size="4KB")
    assert len(list(folder.glob("vector_model-*"))) > 1
    dense = DistributionVector.from_pretrained(zoo.vector("llama-tied", "bfloat16", "dense"))
    dense.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == set(dense.file_names)


def test_save_where_it_is(zoo: Zoo, tmp_path: Path) -> None:
    folder = copy_of(zoo.vector("llama-tied", "bfloat16", "lossy"), tmp_path / "vector")
    before = {path.name: digest(path) for path in folder.iterdir()}
    DistributionVector.from_pretrained(folder).save_pretrained(folder)
    assert {path.name: digest(path) for path in folder.iterdir()} == before


def test_save_from_a_cache_of_links(zoo: Zoo, tmp_path: Path) -> None:
    # The Hub's cache keeps links to blobs; what is saved must stand alone.
    blobs = copy_of(zoo.vector("llama-tied", "bfloat16", "lossy"), tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in list(blobs.iterdir()):
        blob = path.rename(blobs / digest(path))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    (tmp_path / "elsewhere").mkdir()
    DistributionVector.from_pretrained(snapshot).save_pretrained(tmp_path / "elsewhere" / "saved")
    saved = tmp_path / "elsewhere" / "saved"
    assert not any(path.is_symlink() for path in saved.iterdir())
    DistributionVector.from_pretrained(saved)


def test_subfolders(zoo: Zoo, tmp_path: Path) -> None:
    copy_of(zoo.vector("llama-tied", "bfloat16", "dense"), tmp_path / "maths")
    by_argument = DistributionVector.from_pretrained(tmp_path, subfolder="maths")
    by_source = DistributionVector.from_pretrained(VectorSource(str(tmp_path), subfolder="maths"))
    assert by_argument.name == by_source.name == f"{tmp_path}//maths"
    with pytest.raises(NotFoundError, match="has no subfolder 'chat'") as caught:
        DistributionVector.from_pretrained(tmp_path, subfolder="chat")
    assert caught.type is NotFoundError


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(VectorNotFoundError, match="neither vector_config.json nor adapter_config.json"):
        DistributionVector.from_pretrained(tmp_path)
    with pytest.raises(NotFoundError, match="is not a local folder, and not a Hub id") as caught:
        DistributionVector.from_pretrained(tmp_path / "absent")
    assert caught.type is NotFoundError
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"has no adapter_model\.safetensors") as caught:
        DistributionVector.from_pretrained(tmp_path)
    assert caught.type is NotFoundError


def test_a_model_is_no_vector(llama: Models) -> None:
    with pytest.raises(VectorNotFoundError, match="it is not a distribution vector"):
        DistributionVector.from_pretrained(llama.base)


def test_unknown_codec(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    folder = copy_of(zoo.vector("llama-tied", "bfloat16", "dense"), tmp_path / "vector")
    tensors = json.loads((folder / "vector_config.json").read_text())["tensors"]
    tensors["model.norm.weight"]["codec"] = "zip"
    edit_vector(folder, tensors=tensors)
    with pytest.raises(CodecError, match="has the codec 'zip'; this dem_hub has lrsign, sign, random"):
        DistributionVector.from_pretrained(folder).deltas(Base(resolve(VectorSource(str(llama.base)), MODEL_FILES)))


def test_a_tensor_without_its_parts(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    folder = copy_of(zoo.vector("llama-tied", "bfloat16", "dense"), tmp_path / "vector")
    (folder / "vector_model.safetensors").unlink()
    edit_vector(folder, files={})
    with pytest.raises(CheckpointError, match=r"(?s)'model.embed_tokens.weight'.*Fetch it again"):
        DistributionVector.from_pretrained(folder).deltas(Base(resolve(VectorSource(str(llama.base)), MODEL_FILES)))


def test_describe_reads_no_tensors(zoo: Zoo, tmp_path: Path) -> None:
    folder = copy_of(zoo.vector("llama-tied", "bfloat16", "dense"), tmp_path / "vector")
    with (folder / "vector_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    assert DistributionVector.describe(folder).config is not None
    with pytest.raises(CheckpointError, match="altered"):
        DistributionVector.from_pretrained(folder)


def test_nbytes(zoo: Zoo) -> None:
    folder = zoo.vector("llama-tied", "bfloat16", "lossy")
    assert DistributionVector.from_pretrained(folder).nbytes == sum(
        path.stat().st_size for path in folder.glob("*.safetensors")
    )
