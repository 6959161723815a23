"""RegMean in a search: made from the search's own passes, kept where it is better, and a recipe like any other then."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import LlamaForCausalLM

from dem_hub import DEMConfig, DEMModel, DistributionVector, SearchResult, regmean, search_coefficients
from dem_hub.errors import CoefficientError, ConfigError
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.search import Grid
from dem_hub.search.regmean import REGMEAN, RegMeanOutcome
from dem_hub.search.search import own_distributions
from tests.fake_hub.server import Hub
from tests.support.counting_models import Counters
from tests.support.fresh_losses import fresh
from tests.support.tiny_models import Zoo, load_tensors, reshard


def outcome_of(result: SearchResult) -> RegMeanOutcome:
    assert result.regmean is not None
    return result.regmean


def search_of(models: Counters, **options: Any) -> SearchResult:
    return search_coefficients(models.base, list(models.vectors.values()), models.data, **options)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The tokens of each forward pass of a Llama, without padding."""
    passes: list[int] = []
    forward = LlamaForCausalLM.forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(int(kwargs["attention_mask"].sum()))
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(LlamaForCausalLM, "forward", count)
        yield passes


def tokens_of(models: Counters) -> int:
    return sum(len(row) for rows in models.data.values() for row in rows)


@pytest.fixture(scope="module")
def won(crossed: Counters) -> SearchResult:
    return search_of(crossed, regmean=True)


@pytest.fixture(scope="module")
def lost(counters: Counters) -> SearchResult:
    return search_of(counters, regmean=True)


@pytest.fixture
def saved(won: SearchResult, tmp_path: Path) -> Path:
    won.save_pretrained(tmp_path / "found")
    return tmp_path / "found"


# What is kept


def test_regmean_is_kept_where_it_is_better(won: SearchResult, crossed: Counters) -> None:
    outcome = outcome_of(won)
    assert won.kept_regmean is outcome
    assert outcome.contender.difference < -outcome.contender.error < 0
    assert list(won.coefficients.values()) == [1.0, 1.0]
    assert won.held_out_loss == won.loss == outcome.contender.value < outcome.plain_loss
    assert won.baselines["plain"] == outcome.plain_loss
    assert won.held_out_loss < min(won.baselines.values())
    assert outcome.own == dict(zip(crossed.vectors.values(), crossed.vectors, strict=True))
    assert won.notes[-1] == outcome.note()
    gain = -outcome.contender.difference
    assert f"gain {gain:.4f} nats over the plain DEM on held-out data (standard error " in won.notes[-1]
    assert won.notes[-1].endswith(f"; {outcome.contender.value:.4f} and {outcome.plain_loss:.4f}): kept.")
    assert won.notes[-1] in str(won)
    assert won.config.search is not None
    assert won.config.search["regmean"] == {"kept": True, "gain": gain, "error": outcome.contender.error}
    assert won.acceptance is not None
    assert won.config.search["base_losses"] == won.acceptance.contenders["base"].losses
    assert won.config.search["losses"] == outcome.contender.losses


def test_it_is_better_on_test_data_too(won: SearchResult, crossed: Counters) -> None:
    assert sum(fresh(crossed, won.coefficients, crossed.test).values()) < sum(
        fresh(crossed, won.plain.coefficients, crossed.test).values()
    )


def test_the_plain_dem_is_kept_where_regmean_is_not_better(lost: SearchResult, result: SearchResult) -> None:
    """All else is as without RegMean."""
    outcome = outcome_of(lost)
    assert lost.kept_regmean is None
    assert outcome.contender.difference > 0
    assert lost.notes[-1].endswith(" standard errors (5% by chance, for 1 rival).")
    assert (lost.coefficients, lost.loss, lost.held_out_loss) == (
        result.coefficients,
        result.loss,
        result.held_out_loss,
    )
    assert (lost.trials, lost.baselines, lost.acceptance) == (result.trials, result.baselines, result.acceptance)
    assert lost.plain == lost.config
    assert lost.config.search is not None
    assert lost.config.search["regmean"]["kept"] is False


def test_the_losses_are_those_of_the_vectors(won: SearchResult, crossed: Counters) -> None:
    """On held-out data of one's own: those of a fresh load of the temporary vectors."""
    found = search_of(crossed, held_out=crossed.test, regmean=True)
    outcome = outcome_of(found)
    assert outcome.contender.losses == pytest.approx(fresh(crossed, found.coefficients, crossed.test), rel=1e-6)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "qwen2-moe"])
def test_the_vectors_are_those_of_regmean_on_the_search_data(zoo: Zoo, family: str) -> None:
    """Of a dense vector and a LoRA, with experts or without: the same bytes."""
    base = zoo.models(family).base
    vectors = [str(zoo.vector(family)), str(zoo.vector(family, kind="lowrank"))]
    if family != "qwen2-moe":
        vectors[1] = str(zoo.adapter(family))
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randint(4, 60, (6, 12), generator=generator).tolist() for name in ("maths", "chat")}
    own = dict(zip(vectors, data, strict=True))
    found = search_coefficients(base, vectors, data, held_out=data, regmean=own)
    recipe = outcome_of(found).recipe
    assert recipe is not None
    expected = regmean(base, dict(zip(vectors, data.values(), strict=True)))
    assert [record.sha256 for record in recipe.vectors] == [vector.sha256 for vector in expected.values()]
    config = DistributionVector.from_pretrained(recipe.vectors[1].source).config
    assert config is not None
    if family != "qwen2-moe":
        assert {record.codec for record in config.tensors.values()} == {"lowrank"}  # it stays a LoRA


# What it costs


@pytest.mark.parametrize(("method", "more"), [("gauss_newton", 0), ("quadratic", 0), ("uniform", 1)])
def test_at_most_one_forward_pass_more(
    crossed: Counters, monkeypatch: pytest.MonkeyPatch, method: str, more: int
) -> None:
    """One over the held-out data. A method that does not run each vector alone takes one over the search data, too."""
    with counted(monkeypatch) as passes:
        plain = search_of(crossed, method=method, max_forward=8)
        without = sum(passes)
        passes.clear()
        found = search_of(crossed, method=method, max_forward=8, regmean=True)
    assert found.trials == plain.trials
    assert found.num_forward == plain.num_forward + more
    assert found.num_forward_held_out == plain.num_forward_held_out + 1
    assert sum(passes) - without == (1 / 4 + 3 / 4 * more) * tokens_of(crossed)


def test_losses_that_are_known_are_no_statistics(won: SearchResult, crossed: Counters, tmp_path: Path) -> None:
    """From a cache, each vector runs over its own distribution again: the same comes out."""
    plain = search_of(crossed, cache=tmp_path)
    again = search_of(crossed, cache=tmp_path, regmean=True)
    assert again.trials == plain.trials == won.trials
    assert again.num_forward == plain.num_forward + 1
    assert outcome_of(again).acceptance == outcome_of(won).acceptance


def test_a_repeated_search_makes_the_same_vectors(
    won: SearchResult, crossed: Counters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes are the same, so that their losses are known, and the statistics alone are gathered again."""
    search_of(crossed, cache=tmp_path, regmean=True)
    with counted(monkeypatch) as passes:
        again = search_of(crossed, cache=tmp_path, regmean=True)
    assert outcome_of(again).acceptance == outcome_of(won).acceptance
    assert sum(passes) == tokens_of(crossed) * 3 / 4


# Going on from it


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_search_goes_on_from_it(won: SearchResult, crossed: Counters, saved: Path, is_saved: bool) -> None:
    """From the plain DEM that it found, and what it measured; the statistics are gathered again."""
    earlier = saved if is_saved else won
    again = search_of(crossed, resume_from=earlier, regmean=True)
    assert again.acceptance is not None
    assert again.acceptance.contenders["before"].coefficients == won.best.coefficients
    assert 0 <= again.num_forward - search_of(crossed, resume_from=earlier).num_forward <= 1
    assert outcome_of(again).contender.losses == outcome_of(won).contender.losses
    # Its losses are known where the vectors are the same bytes.
    assert outcome_of(again).num_forward_held_out == 0
    assert again.kept_regmean is not None


def test_other_objectives_are_solved_for_the_plain_dem(won: SearchResult, crossed: Counters) -> None:
    reweighted = won.reweight(weights={"first": 2.0})
    assert list(reweighted.config.coefficients) == list(crossed.vectors.values())
    assert list(won.mixing_ratio) == list(crossed.vectors.values())


# On disk


def test_saved_and_read_again(won: SearchResult, saved: Path, crossed: Counters) -> None:
    """The recipe finds its vectors beside it, also after a move, and after both the search and its result are gone."""
    again = SearchResult.from_pretrained(saved)
    assert list(again.coefficients) == [f"{saved}//vectors/first", f"{saved}//vectors/second"]
    assert again.regmean == won.regmean
    assert (again.loss, again.held_out_loss, again.baselines) == (won.loss, won.held_out_loss, won.baselines)
    assert again.plain.coefficients == won.plain.coefficients
    moved = saved.rename(saved.parent / "moved")
    model = DEMModel.from_pretrained(moved, dtype="float32")
    assert {name: score.loss for name, score in evaluate(model, crossed.test).items()} == pytest.approx(
        fresh(crossed, won.coefficients, crossed.test), rel=1e-6
    )
    assert list(SearchResult.from_pretrained(moved).plain.coefficients) == list(crossed.vectors.values())


def test_saved_again(saved: Path) -> None:
    """In its own place, and in another, each time with its vectors."""
    again = SearchResult.from_pretrained(saved)
    before = again.config
    again.save_pretrained(saved, exist_ok=True)
    assert SearchResult.from_pretrained(saved).config == before
    copy = saved.parent / "copy"
    again.save_pretrained(copy)
    shutil.rmtree(saved)
    assert DEMModel.from_pretrained(copy).dem.coefficients == {
        f"{copy}//vectors/first": 1.0,
        f"{copy}//vectors/second": 1.0,
    }


def test_without_regmean_the_file_has_no_key_of_it(result: SearchResult, lost: SearchResult, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path / "plain")
    assert "regmean" not in json.loads((tmp_path / "plain" / "search_result.json").read_text())
    lost.save_pretrained(tmp_path / "lost")
    assert not (tmp_path / "lost" / "vectors").exists()
    assert SearchResult.from_pretrained(tmp_path / "lost").regmean == lost.regmean


def test_temporary_vectors_go_with_the_result(crossed: Counters) -> None:
    found = search_of(crossed, method="uniform", max_forward=2, regmean=True)
    folders = [Path(record.repo_id) for record in outcome_of(found).recipe.vectors]  # type: ignore[union-attr]
    assert all(folder.is_dir() for folder in folders)
    del found
    assert not any(folder.is_dir() for folder in folders)


def test_pushed(won: SearchResult, saved: Path, crossed: Counters, hub: Hub) -> None:
    """With its vectors, as any recipe of vectors of this machine; without them the error says how."""
    api = HfApi()
    api.create_repo("ann/base")
    api.upload_folder(repo_id="ann/base", folder_path=crossed.base)
    for number, config in enumerate((won.config, DEMConfig.from_pretrained(saved))):
        with pytest.raises(ConfigError, match=r"folders of this machine(.|\n)*Push them first.*include_vectors=True"):
            config.push_to_hub(f"ann/dem-{number}", base_model="ann/base")
        config.push_to_hub(f"ann/dem-{number}", base_model="ann/base", include_vectors=True)
        loaded = DEMModel.from_pretrained(f"ann/dem-{number}", dtype="float32")
        assert list(loaded.dem.coefficients) == [f"ann/dem-{number}//vectors/{name}" for name in crossed.vectors]
        assert {name: score.loss for name, score in evaluate(loaded, crossed.test).items()} == pytest.approx(
            fresh(crossed, won.coefficients, crossed.test), rel=1e-6
        )


# What goes with it, and what does not


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "worst"},
        {"objective": "improvement", "weights": {"first": 2.0}},
        {"dtype": "bfloat16"},
        {"rounding": "nearest", "dtype": "bfloat16"},
        {"max_sum": 2.0},
        {"batch_size": 3},
    ],
    ids=str,
)
def test_it_goes_with(crossed: Counters, options: dict[str, Any]) -> None:
    """The value is the objective of the losses."""
    found = search_of(crossed, regmean=True, max_forward=4, **options)
    outcome = outcome_of(found)
    base = None
    if found.objective.kind == "improvement":
        assert found.acceptance is not None
        base = dict(found.acceptance.contenders["base"].losses)
    assert outcome.contender.value == pytest.approx(found.objective.value(outcome.contender.losses, base))
    assert outcome.is_kept == (outcome.contender.difference < -outcome.acceptance.errors * outcome.contender.error)
    assert outcome.acceptance.errors > 1.6449  # the quantile of one rival, of few documents
    assert found.config.dtype is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "groups": ({"granularity": "group"}, "granularity='group'"),
    "nothing held out": ({"held_out": 0}, "held_out=0, and RegMean is kept only where held-out data says so"),
    "bounds": ({"bounds": (0.0, 0.9)}, "RegMean's vectors have the coefficient 1 each, which must be allowed"),
    "a vector that is left out": ({"bounds": [(0, 1.5), (0, 0)]}, "bounds from \\[0.0, 0.0\\] to \\[1.5, 0.0\\]"),
    "sum": ({"max_sum": 1.5}, "max_sum=1.5"),
    "one vector": ({"vectors": ["me/maths"]}, "one vector alone"),
    "score": ({"score": float, "eval_datasets": None}, "a score, which has no data to run each vector on"),
    "no mapping": ({"regmean": "maths"}, "regmean is 'maths'; it must be True, False, or distributions by vector"),
    "unknown": ({"vectors": ["me/maths", "me/other"]}, "which distribution 'me/other' was trained on is not known"),
    "two of one name": ({"vectors": ["me/maths", "you/maths"]}, "'me/maths' was trained on(.|\\n)*'you/maths' was"),
    "no such vector": ({"regmean": {"me/code": "chat"}}, "No vector of this search is called 'me/code'"),
    "no such data": ({"regmean": {"me/chat": "code"}}, "'me/chat' is given the distribution 'code', which has no data"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "vectors": ["me/maths", "me/chat"],
        "eval_datasets": {"maths": [[1, 2]], "chat": [[1, 2]]},
        "regmean": True,
        **changes,
    }
    with pytest.raises(ConfigError, match=message):
        search_coefficients("org/base", **arguments)


def test_the_way_out_is_named() -> None:
    with pytest.raises(ConfigError, match=r"regmean=\{'me/a': 'chat', \.\.\.\}, on the command line --own-data"):
        own_distributions(["me/a", "me/chat"], {"chat": []}, True)


@pytest.mark.parametrize(
    ("vectors", "data", "regmean", "expected"),
    [
        (["me/maths", "runs//chat"], ["chat", "maths"], True, ("maths", "chat")),
        (["me/maths@v2", "me/b"], ["maths", "chat"], {"me/b": "chat"}, ("maths", "chat")),
        (["me/a", "me/b"], ["text"], {"me/a": "text", "me/b": "text"}, ("text", "text")),
        (["me/maths", "me/chat"], ["maths", "chat"], {"me/chat": "maths"}, ("maths", "maths")),
        (["me/gsm8k", "me/b"], ["openai/gsm8k", "b"], {}, ("openai/gsm8k", "b")),
    ],
)
def test_whose_data_is_whose(vectors: list[str], data: list[str], regmean: Any, expected: tuple[str, ...]) -> None:
    assert own_distributions(vectors, {name: [] for name in data}, regmean) == expected


def test_a_vector_that_diverged(crossed: Counters, tmp_path: Path) -> None:
    """A grid does not need it alone, and RegMean does."""
    base = load_tensors(crossed.base)
    full = load_tensors(crossed.base.parent / "full-first")
    far = {name: base[name] + 1e30 * (full[name] - base[name]) for name in base}
    reshard(crossed.base, tmp_path / "full", change=lambda tensors: tensors.update(far))
    DistributionVector.extract(crossed.base, tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "first"
    )
    vectors = [str(tmp_path / "first"), crossed.vectors["second"]]
    with pytest.raises(
        CoefficientError, match="with 1.0 of '.*first' read on 'first' is not finite. Leave that vector"
    ):
        search_coefficients(crossed.base, vectors, crossed.data, method=Grid((0.0,)), max_forward=1, regmean=True)


def test_no_held_out_document_of_a_distribution(crossed: Counters) -> None:
    """It is said, as it is of the coefficients."""
    data = {"first": crossed.data["first"], "second": crossed.data["second"][:1]}
    found = search_coefficients(
        crossed.base, list(crossed.vectors.values()), data, method=Grid((0.0, 1.0)), max_forward=2, regmean=True
    )
    assert found.regmean is None
    assert any(note.startswith("RegMean vectors were not made") for note in found.notes)


def test_a_folder_is_named_by_any_path(crossed: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crossed.base.parent)
    own = own_distributions(
        ["first", crossed.vectors["second"]], {"a": [], "b": []}, {crossed.vectors["first"]: "a", "second": "b"}
    )
    assert own == ("a", "b")


def test_labels_in_the_file(saved: Path) -> None:
    record = json.loads((saved / "search_result.json").read_text())["regmean"]
    assert list(record["acceptance"]["contenders"]) == ["found", REGMEAN]
