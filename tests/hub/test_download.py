"""Sources are found on this machine, or refused with the reason. (No test here reaches the Hub.)"""

from pathlib import Path

import pytest

from dem_hub import VectorSource
from dem_hub.errors import NotFoundError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.download import copy_side_files, resolve, side_files
from tests.support.tiny_models import Models


def test_resolve_a_folder(llama: Models) -> None:
    found = resolve(VectorSource(str(llama.base)), MODEL_FILES)
    assert (found.folder, found.commit) == (llama.base, None)


def test_resolve_a_subfolder(llama: Models) -> None:
    found = resolve(VectorSource(str(llama.base.parent), subfolder="base"), MODEL_FILES)
    assert found.folder == llama.base
    with pytest.raises(NotFoundError, match="has no subfolder 'other'") as caught:
        resolve(VectorSource(str(llama.base.parent), subfolder="other"), MODEL_FILES)
    assert caught.type is NotFoundError


@pytest.mark.parametrize("name", ["a/b/c", "/absent", "./absent", "~/x", "", "a b"])
def test_names_that_cannot_be_on_the_hub(name: str) -> None:
    with pytest.raises(NotFoundError, match=r"not a Hub id \(namespace/name\). Check the path") as caught:
        resolve(VectorSource(name), MODEL_FILES)
    assert caught.type is NotFoundError


def test_offline_says_where_it_looked() -> None:
    with pytest.raises(OSError, match="[Cc]annot find") as caught:
        resolve(VectorSource("org/absent"), MODEL_FILES, HubOptions(local_files_only=True))
    assert caught.value.__notes__ == ["'org/absent' is not a local folder, so it was looked up on the Hub."]


def test_a_snapshot_in_the_cache(llama: Models, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--base"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in llama.base.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    found = resolve(VectorSource("org/base"), MODEL_FILES, HubOptions(cache_dir=tmp_path, local_files_only=True))
    assert (found.folder, found.commit) == (snapshot, commit)


def test_the_client_says_who_it_is() -> None:
    assert hub_api().library_name == "dem-hub"
    assert hub_api() is hub_api()


def test_side_files(llama: Models, tmp_path: Path) -> None:
    copy_side_files(side_files(VectorSource(str(llama.base))), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
