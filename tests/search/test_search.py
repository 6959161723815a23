"""The search as a whole: what it finds, what it costs, and when its answer is accepted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dem_hub import DEMConfig, DEMModel, DistributionVector, SearchResult, VectorSource, search_coefficients
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.search import Grid, Trial
from dem_hub.search.measure.coordinates import Coordinates
from tests.support.counting_models import STEPS, Counters, counting
from tests.support.fresh_losses import fresh, mean
from tests.support.tiny_models import load_tensors, reshard


def test_the_result(result: SearchResult, counters: Counters) -> None:
    assert result.method == "gauss_newton"
    assert list(result.coefficients) == list(counters.vectors.values())
    assert tuple(result.coefficients.values()) == result.best.coefficients
    assert result.num_forward <= 12
    assert (
        1 + 3 + 1 + 1 + 1 <= result.num_forward_held_out <= 1 + 3 + 1 + 6 + 1
    )  # base, three alone, 1/N, common and its line, found
    assert result.loss == result.best.value == min(trial.value for trial in result.trials)
    assert list(result.baselines) == ["base", *(f"{name} alone" for name in result.coefficients), "1/N", "common"]
    # A recipe may be shared, and its vectors' folders are nobody's business.
    assert result.config.search is not None
    kept = list(result.config.search["held_out"]["baselines"])
    assert kept == ["base", *(f"{Path(name).name} alone" for name in result.coefficients), "1/N", "common"]
    assert result.held_out_loss is not None
    assert result.held_out_loss < min(result.baselines.values())
    assert sum(result.mixing_ratio.values()) == pytest.approx(1)
    assert result.best in result.pareto


def test_better_on_test_data_too(result: SearchResult, counters: Counters) -> None:
    names = list(result.coefficients)
    found = mean(fresh(counters, result.coefficients, counters.test))
    assert result.acceptance is not None
    for label in ("base", "1/N", "common"):
        point = dict(zip(names, result.acceptance.contenders[label].coefficients, strict=True))
        assert found < mean(fresh(counters, point, counters.test))


def test_losses_are_those_of_a_fresh_load(unchecked: SearchResult, counters: Counters) -> None:
    for trial in unchecked.trials:
        assert trial.losses == pytest.approx(
            fresh(counters, dict(zip(unchecked.coefficients, trial.coefficients, strict=True)), counters.data), rel=1e-6
        )


def test_search_and_held_out_share_no_document(result: SearchResult) -> None:
    assert result.acceptance is not None
    assert {name: result.tokens[name] + result.acceptance.tokens[name] for name in STEPS} == dict.fromkeys(
        STEPS, 24 * 19
    )
    assert result.tokens["up"] == 18 * 19


def test_recipe_loads(result: SearchResult, tmp_path: Path) -> None:
    result.config.save_pretrained(tmp_path)
    recipe = DEMConfig.from_pretrained(tmp_path)
    assert recipe == result.config
    assert recipe.dtype is None
    assert recipe.search is not None
    assert (recipe.search["method"], recipe.search["objective"], recipe.search["tokens"]) == (
        "gauss_newton",
        "mean",
        dict(result.tokens),
    )
    assert recipe.search["losses"] == dict(result.best.losses)
    assert result.table is not None
    assert recipe.search["base_losses"] == {name: cell.loss for name, cell in result.table.cells["base"].items()}
    assert DEMModel.from_pretrained(tmp_path).dem.coefficients == result.coefficients


@pytest.mark.parametrize("method", ["gauss_newton", "quadratic", "gradient"])
def test_two_vectors_that_are_the_same(counters: Counters, tmp_path: Path, method: str) -> None:
    """The singular case: they share what one of them would have had, and it is said."""
    twin = tmp_path / "up-twin"
    twin.mkdir()
    for path in Path(counters.vectors["up"]).iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    data = {"up": counters.data["up"]}
    both = search_coefficients(counters.base, [counters.vectors["up"], str(twin)], data, held_out=0, method=method)
    alone = search_coefficients(counters.base, [counters.vectors["up"]], data, held_out=0, bounds=(0, 3))
    first, second = both.coefficients.values()
    assert first == pytest.approx(second, abs=1e-3 if method != "quadratic" else 0.5)
    assert both.loss == pytest.approx(alone.loss, abs=5e-3)
    assert any("have cosine 1.00: near-duplicates" in note for note in both.notes)


@pytest.mark.parametrize("method", ["gauss_newton", "quadratic", "gradient"])
@pytest.mark.parametrize("low", [0.0, -0.5])
def test_a_harmful_vector(counters: Counters, tmp_path: Path, low: float, method: str) -> None:
    """The opposite of a good vector: its coefficient goes to the lower bound, 0 or negative."""
    base, up = (load_tensors(folder) for folder in (counters.base, counters.base.parent / "full-up"))
    opposite = {name: 2 * base[name] - up[name] for name in base}
    reshard(counters.base, tmp_path / "full", change=lambda tensors: tensors.update(opposite))
    DistributionVector.extract(counters.base, tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "bad"
    )
    vectors = [counters.vectors["up"], str(tmp_path / "bad")]
    found = search_coefficients(counters.base, vectors, {"up": counting(1, 60, 4)}, bounds=(low, 1.0), method=method)
    assert found.coefficients[vectors[1]] == pytest.approx(low, abs=1e-6)
    assert found.coefficients[vectors[0]] == pytest.approx(1.0, abs=1e-6)
    assert any("bad' is no better than the base on its own distribution 'up'" in note for note in found.notes)
    assert found.acceptance is not None
    assert "common" in found.acceptance.contenders


def test_a_wrong_answer_is_not_accepted(search: Callable[..., SearchResult], counters: Counters) -> None:
    """Validation text of another kind than the held-out one: the best of the obvious is returned, and said."""
    found = search("up", "down", data={"text": counters.data["down"]}, held_out={"text": counters.data["up"]})
    assert found.acceptance is not None
    assert not found.acceptance.is_found
    assert found.held_out_loss == min(one.value for one in found.acceptance.contenders.values())
    assert any("is better than what was found" in note for note in found.notes)
    assert tuple(found.coefficients.values()) == found.acceptance.contenders[found.acceptance.chosen].coefficients


@pytest.fixture(scope="module")
def line(counters: Counters) -> list[float]:
    """The loss of two vectors on the test text, by their common coefficient, from 0 to 1.5 in steps of 0.1."""
    vectors = [counters.vectors[name] for name in ("up", "down")]
    return [mean(fresh(counters, dict.fromkeys(vectors, level / 10), counters.test)) for level in range(16)]


@pytest.mark.parametrize("method", ["gauss_newton", "gradient", "grid", "optuna"])
def test_the_common_coefficient_is_a_rival_of_every_method(
    search: Callable[..., SearchResult], counters: Counters, line: list[float], method: str
) -> None:
    """As good as the best of a fine line, or better."""
    common = search("up", "down", method=method, max_forward=9, held_out=counters.test).baselines["common"]
    assert min(line) - 0.01 < common <= min(line) + 5e-4


def test_a_vector_that_is_much_longer(counters: Counters, tmp_path: Path) -> None:
    base, up = (load_tensors(folder) for folder in (counters.base, counters.base.parent / "full-up"))
    longer = {name: base[name] + 8 * (up[name] - base[name]) for name in base}
    reshard(counters.base, tmp_path / "full", change=lambda tensors: tensors.update(longer))
    DistributionVector.extract(counters.base, tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "long"
    )
    vectors = [counters.vectors["down"], counters.vectors["threes"], str(tmp_path / "long")]
    found = search_coefficients(
        counters.base, vectors, {"up": counters.data["up"]}, method=Grid((0.0, 0.1)), max_forward=2
    )
    assert [note for note in found.notes if "has norm" in note and f"'{tmp_path / 'long'}'" in note]


def test_the_fewer_the_tokens_the_more_alike_the_coefficients(counters: Counters) -> None:
    vectors = [counters.vectors[name] for name in ("up", "down")]

    def apart(rows: int) -> float:
        data = {"up": counters.data["up"][:rows]}
        found = search_coefficients(counters.base, vectors, data, held_out=0, bounds=(-1.0, 1.5))
        first, second = found.coefficients.values()
        return abs(first - second)

    assert apart(2) < apart(24)


def test_packing_shares_windows_and_no_documents(search: Callable[..., SearchResult], counters: Counters) -> None:
    """Documents of 20 tokens and their ends, in windows of 64: 18 to search on, 6 held out."""
    found = search("up", data={"up": counters.data["up"]}, packing=True, max_length=64)
    assert found.acceptance is not None
    assert found.tokens == {"up": 18 * 21 - 6}  # of each window, all but the first
    assert found.acceptance.tokens == {"up": 6 * 21 - 2}


def test_nothing_held_out(unchecked: SearchResult) -> None:
    assert (unchecked.acceptance, unchecked.num_forward_held_out) == (None, 0.0)
    assert (
        "Not compared with baselines on held-out data: nothing was held out. What was found is returned as it is."
        in unchecked.notes
    )


def test_few_tokens_are_warned_about(result: SearchResult, search: Callable[..., SearchResult]) -> None:
    assert any("tokens are few for 3 coefficients" in note for note in result.notes)
    many = search("up", data={"up": counting(1, 600, 4)}, method="uniform", max_forward=2)
    assert not any("are few" in note for note in many.notes)


def test_batches_do_not_matter(search: Callable[..., SearchResult], result: SearchResult) -> None:
    assert search(batch_size=3).best.coefficients == pytest.approx(result.best.coefficients, abs=1e-4)


def test_callback_sees_each_trial(search: Callable[..., SearchResult]) -> None:
    seen: list[tuple[int, Trial]] = []
    found = search(
        method=Grid((0.0, 1.0)), max_forward=3, held_out=0, callback=lambda number, trial: seen.append((number, trial))
    )
    assert seen == list(enumerate(found.trials))


def test_texts_are_tokenized_with_the_base_tokenizer(counters: Counters) -> None:
    base = VectorSource(str(counters.base))
    found = search_coefficients(base, [counters.vectors["up"]], {"words": ["w1 w2 w3", "w4 w5 w6 w7"]}, held_out=0)
    assert found.tokens == {"words": 5}


def test_searching_in_bfloat16(counters: Counters) -> None:
    found = search_coefficients(
        counters.base, list(counters.vectors.values()), counters.data, dtype="bfloat16", held_out=0
    )
    model = DEMModel.from_pretrained(counters.base, vectors=found.coefficients, dtype="bfloat16")
    assert found.best.losses == pytest.approx({k: s.loss for k, s in evaluate(model, counters.data).items()}, rel=1e-6)
    assert found.loss < min(trial.value for trial in found.trials[:4])


def test_sequence_to_sequence(tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    model = t.T5ForConditionalGeneration(t.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    model.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": row, "labels": row[::-1]} for row in torch.randint(1, 32, (32, 6), generator=generator).tolist()
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        model(**{name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "full")
    DistributionVector.extract(tmp_path / "base", tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "reverse"
    )
    found = search_coefficients(tmp_path / "base", [str(tmp_path / "reverse")], {"reverse": rows})
    assert found.coefficients[str(tmp_path / "reverse")] > 0.5
    assert found.tokens == {"reverse": 24 * 6}
    assert found.loss < found.trials[0].value


def test_a_distribution_shorter_than_a_window(search: Callable[..., SearchResult], counters: Counters) -> None:
    """It is scored as it is; one window cannot be held out, which is said."""
    found = search("up", data={"tiny": [[1, 2, 3]]})
    assert found.tokens == {"tiny": 2}
    assert any("there is none of 'tiny' (2 tokens to search on)" in note for note in found.notes)
    assert "(one window)" in str(found)


@pytest.mark.parametrize("bounds", [(0.0, 1.5), (0.0, 0.8)])
def test_held_out_data_are_run_while_a_vector_alone_is_merged(
    search: Callable[..., SearchResult], bounds: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each vector alone is merged once, for the search's data and the held-out ones, and both are as they were."""
    merged = []
    move_to = Coordinates.move_to

    def remember(self: Coordinates, point: tuple[float, ...]) -> None:
        if self.model.dem.coefficients != self.coefficients(point):
            merged.append(tuple(point))
        move_to(self, point)

    monkeypatch.setattr(Coordinates, "move_to", remember)
    found = search("up", "down", bounds=bounds)
    assert [merged.count(point) for point in ((1.0, 0.0), (0.0, 1.0))] == [1, 1]
    assert found.acceptance is not None
    # Beyond the bounds, a vector alone is no rival, and is not run over held-out data.
    rivals = {"up alone", "down alone"} & {short.split("/")[-1] for short in found.acceptance.contenders}
    assert len(rivals) == (2 if bounds[1] >= 1 else 0)
