"""What somebody else's file, folder or repository could do, from end to end: nothing leaks, and nothing is obeyed.

SECURITY.md names these tests.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorStore
from dem_hub.checkpoints.base_model import Base
from dem_hub.cli.app import _make_warnings_printable, main
from dem_hub.cli.output import table
from dem_hub.errors import CheckpointError, ConfigError
from dem_hub.hub.download import Resolved
from dem_hub.hub.references import VectorSource
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput
from dem_hub.merging.opening import open_recipe
from dem_hub.training.repository import pusher
from dem_hub.vectors.statistics_beside import tied_statistics
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, RECIPE, STORE, VECTOR, Published
from tests.support.tiny_models import Models, Zoo, edit_json, edit_vector

SECRET = b"a key that must stay here"
STRANGERS = (
    ".env",
    "id_rsa",
    "notes.txt",
    "notes.json",
    "modeling_mine.py",
    "train.py",
    "vector_model_notes.txt",
    "model-x.safetensors",
)


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    """A file that links point at."""
    (tmp_path / "passwords").write_bytes(SECRET)
    return tmp_path / "passwords"


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def litter(folder: Path) -> None:
    """Put a user's own files into a folder."""
    for name in STRANGERS:
        (folder / name).write_bytes(SECRET)
    (folder / "private").mkdir()
    (folder / "private" / "key").write_bytes(SECRET)


def published_bytes(hub: Hub) -> bytes:
    return b"".join(hub.store.contents.values())


# A push


def _push_vector(published: Published, tmp_path: Path) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    litter(folder)
    assert main(["push", str(folder), "ann/new", "--base-model", BASE]) == 0


def _push_vector_from_python(published: Published, tmp_path: Path) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    litter(folder)
    DistributionVector.from_pretrained(folder).push_to_hub("ann/new", base_model=BASE)


def _push_adapter(published: Published, tmp_path: Path, zoo: Zoo) -> None:
    folder = copy_of(zoo.adapter("llama-tied", "bfloat16"), tmp_path / "v")
    litter(folder)
    assert main(["push", str(folder), "ann/new", "--base-model", BASE]) == 0


def _push_from_a_callback(published: Published, tmp_path: Path) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    litter(folder)
    pusher("ann/new", BASE, {})(folder)


def _push_store(published: Published, tmp_path: Path) -> None:
    folder = copy_of(published.store, tmp_path / "s")
    litter(folder)
    litter(folder / "maths")
    assert main(["push", str(folder), "ann/new"]) == 0


def _push_recipe(published: Published, tmp_path: Path) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    litter(folder)
    DEMModel.from_pretrained(BASE, vectors={str(folder): 0.5}).dem.save_pretrained(tmp_path / "r")
    litter(tmp_path / "r")
    assert main(["push", str(tmp_path / "r"), "ann/new", "--include-vectors"]) == 0


def _push_merged(published: Published, tmp_path: Path) -> None:
    assert main(["merge", RECIPE, "-o", str(tmp_path / "m")]) == 0
    litter(tmp_path / "m")
    assert main(["push", str(tmp_path / "m"), "ann/new"]) == 0


def _merge_and_push(published: Published, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    litter(tmp_path / "m")
    (tmp_path / "m" / "model-x.safetensors").unlink()  # weights without a recipe are another kind of folder
    arguments = ["merge", RECIPE, "-o", str(tmp_path / "m"), "--push-to-hub", "ann/new"]
    assert main(arguments) == 2, "the folder is not empty"
    assert main([*arguments, "--overwrite"]) == 0


PUSHES: dict[str, Callable[..., None]] = {
    "vector": _push_vector, "vector from Python": _push_vector_from_python, "adapter": _push_adapter, "callback": _push_from_a_callback,
    "store": _push_store, "recipe with its vectors": _push_recipe, "merged model": _push_merged, "merge and push": _merge_and_push,
}  # fmt: skip


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_publishes_what_dem_hub_made_and_nothing_else(
    hub: Hub, published: Published, zoo: Zoo, tmp_path: Path, kind: str
) -> None:
    more = {"zoo": zoo} if kind == "adapter" else {}
    PUSHES[kind](published, tmp_path, **more)
    paths = set(hub.files("ann/new"))
    assert "README.md" in paths
    assert not {path for path in paths if path.rpartition("/")[2] in (*STRANGERS, "key")}
    assert SECRET not in published_bytes(hub)
    assert (
        SECRET
        in (tmp_path / {"store": "s", "merged model": "m", "merge and push": "m"}.get(kind, "v") / ".env").read_bytes()
    )


@pytest.fixture
def coded(published: Published, llama: Models, tmp_path: Path) -> Path:
    """A base with code of its own."""
    folder = copy_of(llama.base, tmp_path / "coded")
    (folder / "modeling_odd.py").write_text("raise SystemExit('run')")
    return folder


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("way", ["folder", "no folder", "push"])
def test_code_of_a_base_is_pushed_by_an_argument_alone(
    hub: Hub, published: Published, coded: Path, tmp_path: Path, included: bool, way: str
) -> None:
    merge = ["merge", str(coded), "--vector", f"{published.vector}=0.5"]
    flag = ["--include-code"] if included else []
    target = ["-o", str(tmp_path / "m")]
    commands = {
        "folder": [[*merge, *target, "--push-to-hub", "ann/new", *flag]],
        "no folder": [[*merge, "--push-to-hub", "ann/new", *flag]],
        "push": [[*merge, *target], ["push", str(tmp_path / "m"), "ann/new", *flag]],
    }[way]
    with pytest.warns(UserWarning) as warned:
        for command in commands:
            assert main(command) == 0
    assert ("modeling_odd.py" in hub.files("ann/new")) == included
    assert any("own code (modeling_odd.py) is not pushed" in str(found.message) for found in warned) != included


@pytest.mark.parametrize("kind", ["vector", "store", "recipe", "merged model"])
def test_a_dry_run_lists_the_files_and_sends_nothing(
    hub: Hub, published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = {"vector": published.vector, "store": published.store}.get(kind, tmp_path / "made")
    if kind == "recipe":
        published.recipe.save_pretrained(folder)
    if kind == "merged model":
        assert main(["merge", RECIPE, "-o", str(folder)]) == 0
    more = ["--base-model", BASE] if kind == "vector" else []
    hub.forget_requests()
    capsys.readouterr()
    assert main(["push", str(folder), "ann/new", "--dry-run", *more]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert hub.requests("POST") == hub.requests("PUT") == []
    assert main(["push", str(folder), "ann/new", *more]) == 0
    shown = capsys.readouterr().err
    assert shown == err, "what a push shows before it goes is what a dry run shows"
    lines = re.findall(r"^  (\S+)  ([\d.]+ \w+)$", err, flags=re.MULTILINE)
    assert {path for path, _ in lines} == set(hub.files("ann/new")) - {"README.md", ".gitattributes", "perplexity.png"}
    assert re.match(rf"{len(lines)} files \(.*\) and a card go to 'ann/new':", err)


@pytest.mark.parametrize("to_folder", [False, True])
def test_a_dry_run_of_a_merge_lists_what_the_push_sends(
    hub: Hub, published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str], to_folder: bool
) -> None:
    command = ["merge", RECIPE, "--push-to-hub", "ann/new", *(["-o", str(tmp_path / "m")] if to_folder else [])]
    assert main([*command, "--dry-run"]) == 0
    dry = capsys.readouterr().err.partition("files (")[2]
    assert not (tmp_path / "m").exists()
    assert hub.requests("POST", "/commit/") == []
    assert main(command) == 0
    assert capsys.readouterr().err.partition("files (")[2] == dry != ""


@pytest.mark.parametrize("name", [".env", "id_rsa", "sub/key", "vector_model_notes.txt", "config.json"])
def test_a_config_of_a_vector_names_files_of_a_vector_only(published: Published, tmp_path: Path, name: str) -> None:
    """Else whoever pushes the vector of a stranger would publish a file that the stranger chose."""
    folder = copy_of(published.vector, tmp_path / "v")
    files = json.loads((folder / "vector_config.json").read_text())["files"]
    edit_vector(folder, files={**files, name: "0" * 64})
    with pytest.raises(ConfigError, match=f"names the file '{name}', and no vector has a file of that name"):
        DistributionVector.from_pretrained(folder)


@pytest.mark.parametrize("harm", ["weights", "config", "another", "missing"])
def test_a_store_is_verified_before_it_is_pushed(hub: Hub, published: Published, tmp_path: Path, harm: str) -> None:
    folder = copy_of(published.store, tmp_path / "s")
    weights = folder / "maths" / "vector_model.safetensors"
    if harm == "weights":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif harm == "config":
        edit_vector(folder / "maths", tensors={})
    elif harm == "another":
        shutil.rmtree(folder / "maths")
        copy_of(folder / "code", folder / "maths")
    else:
        weights.unlink()
    hub.forget_requests()
    with pytest.raises(CheckpointError, match=r"are not what its index says.\n  - 'maths': (?s:.*)Nothing was pushed"):
        VectorStore.from_pretrained(folder).push_to_hub("ann/new")
    assert hub.requests("POST") == []


def test_a_vector_is_verified_before_it_is_pushed(hub: Hub, published: Published, tmp_path: Path) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    vector = DistributionVector.from_pretrained(folder)
    (folder / "vector_model.safetensors").write_bytes(b"other")
    hub.forget_requests()
    with pytest.raises(CheckpointError, match="missing or were altered"):
        vector.push_to_hub("ann/new", base_model=BASE)
    assert hub.requests("POST") == []


# Links


VECTOR_LINKS = ("vector_config.json", "vector_model.safetensors", "norms.png", "dem_training.json")
MODEL_LINKS = (
    "config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "special_tokens_map.json", "vocab.txt", "preprocessor_config.json", "modeling_odd.py",
)  # fmt: skip


def relink(path: Path, target: Path) -> None:
    """Put a link in the place of a file; the target gets its bytes, so that nothing but the link is wrong."""
    if path.is_file():
        target.write_bytes(path.read_bytes())
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", VECTOR_LINKS)
def test_no_link_of_a_vector_is_pushed(
    hub: Hub, published: Published, passwords: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    relink(folder / name, passwords)
    hub.forget_requests()
    assert main(["push", str(folder), "ann/new", "--base-model", BASE]) == 2
    with pytest.raises(ConfigError, match=rf"links that lead out of it, .*\n  - '{name}' leads to '{passwords}'"):
        DistributionVector(Resolved.local(folder), verify=False).push_to_hub("ann/new", base_model=BASE)
    assert hub.requests("POST") == []


@pytest.mark.parametrize("name", VECTOR_LINKS[:2])
def test_no_link_of_a_vector_is_read_or_copied(
    published: Published, passwords: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_of(published.vector, tmp_path / "v")
    relink(folder / name, passwords)
    with pytest.raises(ConfigError, match="links that lead out of it"):
        DistributionVector.from_pretrained(folder)
    with pytest.raises(ConfigError, match="links that lead out of it"):
        DistributionVector(Resolved.local(folder), verify=False).save_pretrained(tmp_path / "copy")


@pytest.mark.parametrize("name", MODEL_LINKS)
def test_no_link_of_a_base_is_read_copied_or_pushed(
    hub: Hub, published: Published, llama: Models, passwords: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_of(llama.base, tmp_path / "clone")
    relink(folder / name, passwords)
    for command in (
        ["merge", str(folder), "--vector", f"{published.vector}=0.5", "-o", str(tmp_path / "m")],
        ["merge", str(folder), "--vector", f"{published.vector}=0.5", "--push-to-hub", "ann/new"],
        ["extract", str(folder), str(llama.full), "-o", str(tmp_path / "v")],
    ):
        assert main(command) == 2
    with pytest.raises(ConfigError, match=f"'{name}' leads to '{passwords}'"):
        VectorStore.create(tmp_path / "s", folder)
    assert not any((tmp_path / made).exists() for made in "mvs")
    assert hub.requests("POST") == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "dem_config.json", "dem_files.json"]
)
def test_no_link_of_a_merged_model_is_pushed(
    hub: Hub, published: Published, passwords: Path, tmp_path: Path, name: str
) -> None:
    assert main(["merge", RECIPE, "-o", str(tmp_path / "m")]) == 0
    relink(tmp_path / "m" / name, passwords)
    hub.forget_requests()
    assert main(["push", str(tmp_path / "m"), "ann/new"]) == 2
    assert hub.requests("POST") == []


@pytest.mark.parametrize(
    "name",
    ["vector_store.json", "tokenizer.json", "maths", "maths/vector_config.json", "maths/vector_model.safetensors"],
)
def test_no_link_of_a_store_is_followed(
    hub: Hub, published: Published, passwords: Path, tmp_path: Path, name: str
) -> None:
    folder = copy_of(published.store, tmp_path / "s")
    path = folder / name
    if path.is_dir():
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        relink(path, passwords)
    hub.forget_requests()
    assert main(["push", str(folder), "ann/new"]) == 2
    assert hub.requests("POST") == []
    if name == "maths":
        before = {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
        store = VectorStore.from_pretrained(folder)
        for change in (
            lambda: store.add("maths", DistributionVector.from_pretrained(folder / "code")),
            lambda: store.remove("maths"),
        ):
            with pytest.raises(ConfigError, match="cannot be called 'maths'"):
                change()
        assert {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()} == before


def test_no_link_of_a_recipe_is_read(published: Published, passwords: Path, tmp_path: Path) -> None:
    published.recipe.save_pretrained(tmp_path / "r")
    relink(tmp_path / "r" / "config.json", passwords)
    with pytest.raises(ConfigError, match="'config.json' leads to"):
        DEMConfig.from_pretrained(tmp_path / "r")


def test_an_index_that_names_a_file_behind_a_link(llama: Models, tmp_path: Path) -> None:
    folder = copy_of(llama.base, tmp_path / "base")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "sub").symlink_to(tmp_path)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "sub/model.safetensors"}})
    )
    with pytest.raises(ConfigError, match="'sub/model.safetensors' leads to"):
        Base(Resolved.local(folder))


def test_links_of_the_cache_are_followed(published: Published, tmp_path: Path) -> None:
    """All that comes from the Hub is a link to a blob."""
    vector = DistributionVector.from_pretrained(VECTOR)
    assert (vector.folder / "vector_config.json").is_symlink()
    again = DistributionVector.from_pretrained(vector.folder)
    again.save_pretrained(tmp_path / "v")
    assert not any(path.is_symlink() for path in (tmp_path / "v").iterdir())
    again.push_to_hub("ann/again")


# Cards and terminals


EVIL = "x\n<script>1</script> <!-- dem-hub: end --> \x1b]0;pwned\x07 ![](http://evil/t.png) www.evil.com | `|` "


EVIL_FILES = re.compile(r"(vector_config|dem_training|input_statistics|dem_config|vector_store|^config)\.json")


def _evil_vector(published: Published, tmp_path: Path) -> Path:
    folder = copy_of(published.vector, tmp_path / "evil")
    edit_vector(
        folder, choice=EVIL, codec_options={EVIL: EVIL}, finetuned="me/x@](http://evil) ![](http://evil/t.png)",
        training={"note": EVIL, EVIL: [EVIL, 1], "datasets": [EVIL, "org/data"]}, libraries={EVIL: EVIL},
        transformation={EVIL: [EVIL]},
    )  # fmt: skip
    moments = Moments.of_diagonal(torch.ones(2).double())
    statistics = InputStatistics((LayerInput((EVIL,), moments),), 1, EVIL)
    tied_statistics(statistics, DistributionVector.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_the_card_of_a_strangers_vector(hub: Hub, published: Published, tmp_path: Path) -> None:
    folder = _evil_vector(published, tmp_path)
    cards = []
    for _ in range(3):
        DistributionVector.from_pretrained(folder).push_to_hub("ann/inj", base_model=BASE)
        cards.append(hub.files("ann/inj")["README.md"].decode())
    assert len(set(cards)) == 1, "it does not grow"
    for text in ("<script>", "http://evil", "www.evil", "\x1b", "\x07"):
        assert text not in cards[0]
    assert cards[0].count("<!-- dem-hub: end -->") == 1
    assert json.loads(hub.files("ann/inj")["vector_config.json"])["finetuned"] is None


def texts_in(data: Any) -> str:
    """Return all texts and keys of JSON data, one a line."""
    if isinstance(data, dict):
        return "\n".join(f"{key}\n{texts_in(value)}" for key, value in data.items())
    if isinstance(data, list):
        return "\n".join(map(texts_in, data))
    return str(data)


@pytest.mark.parametrize("kind", ["vector", "adapter", "recipe", "merged", "store"])
def test_the_configs_that_are_pushed_for_a_stranger(
    hub: Hub, published: Published, zoo: Zoo, tmp_path: Path, kind: str
) -> None:
    """Nothing in them is HTML or one of our marks, and nobody who reads them gets a control character."""
    evil = _evil_vector(published, tmp_path)
    search = {"losses": {EVIL: 1.0}, EVIL: [EVIL + "\x7f"]}
    if kind == "vector":
        DistributionVector.from_pretrained(evil).push_to_hub("ann/inj", base_model=BASE, include_statistics=True)
    elif kind == "store":
        store = VectorStore.create(tmp_path / "s", BASE)
        store.add("evil", DistributionVector.from_pretrained(evil))
        store.push_to_hub("ann/inj", include_statistics=True)
    elif kind == "adapter":
        adapter = copy_of(zoo.adapter("llama-tied"), tmp_path / "adapter")
        (adapter / "dem_training.json").write_text(json.dumps({"training": {EVIL: EVIL}, "libraries": {}}))
        DistributionVector.from_pretrained(adapter).push_to_hub("ann/inj", base_model=BASE)
    elif kind == "recipe":
        replace(published.recipe, search=search).push_to_hub("ann/inj")
    else:
        replace(published.recipe, search=search).save_pretrained(tmp_path / "r")
        assert main(["merge", str(tmp_path / "r"), "--push-to-hub", "ann/inj"]) == 0
    configs = {name: data.decode() for name, data in hub.files("ann/inj").items() if EVIL_FILES.search(name)}
    assert any("pwned" in text for text in configs.values())
    assert any("input_statistics" in name for name in configs) == (kind in ("vector", "store"))
    for text in configs.values():
        assert "<" not in text
        assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []
        read = texts_in(json.loads(text))
        assert [letter for letter in read if not letter.isprintable() and letter != "\n"] == []


def test_the_card_of_a_strangers_recipe(hub: Hub, published: Published, tmp_path: Path) -> None:
    published.recipe.save_pretrained(tmp_path / "r")
    search = {"losses": {EVIL: 1.0}, "base_losses": {EVIL: 2.0}}
    quantization = {"llm_int8_skip_modules": [f"x` {EVIL}", *["lm_head"] * 100_000]}
    edit_json(tmp_path / "r" / "config.json", search=search, base_quantized=quantization)
    for _ in range(2):
        DEMConfig.from_pretrained(tmp_path / "r").push_to_hub("ann/inj")
        card = hub.files("ann/inj")["README.md"].decode()
        text = card.split("---\n", 2)[2]
        assert text.count("<!-- dem-hub: end -->") == 1
        assert not any(part in text for part in ("<script>", "http://evil", "www.evil", "\x1b", "\x07"))
        assert len(text) < 10_000


@pytest.mark.parametrize("more", [[], ["--tensors"], ["--json"]])
def test_a_terminal_is_told_nothing_by_info(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    folder = _evil_vector(published, tmp_path)
    assert main(["info", str(folder), *more]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert more == ["--json"] or "x\\n<script>" in out


def test_a_terminal_is_told_nothing_by_an_error(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(published.vector, tmp_path / "evil")
    data = json.loads((folder / "vector_config.json").read_text())
    edit_vector(folder, tensors={**data["tensors"], EVIL: {**next(iter(data["tensors"].values())), "codec": EVIL}})
    for command in (["info", str(folder)], ["merge", BASE, "--vector", f"{folder}=1", "-o", str(tmp_path / "m")]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err and "\x07" not in out + err
        assert err


# Names of the Hub


@pytest.mark.parametrize("folder", [BASE, VECTOR, STORE])
def test_a_folder_does_not_take_the_place_of_a_repository(
    hub: Hub, published: Published, llama: Models, tmp_path: Path, folder: str
) -> None:
    """The working directory has a folder of the name that a recipe from the Hub, a vector or a store names."""
    place = tmp_path / folder
    place.parent.mkdir(parents=True, exist_ok=True)
    copy_of(llama.full if folder == BASE else published.vector, place)
    edit_json(place / ("config.json" if folder == BASE else "vector_config.json"), mine=True)
    opened = open_recipe(VectorSource(RECIPE))
    assert opened.base.commit and all(vector.commit for vector in opened.vectors)
    assert place.resolve() not in {
        opened.base.folder.resolve(),
        *(vector.folder.resolve() for vector in opened.vectors),
    }
    opened.recipe.save_pretrained(tmp_path / "saved")
    assert "path" not in (tmp_path / "saved" / "config.json").read_text()
    assert open_recipe(VectorSource(str(tmp_path / "saved"))).base.commit
    if folder != VECTOR:  # which is named by the user below, and a folder that a user names is that folder
        assert not DistributionVector.from_pretrained(VECTOR).base.source.is_local
    if folder != STORE:
        store = VectorStore.from_pretrained(STORE)
        assert not store.base.source.is_local
        assert store["maths"].commit
    opened.recipe.push_to_hub("ann/again")


@pytest.mark.parametrize("what", ["base", "vector"])
def test_a_recipe_from_the_hub_that_pins_nothing(
    hub: Hub, published: Published, llama: Models, tmp_path: Path, what: str
) -> None:
    data = json.loads(hub.files(RECIPE)["config.json"])
    record = data["base"] if what == "base" else data["vectors"][0]
    record["commit"] = None
    HfApi().create_repo("ann/loose")
    HfApi().upload_file(repo_id="ann/loose", path_in_repo="config.json", path_or_fileobj=json.dumps(data).encode())
    (tmp_path / "org").mkdir()
    (tmp_path / "ann").mkdir()
    copy_of(llama.full, tmp_path / BASE)
    copy_of(published.vector, tmp_path / VECTOR)
    opened = open_recipe(VectorSource("ann/loose"))
    assert opened.base.commit and opened.vectors[0].commit


def test_a_terminal_is_told_nothing_by_tables_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = table(("repository", "kind"), [(EVIL, "vector"), ("ann/maths", EVIL)])
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    _make_warnings_printable()
    text = warnings.formatwarning(UserWarning(EVIL), UserWarning, "file.py", 1, "line")
    assert "x\n<script>" in text and "\x1b" not in text and "\x07" not in text
