"""The page as a program sees it that speaks to Gradio's server; `test_browser.py` has it as a person does."""

import gc
import logging
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dem_hub import DEMConfig, SearchResult
from dem_hub.cli.app import main
from dem_hub.mixer.components import INCLUDE, PRIVATE, Components
from dem_hub.mixer.generation import Prompt
from dem_hub.mixer.handlers import Handlers
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.opening import Measuring, open_mixer
from dem_hub.mixer.page import is_loopback, launch
from dem_hub.mixer.view import Tab, view_of
from tests.fake_hub.server import Hub
from tests.support.counting_models import Counters
from tests.support.published_repos import Published

pytestmark = [
    # Gradio leaves the loops of its threads to the garbage collector, which says so.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # What Gradio sets for pandas, in a thread that counts requests.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
]

SPARE = 8  # sliders of the page without a vector
PLACE = (0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Served:
    """A mixer and its page, which is really served."""

    mixer: Mixer
    page: Any
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def serving(found: Path, counters: Counters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio")
    output = tmp_path_factory.mktemp("page") / "mixtures"
    mixer = open_mixer(str(found), measuring=Measuring(counters.data), output=output, dtype="float32")
    port = free_port()
    page = launch(mixer, "127.0.0.1", port)
    yield Served(mixer, page, port)
    page.close(verbose=False)
    del page
    gc.collect()  # here, and not in the middle of another test


@pytest.fixture
def served(serving: Served, open_addresses: set[tuple[str, int]]) -> Served:
    open_addresses.add(("127.0.0.1", serving.port))
    return serving


@pytest.fixture
def tab(served: Served) -> Any:
    return open_tab(served)


def open_tab(served: Served) -> Any:
    from gradio_client import Client

    client = Client(served.url, verbose=False, analytics_enabled=False, httpx_kwargs={"trust_env": False})
    client.predict(api_name="/open")  # as a browser does; the server then knows the choices of this tab
    return client


def place(values: tuple[float, ...] = PLACE, kept: tuple[int, ...] = (0, 1, 2)) -> list[Any]:
    """Return what the components of a tab hold, in the order of `Tab.read`."""
    return [list(kept), 0, 1, *values, *[0.0] * SPARE]


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes before anything is loaded, so that the recipe may be absent."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["mix", "absent/recipe"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'dem-hub[mixer]'" in error


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", ""])
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_new_tab_stands_at_what_was_found(tab: Any, result: SearchResult) -> None:
    sliders = tab.predict(api_name="/open")[: 3 + SPARE]
    assert [slider["visible"] for slider in sliders] == [True] * 3 + [False] * SPARE
    assert [slider["label"] for slider in sliders[:3]] == ["up", "down", "threes"]
    assert [slider["value"] for slider in sliders[:3]] == [round(value, 3) for value in result.coefficients.values()]


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2)])
def test_a_slider_shows_the_view(served: Served, tab: Any, kept: tuple[int, ...]) -> None:
    preset, *shown = tab.predict(*place(kept=kept), api_name="/look")
    aside = tuple(number for number in range(3) if number not in kept)
    view = view_of(served.mixer, Tab(PLACE, aside, (0, 1)))
    assert shown == [view.table, view.note, view.landscape]
    assert preset["value"] == view.label


def test_a_preset_moves_the_sliders(tab: Any) -> None:
    shown = tab.predict("down alone", *place(), api_name="/preset")
    assert [slider["value"] for slider in shown[:3]] == [0.0, 1.0, 0.0]
    with pytest.raises(Exception, match="There is no preset &#x27;down alone&#x27; without"):
        tab.predict("down alone", *place(kept=(0, 2)), api_name="/preset")


def test_merged_and_measured(served: Served, tab: Any) -> None:
    status, _, table, *_ = tab.predict(*place(), api_name="/merge")
    assert status.startswith("Merged and measured in ")
    assert status.endswith("base + 0.500 up + 0.250 down + 0.125 threes")
    measured = served.mixer.measured(PLACE)
    assert all(f"{loss:.4f}" in table for loss in measured.values())
    assert measured == served.mixer.measure(PLACE)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_both_answer(served: Served, tab: Any, kind: str) -> None:
    """They answer as the mixer does, and a conversation goes on where it was."""
    asked = ["w1 w2 w3", kind, 6, 0.0, "up alone", *place()]
    left, right, _ = tab.predict(*asked, api_name="/ask")
    for messages, point in ((left, (1.0, 0.0, 0.0)), (right, PLACE)):
        prompt = Prompt([{"role": "user", "content": "w1 w2 w3"}], kind == "chat", 6)
        *_, expected = served.mixer.answer(point, prompt)
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert text_in(messages[-1]) == expected
    again, _, _ = tab.predict(*asked, api_name="/ask")
    assert len(again) == (4 if kind == "chat" else 2)
    with pytest.raises(Exception, match="There is nothing to answer"):
        tab.predict("", *asked[1:], api_name="/ask")


def test_another_model_is_loaded_when_it_is_asked_for(served: Served, tab: Any) -> None:
    """Its size comes first. Then the left pane is its, and presets stay to choose from."""
    tab.predict("other", *place((0.0, 1.0, 0.0)), api_name="/save")
    assert "kB of memory beside the mixture" in tab.predict("other", api_name="/find_other")
    assert served.mixer.other is None
    status, choices = tab.predict(*place(), api_name="/load_other")
    assert status.startswith("Loaded the model other in ")
    assert choices["value"] == "the model other"
    assert "base" in [choice[0] for choice in choices["choices"]]
    asked = ["w1 w2 w3", "completion", 6, 0.0, "the model other", *place()]
    left, *_ = tab.predict(*asked, api_name="/ask")
    same, *_ = tab.predict(*asked[:4], "down alone", *asked[5:], api_name="/ask")
    assert [text_in(message) for message in left] == [text_in(message) for message in same]


def text_in(message: dict[str, Any]) -> str:
    content = message["content"]
    return str(content if isinstance(content, str) else content[0]["text"])


def test_two_tabs_are_each_answered_by_their_own_mixture(served: Served) -> None:
    points = [PLACE, (1.0, 0.0, 1.0)]
    asked = [["w1 w2 w3", "completion", 8, 0.0, "base", *place(point)] for point in points]
    tabs = [open_tab(served) for _ in points]
    alone = [one.predict(*question, api_name="/ask") for one, question in zip(tabs, asked, strict=True)]
    with ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(one.predict, *question, api_name="/ask") for one, question in zip(tabs, asked, strict=True)
        ]
        merges = [
            pool.submit(one.predict, *place(point), api_name="/merge") for one, point in zip(tabs, points, strict=True)
        ]
        assert [answer.result(60)[:2] for answer in answers] == [before[:2] for before in alone]
        assert all(merge.result(60)[0].startswith("Merged") for merge in merges)


def test_saved_under_a_name_and_nowhere_else(served: Served, tab: Any) -> None:
    assert tab.predict("mine", *place(kept=(0, 1)), api_name="/save").startswith("Saved as mine: base + 0.500 up")
    saved = DEMConfig.from_pretrained(served.mixer.opening.output / "mine")
    assert list(saved.coefficients.values()) == [0.5, 0.25]
    for name in ("mine", "../mine", str(served.mixer.opening.output / "other"), ""):
        with pytest.raises(Exception, match="Choose another name|is no name for a recipe") as caught:
            tab.predict(name, *place(), api_name="/save")
        assert str(served.mixer.opening.output) not in str(caught.value)
    assert {path.name for path in served.mixer.opening.output.iterdir()} <= {"mine", "other"}


@pytest.mark.parametrize("text", ["me/absent", "/etc/passwd", "<b>me</b>"])
def test_a_wrong_id_is_told_and_changes_nothing(served: Served, tab: Any, text: str) -> None:
    names = dict(served.mixer.names)
    with pytest.raises(Exception) as caught:
        tab.predict(text, *place(), api_name="/add")
    assert "<b>" not in str(caught.value)
    assert "/etc" not in str(caught.value)
    assert served.mixer.names == names


def test_an_added_vector_gets_a_slider(published: Published, hub: Hub, tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    mixer = open_mixer("ann/dem", output=tmp_path, dtype="float32")
    with gradio.Blocks(analytics_enabled=False):
        handlers = Handlers(Components(gradio, mixer, is_owner=True))
    status, *shown = handlers.add("ann/vectors//code", [0], None, None, 0.25, *[0.0] * SPARE)
    assert status.startswith("Added code, at 0")
    sliders = [update for update in shown[: 1 + SPARE] if update["visible"]]
    assert [(slider["label"], slider["value"]) for slider in sliders] == [("maths", 0.25), ("code", 0.0)]


def test_pushed_as_the_marks_say(served: Served, tab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private is marked at first, and nobody pushes more than was marked."""
    asked: list[tuple[Any, ...]] = []

    def push(repo_id: str, coefficients: Any, aside: Any, **options: Any) -> str:
        asked.append((repo_id, tuple(coefficients), tuple(aside), options))
        return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(served.mixer, "push", push)
    for marks in ([PRIVATE], [INCLUDE], []):
        status = tab.predict("me/mix", marks, *place(kept=(0, 2)), api_name="/push")
        assert status == "Pushed: https://hub/me/mix/commit/1"
        options = {"private": PRIVATE in marks, "include_vectors": INCLUDE in marks}
        assert asked.pop() == ("me/mix", (0.5, 0.0, 0.125), (1,), options)


def test_what_nobody_expected_is_logged_and_not_shown(
    served: Served, tab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the inside of /home/ann/model")

    monkeypatch.setattr(served.mixer, "measure", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(Exception, match=r"went wrong \(RuntimeError\)") as caught:
        tab.predict(*place((0.1, 0.2, 0.3)), api_name="/merge")
    assert "ann" not in str(caught.value)
    assert "the inside of /home/ann/model" in caplog.text


def test_the_server_shows_no_place_and_takes_no_files(served: Served, counters: Counters, found: Path) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        for path in ("", "config", "gradio_api/info"):
            answer = client.get(path)
            assert answer.status_code == 200
            for secret in (str(counters.base.parent), str(found.parent), str(Path.cwd()), str(Path.home())):
                assert secret not in answer.text
        for file in (found / "config.json", Path("/etc/passwd")):
            assert client.get(f"gradio_api/file={file}").status_code in (403, 404)
        assert client.post("gradio_api/upload", files={"files": ("a.txt", b"0" * 100)}).status_code == 413


def test_a_page_for_others_cannot_write(serving: Served) -> None:
    import gradio

    def names(*, is_owner: bool) -> set[str]:
        with gradio.Blocks(analytics_enabled=False) as blocks:
            Handlers(Components(gradio, serving.mixer, is_owner=is_owner)).connect(blocks, is_owner=is_owner)
        return {each["api_name"] for each in blocks.get_config_file()["dependencies"] if each["api_name"]}

    assert names(is_owner=True) - names(is_owner=False) == {"add", "save", "push", "find_other", "load_other"}
