"""One adapter for each mix, against the exact sum; and what a request may not have."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub.errors import AdapterError, ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.serving import mix_adapters
from dem_hub.serving.mix_adapters import MixAdapters
from dem_hub.serving.permitted import Permitted
from tests.support.other_readers import read_as
from tests.support.tiny_models import Zoo, make_adapter


@pytest.fixture
def base(zoo: Zoo) -> Path:
    return zoo.models("llama-tied", "float32").base


@pytest.fixture
def vectors(base: Path, tmp_path: Path) -> dict[str, str]:
    """Two adapters of ranks 5 and 2."""
    for seed, (name, rank) in enumerate({"maths": 5, "chat": 2}.items()):
        make_adapter(base, tmp_path / name, seed, target_modules=["q_proj", "down_proj"], r=rank, lora_alpha=2 * rank)
    return {name: str(tmp_path / name) for name in ("maths", "chat")}


def adapters_of(tmp_path: Path, vectors: dict[str, str], **options: Any) -> MixAdapters:
    return MixAdapters(Permitted(vectors, **options), tmp_path / "made")


def exact(base: Path, mix: dict[str, float]) -> dict[str, torch.Tensor]:
    """The sum of what PEFT merges for each adapter alone, in float64."""
    deltas: dict[str, torch.Tensor] = {}
    for path, coefficient in mix.items():
        for name, delta in read_as("peft", Path(path), base).items():
            deltas[name] = deltas.get(name, torch.zeros_like(delta)) + coefficient * delta
    return deltas


@pytest.mark.parametrize("reader", ["peft", "vllm"])
def test_a_mix_is_the_exact_sum(base: Path, vectors: dict[str, str], tmp_path: Path, reader: str) -> None:
    folder = adapters_of(tmp_path, vectors).find(str(base), "dem:maths=0.4+chat=-0.3")
    assert folder is not None
    expected = exact(base, {vectors["maths"]: 0.4, vectors["chat"]: -0.3})
    deltas = read_as(reader, folder, base)
    assert set(deltas) == set(expected)
    for name, delta in deltas.items():
        # The factors are float32.
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-7)


def test_all_spellings_of_a_mix_are_one_adapter(base: Path, vectors: dict[str, str], tmp_path: Path) -> None:
    adapters = adapters_of(tmp_path, vectors, max_mixes=1)
    names = ["dem:maths=0.4+chat=0.30", "dem:chat=.3+maths=4e-1", "dem:maths=0.4+chat=0.3"]
    folders = {adapters.find(str(base), name) for name in names}
    assert len(folders) == 1
    with pytest.raises(AdapterError, match="keeps 1 mixes, and has them"):
        adapters.find(str(base), "dem:maths=0.5")
    assert folders == {adapters.find(str(base), names[0])}


def test_threads_that_ask_for_one_mix_make_it_once(
    base: Path, vectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[Path] = []
    real = mix_adapters.export_adapter

    def counted(opened: Any, target: Path, **options: Any) -> Any:
        exports.append(target)
        return real(opened, target, **options)

    monkeypatch.setattr(mix_adapters, "export_adapter", counted)
    adapters = adapters_of(tmp_path, vectors)
    threads = [threading.Thread(target=adapters.find, args=(str(base), "dem:maths=0.4")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(exports) == 1


def test_too_high_a_rank_is_truncated_with_its_error(
    base: Path, vectors: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The truncated sum has the smallest error that there is, and its size is in the log."""
    adapters = adapters_of(tmp_path, vectors, max_rank=6, max_error=0.9)
    with caplog.at_level(logging.WARNING):
        folder = adapters.find(str(base), "dem:maths=0.4+chat=0.3")
    assert folder is not None
    expected = exact(base, {vectors["maths"]: 0.4, vectors["chat"]: 0.3})
    deltas = read_as("vllm", folder, base)
    lost = sum(float((deltas[name] - expected[name]).square().sum()) for name in expected)
    least = sum(float(torch.linalg.svdvals(delta)[6:].square().sum()) for delta in expected.values())
    whole = sum(float(delta.square().sum()) for delta in expected.values())
    assert lost == pytest.approx(least, rel=1e-3)
    assert f"rank 6: relative error {(lost / whole) ** 0.5:.3g}" in caplog.text


def test_too_large_an_error_is_refused(base: Path, vectors: dict[str, str], tmp_path: Path) -> None:
    adapters = adapters_of(tmp_path, vectors, max_rank=4)
    message = r"'dem:chat=0.3\+maths=0.4' at rank 4 has a relative error of 0\.\d+, and this server allows 0.05"
    with pytest.raises(AdapterError, match=message):
        adapters.find(str(base), "dem:maths=0.4+chat=0.3")
    assert not list((tmp_path / "made").iterdir())
    assert adapters.find(str(base), "dem:chat=0.3") is not None  # of rank 2: the server goes on


def test_a_dense_vector_is_refused_by_its_error(zoo: Zoo, base: Path, tmp_path: Path) -> None:
    adapters = adapters_of(tmp_path, {"full": str(zoo.vector("llama-tied", "float32", "dense"))})
    with pytest.raises(AdapterError, match="has a relative error of"):
        adapters.find(str(base), "dem:full=1")


@pytest.mark.parametrize("name", ["dem:recipe", "me/my-dem"])
def test_a_recipe_is_one_adapter(base: Path, vectors: dict[str, str], tmp_path: Path, name: str) -> None:
    mix = {vectors["maths"]: 0.7, vectors["chat"]: 0.2}
    open_base_and_vectors(VectorSource(str(base)), mix).recipe.save_pretrained(tmp_path / "dem")
    recipes = {name.removeprefix("dem:"): str(tmp_path / "dem")}
    folder = MixAdapters(Permitted(recipes=recipes), tmp_path / "made").find(str(base), name)
    assert folder is not None
    expected = exact(base, mix)
    for key, delta in read_as("vllm", folder, base).items():
        torch.testing.assert_close(delta, expected[key], rtol=1e-5, atol=1e-7)


def test_a_recipe_for_another_base_is_refused(
    zoo: Zoo, base: Path, vectors: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_base_and_vectors(VectorSource(str(base)), {vectors["chat"]: 1.0}).recipe.save_pretrained(tmp_path / "dem")
    other = zoo.models("llama-tied", "bfloat16").base
    adapters = MixAdapters(Permitted(recipes={"mine": str(tmp_path / "dem")}), tmp_path / "made")
    with pytest.raises(ConfigError, match="'recipe mine' cannot be made here. The reason is in the server's log"):
        adapters.find(str(other), "mine")
    assert f"The server has the config and the tokenizer of '{other}', and the recipe" in caplog.text


def test_the_sender_of_a_request_sees_no_path(
    base: Path, vectors: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails inside is told to the server's owner alone, and later requests are answered."""
    adapters = adapters_of(tmp_path, {**vectors, "gone": str(tmp_path / "secret")})
    with pytest.raises(ConfigError) as caught:
        adapters.find(str(base), "dem:gone=1")
    assert str(tmp_path) not in str(caught.value) and "secret" not in str(caught.value)
    assert "secret" in caplog.text
    assert adapters.find(str(base), "dem:chat=1") is not None


@pytest.mark.parametrize("name", ["org/base", "chat", "maths=0.4", "DEM:maths=1", ""])
def test_other_names_are_left_to_others(base: Path, vectors: dict[str, str], tmp_path: Path, name: str) -> None:
    assert adapters_of(tmp_path, vectors).find(str(base), name) is None


def test_a_path_is_never_opened(base: Path, vectors: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not NAME=COEFFICIENT"):
        adapters_of(tmp_path, vectors).find(str(base), f"dem:{vectors['maths']}=1")
    assert not (tmp_path / "made").exists()
