"""A Space with the mixer: what is pushed, what never is, and the app itself, which is started and asked."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, snapshot_download

from dem_hub import DEMConfig, SearchResult
from dem_hub.cli.app import main
from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.mixer.space import GRADIO, push_space
from dem_hub.search.prediction import Prediction
from tests.fake_hub.server import Hub
from tests.mixer.test_page import free_port, pytestmark  # noqa: F401
from tests.support.counting_models import Counters
from tests.support.processes import start
from tests.support.published_repos import RECIPE, VECTOR, Published

ROOT = Path(__file__).parents[2]
SPACE = "ann/mix"
BASE = "ann/counting"
PATIENCE = 300  # seconds that the slowest machine may take to start the app


def files_of(hub: Hub) -> dict[str, bytes]:
    return hub.files(SPACE, kind="spaces")


def metadata_of(hub: Hub) -> dict[str, Any]:
    data: dict[str, Any] = ModelCard(files_of(hub)["README.md"].decode()).data.to_dict()
    return data


@pytest.fixture
def base_on_hub(hub: Hub, counters: Counters) -> str:
    HfApi().create_repo(BASE)
    HfApi().upload_folder(repo_id=BASE, folder_path=counters.base)
    return BASE


@pytest.fixture
def pushed(hub: Hub, base_on_hub: str, found: Path) -> Hub:
    push_space(found, SPACE, include_vectors=True, base_model=base_on_hub)
    return hub


def test_the_space_of_a_search(pushed: Hub, found: Path, result: SearchResult, tmp_path: Path) -> None:
    """It has the recipe, its vectors, and what the page expects losses from; and nothing of this machine."""
    files = files_of(pushed)
    weights = {f"recipe/vectors/{name}/vector_{part}" for name in ("up", "down", "threes") for part in ("config.json",)}
    assert {"README.md", "app.py", "requirements.txt", "recipe/config.json", "recipe/tokenizer.json"} <= files.keys()
    assert weights <= files.keys()
    for path, content in files.items():
        if not path.endswith(".safetensors"):
            assert str(found.parent).encode() not in content, path
            assert str(Path(next(iter(result.coefficients))).parent).encode() not in content, path
    folder = Path(snapshot_download(SPACE, repo_type="space", local_dir=tmp_path / "space"))
    kept = SearchResult.from_pretrained(folder / "recipe")
    assert list(kept.coefficients.values()) == list(result.coefficients.values())
    ours, theirs = Prediction.of(kept), Prediction.of(result)
    assert ours is not None
    assert theirs is not None
    assert ours.losses((0.3, 0.2, 0.1)) == theirs.losses((0.3, 0.2, 0.1))
    assert ours.base_losses == theirs.base_losses
    assert json.loads(files["recipe/search_result.json"])["acceptance"] is None


def test_what_the_hub_builds(pushed: Hub) -> None:
    found = metadata_of(pushed)
    assert (found["sdk"], found["sdk_version"], found["app_file"]) == ("gradio", GRADIO, "app.py")
    assert (found["python_version"], found["suggested_hardware"]) == ("3.11", "cpu-basic")
    assert found["models"] == [BASE]
    assert files_of(pushed)["requirements.txt"].decode().splitlines()[1].startswith("dem-hub[mixer]==")


def test_the_version_of_gradio_is_the_tested_one() -> None:
    assert f"\ngradio=={GRADIO}\n" in (ROOT / "constraints.txt").read_text("utf-8")


def test_the_models_and_the_license(published: Published, hub: Hub) -> None:
    for name in ("org/base", VECTOR):
        readme = ModelCard("---\nlicense: mit\n---\n")
        HfApi().upload_file(path_or_fileobj=str(readme).encode(), path_in_repo="README.md", repo_id=name)
    push_space(RECIPE, SPACE, private=True)
    found = metadata_of(hub)
    assert found["models"] == ["org/base", VECTOR]
    assert found["license"] == "mit"
    assert hub.store.repos["spaces", SPACE].private
    assert "recipe/search_result.json" not in files_of(hub)


def test_a_second_push_replaces_what_is_ours(pushed: Hub, found: Path, base_on_hub: str, tmp_path: Path) -> None:
    """An own text in the README and own files stay; what the recipe does not have any more goes."""
    api = HfApi()
    mine = files_of(pushed)["README.md"].decode() + "\nMy own words.\n"
    for path, text in (("README.md", mine), ("notes.txt", "mine")):
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=SPACE, repo_type="space")
    recipe = DEMConfig.from_pretrained(found)
    smaller = DEMConfig(recipe.base, recipe.vectors[:1], architectures=recipe.architectures)
    smaller.save_pretrained(tmp_path / "smaller")
    push_space(tmp_path / "smaller", SPACE, include_vectors=True, base_model=base_on_hub)
    files = files_of(pushed)
    assert "My own words." in files["README.md"].decode()
    assert files["notes.txt"] == b"mine"
    assert "recipe/search_result.json" not in files
    assert {path.split("/")[2] for path in files if path.startswith("recipe/vectors/")} == {"up"}


def test_what_is_refused_before_anything_is_sent(published: Published, hub: Hub, found: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--base-model"):
        push_space(found, SPACE, include_vectors=True)
    with pytest.raises(ConfigError, match="folders of this machine"):
        push_space(found, SPACE, base_model="org/base")
    with pytest.raises(NotFoundError):
        push_space(tmp_path, SPACE)
    HfApi().update_repo_settings(VECTOR, private=True)
    with pytest.raises(ConfigError, match=f"private.*\\n.*'{VECTOR}'"):
        push_space(RECIPE, SPACE)
    assert ("spaces", SPACE) not in hub.store.repos


def test_a_private_part_needs_a_space_that_is_closed(published: Published, hub: Hub) -> None:
    """A Space that exists keeps its visibility, whatever `private` says."""
    HfApi().update_repo_settings(VECTOR, private=True)
    HfApi().create_repo(SPACE, repo_type="space", space_sdk="gradio")
    with pytest.raises(ConfigError, match="Everybody could open this Space"):
        push_space(RECIPE, SPACE, private=True)
    assert not files_of(hub)
    HfApi().delete_repo(SPACE, repo_type="space")
    push_space(RECIPE, SPACE, private=True)
    assert hub.store.repos["spaces", SPACE].private


def test_the_app_of_somebody_else_stays(published: Published, hub: Hub) -> None:
    HfApi().create_repo(SPACE, repo_type="space", space_sdk="gradio")
    HfApi().upload_file(path_or_fileobj=b"mine()", path_in_repo="app.py", repo_id=SPACE, repo_type="space")
    with pytest.raises(ConfigError, match="did not write"):
        push_space(RECIPE, SPACE)
    assert files_of(hub) == {"app.py": b"mine()"}


def test_the_command(published: Published, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", RECIPE, "--space", SPACE, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert f"go to the Space '{SPACE}':" in shown.err
    assert "  app.py  " in shown.err
    assert not shown.out
    assert ("spaces", SPACE) not in hub.store.repos
    assert main(["push", RECIPE, "--space", SPACE]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/spaces/{SPACE}/commit/")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([RECIPE], "either"),
        ([RECIPE, "ann/x", "--space", SPACE], "either"),
        ([RECIPE, "--space", SPACE, "--subfolder", "x"], "subfolder means nothing"),
    ],
)
def test_what_the_command_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def started(pushed: Hub, open_addresses: set[tuple[str, int]], tmp_path: Path) -> Iterator[str]:
    """Start the pushed app as the Hub does, in a process of its own that has no token, and return its address."""
    pytest.importorskip("gradio")
    folder = snapshot_download(SPACE, repo_type="space", local_dir=tmp_path / "space")
    port = free_port()
    open_addresses.add(("127.0.0.1", port))
    place = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    environment = pushed.environment(tmp_path / "home", HF_TOKEN="", OMP_NUM_THREADS="1", **place)
    app = start(Path(folder) / "app.py", environment=environment, folder=Path(folder))
    yield f"http://127.0.0.1:{port}/"
    app.process.terminate()
    app.end()


def test_the_app_answers(started: str, result: SearchResult) -> None:
    from gradio_client import Client
    from httpx import HTTPError

    client = None
    end = time.monotonic() + PATIENCE
    while client is None and time.monotonic() < end:
        try:
            client = Client(started, verbose=False, analytics_enabled=False, httpx_kwargs={"trust_env": False})
        except (HTTPError, ValueError):  # it does not listen yet
            time.sleep(0.2)
    assert client is not None
    sliders = client.predict(api_name="/open")[:3]
    assert [slider["value"] for slider in sliders] == pytest.approx(list(result.coefficients.values()), abs=5e-4)
    place = [[0, 1, 2], 0, 1, 0.5, 0.25, 0.125, *[0.0] * 8]
    _, table, note, picture = client.predict(*place, api_name="/look")
    assert "0.500 up" in note
    # Nobody can start a Space with other options.
    assert "dem-hub mix recipe --data" in note
    assert "start the mixer" not in note
    assert "expected" in table
    assert "<svg" in picture
    left, right, _ = client.predict("w1 w2 w3", "completion", 4, 0.0, "base", *place, api_name="/ask")
    assert len(left) == len(right) == 2
    # Whoever opens a Space is a stranger, and can change nothing.
    names = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    assert not names & {"/add", "/save", "/push", "/find_other", "/load_other"}
