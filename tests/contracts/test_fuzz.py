"""Ten thousand vectors that are not what they were: refused with a reason, or harmless; never a crash, never a silent other model.

Whoever only damages a file is found out by checksums. Whoever means harm signs again, and lies in headers and configs: then either a
refusal says what does not fit, or what is decoded has the shape it claims.
"""

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMConfig, DistributionVector, VectorStore
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.tokenizer import Token
from dem_hub.checkpoints.writer import write_file
from dem_hub.codecs.listing import OFFERED
from dem_hub.errors import DemHubError
from dem_hub.files.names import MERGED_FILES, MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput
from dem_hub.mergekit.document import Document
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.merging.tokenizer_files import base_vocabulary, with_tokens
from dem_hub.models.export import export
from dem_hub.models.manifest import Manifest
from dem_hub.models.planned import PlannedModel
from dem_hub.numerics.slices import full_index
from dem_hub.serving.permitted import Permitted
from dem_hub.vectors.config import _checksum
from tests.support.new_tokens import save_words
from tests.support.tiny_models import Zoo, edit_json, edit_vector, reshard
from tests.support.type_confusion import confuse_often

ROUNDS = 400  # of each codec and each kind of damage: 9 codecs * 3 kinds * 400 = 10,800
OPTIONS: dict[str, dict[str, Any]] = {
    "lrsign": {"rank": 2, "group": 3},
    "lowrank": {"rank": 2},
    "random": {"density": 0.5},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Two matrices, a cube, and a norm."""
    folder = tmp_path_factory.mktemp("fuzz")
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (6, 16), "b.weight": (3, 4, 5), "c.weight": (9, 7), "norm": (5,)}
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    tuned = {
        name: (tensor.float() + 0.01 * torch.randn(tensor.shape, generator=generator)).bfloat16()
        for name, tensor in tensors.items()
    }
    for name, side in (("base", tensors), ("tuned", tuned)):
        (folder / name).mkdir()
        write_file(folder / name / "model.safetensors", side)
    return Base(resolve(VectorSource(str(folder / "base")), MODEL_FILES))


def use(folder: Path, base: Base) -> dict[str, torch.Tensor]:
    """Open, check, and decode all there is."""
    deltas = DistributionVector.from_pretrained(folder).deltas(base)
    decoded = {}
    for key, stored in deltas.items():
        values = base.checkpoint.read(key)
        for _, delta in stored.decode(base.checkpoint.lazy(key), full_index(values.shape)):
            for part in (delta.dense, delta.rest):
                assert part is None or part.shape == values.shape
            if delta.left is not None and delta.right is not None:
                assert (delta.left @ delta.right.to(delta.left.dtype)).shape == values.shape
            decoded[key] = values
    return decoded


def damage(folder: Path, rng: random.Random) -> None:
    """Change a byte, or cut, in any of the files; blanks between the words of JSON mean nothing and are left alone."""
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    blanks = b" \n" if path.suffix == ".json" else b""
    place = rng.randrange(len(data))
    while data[place] in blanks:
        place = rng.randrange(len(data))
    if rng.random() < 0.3:
        data = data[:place]
    else:
        data[place] = rng.choice([byte for byte in range(256) if byte != data[place]])
    path.write_bytes(data)


def lie_in_the_header(folder: Path, rng: random.Random) -> None:
    """Another shape, dtype, offset or name for a tensor, and the hash of the file as it is then."""
    import hashlib

    path = folder / "vector_model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = rng.randrange(5)
    if kind == 0:
        entry["shape"] = [rng.choice([0, 1, size + 1, size - 1, 10**12, -1, size]) for size in entry["shape"]] + [
            2
        ] * rng.randrange(2)
    elif kind == 1:
        entry["dtype"] = rng.choice(["F32", "BF16", "U8", "I64", "F8_E4M3", "BOOL", "NONE"])
    elif kind == 2:
        entry["data_offsets"] = [rng.choice([0, offset, offset + 1, 10**15, -5]) for offset in entry["data_offsets"]]
    elif kind == 3:
        header[rng.choice(["x::y", name + "s", "norm::dense", name.replace("::", ":")])] = header.pop(name)
    else:  # the values, whatever they mean
        start, stop = entry["data_offsets"]
        body = bytearray(data[8 + length :])
        body[start:stop] = rng.randbytes(stop - start)
        data = data[: 8 + length] + bytes(body)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    files = json.loads((folder / "vector_config.json").read_text())["files"]
    edit_vector(folder, files={**files, path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def lie_in_the_config(folder: Path, rng: random.Random) -> None:
    """Another value for something that the config says of a tensor, and the checksum of the config as it is then."""
    tensors = json.loads((folder / "vector_config.json").read_text())["tensors"]
    key = rng.choice(sorted(tensors))
    record = tensors[key]
    field = rng.choice(["shape", "codec", "options", "rows", "module", "name", "norm", "dtype"])
    if field == "shape":
        record["shape"] = rng.choice(
            [[], [10**14], [-1], ["4"], [3.5], None, [size + 1 for size in record["shape"]], record["shape"][::-1]]
        )
    elif field == "codec":
        record["codec"] = rng.choice([*OFFERED, "full", "replace", "zip", "", None])
    elif field == "options":
        wrong = [
            {},
            {"rank": 10**9},
            {"rank": -1},
            {"group": 10**9},
            {"group": 0},
            {"density": 1e-300},
            {"density": "x"},
            {"seed": -1},
            {"bits": None},
            {"bits": 8},
            [],
            None,
        ]
        record["options"] = rng.choice(wrong)
    elif field == "rows":
        record["rows"] = rng.choice([1, -1, 10**9, None, "2"])
    elif field == "module":
        record["module"] = rng.choice(["a", "../x", 5])
    elif field == "name":
        tensors[rng.choice(["d.weight", "", "norm2"])] = tensors.pop(key)
    else:
        record[field] = rng.choice([None, "1", float("1e400"), -1, []])
    edit_vector(folder, tensors=tensors)


@pytest.mark.parametrize("kind", [damage, lie_in_the_header, lie_in_the_config], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("codec", list(OFFERED))
def test_fuzz(codec: str, kind: Callable[[Path, random.Random], None], base: Base, tmp_path: Path) -> None:
    good = tmp_path / "good"
    DistributionVector.extract(
        base.folder, base.folder.parent / "tuned", codec=codec, **OPTIONS.get(codec, {})
    ).save_pretrained(good)
    assert set(use(good, base)) == set(base.checkpoint)
    rng = random.Random(f"{codec} {kind.__name__}")
    refused = 0
    whole = {path.name: path.read_bytes() for path in good.iterdir()}
    bad = tmp_path / "bad"
    bad.mkdir()
    for number in range(ROUNDS):
        for name, data in whole.items():
            (bad / name).write_bytes(data)
        kind(bad, rng)
        try:
            use(bad, base)
        except DemHubError as error:
            refused += 1
            assert len(str(error)) > 20
        except Exception as error:
            raise AssertionError(f"round {number}: {error!r}") from error
    if kind is damage:
        assert refused == ROUNDS
    assert refused > ROUNDS / 3


# Values of another type, out of range, missing or twice


@dataclass(frozen=True)
class Confused:
    """A JSON file that is confused, and what reads it. `sign` makes a checksum in it right again."""

    path: Path
    use: Callable[[], object]
    sign: Callable[[Any], Any] | None = None


def sign_again(data: Any) -> Any:
    """Put the checksum of what is there now into a vector's config, as far as there can be one."""
    if isinstance(data, dict):
        data.pop("checksum", None)
        with suppress(ValueError):  # half a character has no bytes
            data["checksum"] = _checksum(data)
    return data


def a_recipe(zoo: Zoo, folder: Path) -> Confused:
    groups = {"layers 0-1": 1.0, "rest": 0.5}
    folded = {
        "model_type": "dem",
        "format_version": 1,
        "base": {"repo_id": "org/base", "fingerprint": "a" * 64},
        "vectors": [
            {"repo_id": "me/maths", "coefficient": groups, "sha256": "b" * 64, "codec": "auto"},
            {"repo_id": "me/code", "commit": "0" * 40, "coefficient": 0.5, "subfolder": "a"},
        ],
        "architectures": ["LlamaForCausalLM"],
        "search": {"method": "auto", "losses": [1.5]},
        "base_quantized": {"bnb_4bit_quant_type": "nf4", "dtype": None, "llm_int8_skip_modules": ["lm_head"]},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(DEMConfig.from_dict(folded, "here").to_dict()))

    def use() -> None:
        recipe = DEMConfig.from_pretrained(folder)
        assert len(recipe.coefficients) == len(recipe.vectors)
        assert len(recipe.to_dict()["vectors"]) == len(recipe.vectors)
        assert str(recipe.base.source)

    return Confused(path, use)


def open_all(folder: Path, base: Base) -> None:
    vector = DistributionVector.from_pretrained(folder)
    assert len(vector.sha256) == 64
    assert vector.deltas(base)


def a_vector(zoo: Zoo, folder: Path) -> Confused:
    models = zoo.models("llama-tied")
    base = Base(resolve(VectorSource(str(models.base)), MODEL_FILES))
    shutil.copytree(zoo.vector("llama-tied", kind="lowrank"), folder, dirs_exist_ok=True)
    return Confused(folder / "vector_config.json", lambda: open_all(folder, base), sign_again)


def an_adapter(zoo: Zoo, folder: Path) -> Confused:
    base = Base(resolve(VectorSource(str(zoo.models("llama-tied").base)), MODEL_FILES))
    shutil.copytree(zoo.adapter("llama-tied"), folder, dirs_exist_ok=True)
    edit_json(
        folder / "adapter_config.json",
        alpha_pattern={"q_proj": 3, r"layers\.0\..*": 2},
        rank_pattern={"q_proj": 3},
        modules_to_save=["score"],
    )
    return Confused(folder / "adapter_config.json", lambda: open_all(folder, base))


def a_store(zoo: Zoo, folder: Path) -> Confused:
    store = VectorStore.create(folder, zoo.models("llama-tied").base)
    store.add("maths", DistributionVector.from_pretrained(zoo.vector("llama-tied")))
    store.add("code", DistributionVector.from_pretrained(zoo.adapter("llama-tied")))

    def use() -> None:
        opened = VectorStore.from_pretrained(folder)
        assert repr(opened)
        for name in opened:
            assert opened[name].sha256

    return Confused(folder / "vector_store.json", use)


def an_index(zoo: Zoo, folder: Path) -> Confused:
    reshard(zoo.models("llama-tied").base, folder / "model", 2)
    return Confused(folder / "model" / "model.safetensors.index.json", lambda: len(Checkpoint(folder / "model")))


def a_header(zoo: Zoo, folder: Path) -> Confused:
    """The header of a safetensors file, taken out of it."""
    data = (zoo.models("llama-tied").base / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    path = folder / "header.json"
    path.write_bytes(data[8 : 8 + length])
    file = folder / "model.safetensors"

    def use() -> None:
        text = path.read_bytes()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        checkpoint = Checkpoint(file)
        for name in checkpoint:
            assert checkpoint.read(name).shape == checkpoint[name].shape

    return Confused(path, use)


def a_base(zoo: Zoo, folder: Path) -> Confused:
    shutil.copytree(zoo.models("llama-tied").base, folder, dirs_exist_ok=True)
    source = VectorSource(str(folder))
    return Confused(folder / "config.json", lambda: Base(resolve(source, MODEL_FILES)).architecture)


def input_statistics(zoo: Zoo, folder: Path) -> Confused:
    some = Moments(torch.ones(4, 2).double(), torch.ones(2).double(), torch.ones(4).double())
    inputs = (LayerInput(("k", "q"), some), LayerInput(("embed",), Moments.of_diagonal(torch.ones(5).double())))
    InputStatistics(inputs, 40, "0123456789abcdef").save_pretrained(folder)

    def use() -> None:
        read = InputStatistics.from_pretrained(folder)
        assert len(read.moments) == sum(len(item.keys) for item in read.inputs)

    return Confused(folder / "input_statistics.json", use)


def a_list_of_mixes(zoo: Zoo, folder: Path) -> Confused:
    path = folder / "mixes.json"
    limits = {"base": "org/base", "max_rank": 16, "max_error": 0.05, "max_mixes": 5, "format_version": 1}
    path.write_text(json.dumps({"vectors": {"maths": "me/maths", "chat": "me/chat@main//x"}, "recipes": {}, **limits}))
    return Confused(path, lambda: Permitted.read(path))


def a_manifest(zoo: Zoo, folder: Path) -> Confused:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    opened = open_base_and_vectors(VectorSource(str(zoo.models("llama-tied").base)), vectors)
    export(PlannedModel.of(opened), folder / "merged")

    def use() -> None:
        manifest = Manifest.read(folder / "merged")
        assert manifest is not None
        assert manifest.names_there(folder / "merged") <= {*manifest.files, *manifest.others, MERGED_FILES}

    return Confused(folder / "merged" / MERGED_FILES, use)


def a_tokenizer_config(zoo: Zoo, folder: Path) -> Confused:
    save_words(folder, 20, ["<reserved>"])
    path = folder / "tokenizer_config.json"
    edit_json(path, added_tokens_decoder={"19": {"content": "<reserved>", "special": True}})

    def use() -> None:
        files = {file.name: file for file in folder.iterdir()}
        with_tokens(files, base_vocabulary(files), {"<new>": Token(20), "<renamed>": Token(19)})

    return Confused(path, use)


def a_config_of_mergekit(zoo: Zoo, folder: Path) -> Confused:
    """Each JSON is YAML."""
    models = zoo.models("llama-tied")
    path = folder / "config.yml"
    weight = {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.5}], "density": 0.5}
    inputs = [
        {"model": str(models.full), "parameters": weight},
        {"model": {"model": {"path": str(models.low)}}, "parameters": {"weight": 0.3, "density": 1.0}},
    ]
    others = {"parameters": {"normalize": False}, "dtype": "bfloat16", "tokenizer": {"source": "union"}}
    path.write_text(json.dumps({"merge_method": "ties", "base_model": str(models.base), "models": inputs, **others}))
    return Confused(path, lambda: Document.read(path))


# How many files of each kind: 11,500 together. transformers takes milliseconds for the config of a model, and PyYAML a
# second for a list of 10,000 numbers.
CONFUSED: dict[str, tuple[Callable[[Zoo, Path], Confused], int]] = {
    "recipe": (a_recipe, 2000),
    "vector": (a_vector, 2000),
    "adapter": (an_adapter, 2000),
    "store": (a_store, 1500),
    "index": (an_index, 1500),
    "header": (a_header, 1000),
    "base": (a_base, 200),
    "input statistics": (input_statistics, 300),
    "mixes": (a_list_of_mixes, 300),
    "manifest": (a_manifest, 300),
    "tokenizer config": (a_tokenizer_config, 300),
    "mergekit": (a_config_of_mergekit, 100),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONFUSED)
def test_confused_types(zoo: Zoo, tmp_path: Path, kind: str) -> None:
    make, rounds = CONFUSED[kind]
    confused = make(zoo, tmp_path)
    confused.use()
    refused = confuse_often(confused.path, rounds, confused.use, (DemHubError, OSError), confused.sign)
    assert refused > rounds / 50
    confused.use()
