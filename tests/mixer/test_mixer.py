"""The one model of all visitors: what it merges, measures, answers, takes in and saves."""

import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dem_hub import DEMConfig, DEMModel, SearchResult
from dem_hub.errors import ConfigError, DemHubError
from dem_hub.mixer.generation import Prompt
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.opening import Measuring, open_mixer
from tests.support.counting_models import Counters
from tests.support.fresh_losses import fresh
from tests.support.published_repos import Published

POINTS = [(0.5, 0.25, 0.0), (0.0, 0.0, 0.0), (1.0, -0.5, 0.75)]


def prompt(text: str, **options: object) -> Prompt:
    return Prompt([{"role": "user", "content": text}], **options)  # type: ignore[arg-type]


def last(pieces: object) -> str:
    *_, text = pieces  # type: ignore[misc]
    return str(text)


@pytest.mark.parametrize("point", POINTS)
def test_measured_losses_are_those_of_a_fresh_load(mixer: Mixer, counters: Counters, point: tuple[float, ...]) -> None:
    measured = mixer.measure(point)
    assert measured == fresh(counters, dict(zip(mixer.names, point, strict=True)), counters.data)
    assert mixer.measured(point) == measured
    assert mixer.measured((0.1, 0.1, 0.1)) == {}


@pytest.mark.parametrize("is_chat", [True, False])
def test_an_answer_is_what_generate_says(mixer: Mixer, counters: Counters, is_chat: bool) -> None:
    text = "w1 w2 w3 w4"
    asked = prompt(text, is_chat=is_chat, max_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(counters.base)
    for point in POINTS:
        model = DEMModel.from_pretrained(
            counters.base, vectors=dict(zip(mixer.names, point, strict=True)), dtype="float32"
        )
        if is_chat:
            ids = tokenizer.apply_chat_template(
                list(asked.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        else:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
        whole = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        expected = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert last(mixer.answer(point, asked)).split() == expected.split()


def test_an_answer_comes_in_pieces_and_can_be_left(mixer: Mixer) -> None:
    """The model is free as soon as nobody reads the answer any more."""
    asked = prompt("w1 w2 w3", max_tokens=100)
    pieces = mixer.answer(POINTS[0], asked)
    assert next(pieces) != next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert mixer._lock.acquire(timeout=20)
    mixer._lock.release()
    mixer.merge(POINTS[1])


def test_two_visitors_at_once_each_get_their_own_mixture(mixer: Mixer, counters: Counters) -> None:
    """Requests of several threads are as those of one after the other."""
    alone = {
        point: (mixer.measure(point), last(mixer.answer(point, prompt("w1 w2", max_tokens=5)))) for point in POINTS
    }
    found: dict[tuple[float, ...], list[object]] = {point: [] for point in POINTS}

    def visit(point: tuple[float, ...]) -> None:
        for _ in range(3):
            found[point].append((mixer.measure(point), last(mixer.answer(point, prompt("w1 w2", max_tokens=5)))))

    threads = [threading.Thread(target=visit, args=(point,)) for point in POINTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {point: [alone[point]] * 3 for point in POINTS}


@pytest.mark.parametrize("text", ["", "w1 " * 125])
def test_a_prompt_of_no_or_too_many_tokens(mixer: Mixer, text: str) -> None:
    with pytest.raises(ConfigError, match="Write something first|Clear the conversation"):
        last(mixer.answer(POINTS[0], prompt(text, max_tokens=8)))
    mixer.merge(POINTS[0])


def test_a_merge_that_failed_is_made_again(mixer: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mixer.measure(POINTS[0])
    mixer.merge(POINTS[1])
    set_coefficients = mixer.model.dem.set_coefficients
    monkeypatch.setattr(mixer.model.dem, "set_coefficients", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        mixer.merge(POINTS[0])
    monkeypatch.setattr(mixer.model.dem, "set_coefficients", set_coefficients)
    assert mixer.measure(POINTS[0]) == expected


def test_a_saved_recipe_is_the_mixture(mixer: Mixer, result: SearchResult, tmp_path: Path) -> None:
    found = tuple(result.coefficients.values())
    mixer.merge(POINTS[0])
    assert mixer.save("mine", POINTS[0], aside=[2]) == "mine"
    saved = DEMConfig.from_pretrained(tmp_path / "mixtures" / "mine")
    assert list(saved.coefficients.values()) == [0.5, 0.25]
    assert saved.search is None
    assert saved.dtype == result.config.dtype
    assert AutoTokenizer.from_pretrained(tmp_path / "mixtures" / "mine").chat_template
    # What was found says how; nothing else may claim to have been found so.
    assert mixer.recipe(found) == result.config
    with pytest.raises(ConfigError, match="There is a 'mine' already"):
        mixer.save("mine", POINTS[1])
    with pytest.raises(ConfigError, match="is no name"):
        mixer.save("../mine", POINTS[1])
    with pytest.raises(ConfigError, match="All vectors are put aside"):
        mixer.recipe(POINTS[0], aside=[0, 1, 2])
    assert [path.name for path in (tmp_path / "mixtures").iterdir()] == ["mine"]


def test_a_vector_is_taken_in_and_mixed(published: Published, hub, tmp_path: Path) -> None:
    """Afterwards all is as if the recipe had had it from the beginning, and other vectors have the numbers they had."""
    mixer = open_mixer("ann/dem", output=tmp_path, dtype="float32")
    before = dict(mixer.names)
    assert mixer.add("ann/vectors//code") == 1
    assert mixer.add("ann/vectors//code") == 1
    assert list(mixer.names.values()) == ["maths", "code"]
    assert list(mixer.names)[:1] == list(before)
    mixer.merge((0.25, 0.5))
    fresh_model = DEMModel.from_pretrained(
        "org/base", vectors={"ann/maths": 0.25, "ann/vectors//code": 0.5}, dtype="float32"
    )
    for ours, theirs in zip(mixer.model.parameters(), fresh_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # A visitor who does not know of it has 0 of it.
    mixer.merge((0.25,))
    assert mixer.model.dem.coefficients["ann/vectors//code"] == 0
    assert mixer.recipe((0.25, 0.5)).coefficients == {"ann/maths": 0.25, "ann/vectors//code": 0.5}


@pytest.mark.parametrize("text", ["ann/nothing", "org/base", "ann/dem", "/etc/passwd", "ann/maths//../.."])
def test_what_is_no_vector_changes_nothing(published: Published, hub, tmp_path: Path, text: str) -> None:
    mixer = open_mixer("ann/dem", output=tmp_path, dtype="float32")
    names = dict(mixer.names)
    with pytest.raises((DemHubError, OSError)):
        mixer.add(text)
    assert mixer.names == names
    mixer.merge((0.5,))


def test_a_recipe_is_pushed(published: Published, hub, tmp_path: Path) -> None:
    mixer = open_mixer("ann/dem", output=tmp_path, dtype="float32")
    assert "ann/mixed" in mixer.push("ann/mixed", (0.75,), private=True)
    assert list(DEMConfig.from_pretrained("ann/mixed").coefficients.values()) == [0.75]
    with pytest.raises(ConfigError, match="more than the id"):
        mixer.push("ann/mixed@v1", (0.75,))


@pytest.mark.parametrize("text", ["ann/dem", "org/base", "saved"])
def test_a_model_to_compare_with(published: Published, hub, tmp_path: Path, text: str) -> None:
    """What it takes is said from headers alone, and it answers as it does when it is loaded by itself."""
    mixer = open_mixer("ann/dem", output=tmp_path, dtype="float32")
    mixer.save("saved", (0.75,))
    hub.forget_requests()
    found = mixer.find_other(text)
    fetched = [seen for seen in hub.requests("GET", r"/resolve/.*safetensors") if "range" not in seen.headers]
    assert not fetched
    assert mixer.other is None
    mixer.load_other(found)
    assert mixer.other is not None
    name = str(tmp_path / text) if text == "saved" else text
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    assert found.weights == sum(each.nbytes for each in model.parameters())
    ids = mixer.tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    whole = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=mixer.tokenizer.eos_token_id)
    expected = mixer.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert last(mixer.other.answer(prompt("w1 w2 w3", max_tokens=5))).split() == expected.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann/maths", "is a vector, and no model. Add it"),
        ("ann/nothing", "ann/nothing"),
        ("/etc/passwd", "is no id of the Hub"),
        ("absent", "no saved recipe 'absent'"),
        ("..", "is no name"),
    ],
)
def test_what_cannot_be_compared_with(published: Published, hub, tmp_path: Path, text: str, message: str) -> None:
    mixer = open_mixer("ann/dem", output=tmp_path, dtype="float32")
    with pytest.raises((DemHubError, OSError), match=message):
        mixer.find_other(text)
    assert mixer.other is None


def test_a_base_with_vectors(counters: Counters, tmp_path: Path) -> None:
    mixer = open_mixer(str(counters.base), {counters.vectors["up"]: 0.5}, output=tmp_path)
    assert [preset.label for preset in mixer.presets()] == ["recipe", "1/N", "up alone", "base"]
    assert mixer.recipe((0.5,)).dtype is None


def test_data_that_cannot_be_used(found: Path, tmp_path: Path) -> None:
    for data, message in (([], "nothing to measure in 'maths'"), ([[1]], "nothing to measure in 'maths'")):
        with pytest.raises(ConfigError, match=message):
            open_mixer(str(found), measuring=Measuring({"maths": data}), output=tmp_path)


def test_a_model_that_writes_no_text(zoo, tmp_path: Path) -> None:
    base = zoo.models("bert").base
    vector = zoo.vector("bert")
    with pytest.raises(ConfigError, match="writes no text"):
        open_mixer(str(base), {str(vector): 0.5}, output=tmp_path)
