"""Input statistics from the passes of a search: the same as from passes of their own, whatever asked for them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel
from dem_hub.evaluation.windows import Window
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.measure.own_inputs import OwnInputs
from dem_hub.transformations import gather_statistics
from tests.support.tiny_models import Zoo

FAMILIES = ["llama-tied", "gpt2", "qwen2-moe"]


def rows_of(seed: int) -> list[list[int]]:
    """Return rows of several lengths, so that batches have padding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 60, (5 + row,), generator=generator).tolist() for row in range(6)]


DATA = {"maths": rows_of(0), "chat": rows_of(1)}


def windows_of(rows: list[list[int]]) -> list[Window]:
    return [Window(tuple(row), tuple(row), number) for number, row in enumerate(rows)]


def make(base: Path, vectors: list[str], cache: MeasurementCache | None = None, **options: Any) -> LossEvaluator:
    """Return an evaluator that gathers statistics of the first vector on "maths", and of the second on "chat"."""
    model = DEMModel.from_pretrained(base, vectors=dict.fromkeys(vectors, 0.0), dtype="float32")
    data = {name: windows_of(rows) for name, rows in DATA.items()}
    return LossEvaluator(model, data, cache or MeasurementCache(), own_inputs=OwnInputs(model, tuple(DATA)), **options)


def vectors_of(zoo: Zoo, family: str) -> list[str]:
    return [str(zoo.vector(family)), str(zoo.vector(family, kind="lowrank"))]


def assert_same(found: list[InputStatistics], expected: list[InputStatistics]) -> None:
    """Compare bits."""
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.data, one.vector) == (other.tokens, other.data, other.vector)
        assert [item.keys for item in one.inputs] == [item.keys for item in other.inputs]
        for mine, theirs in zip(one.inputs, other.inputs, strict=True):
            for part in ("vectors", "values", "rest"):
                assert torch.equal(getattr(mine.moments, part), getattr(theirs.moments, part)), mine.name


@pytest.fixture(scope="module", params=FAMILIES)
def expected(request: pytest.FixtureRequest, zoo: Zoo) -> tuple[str, list[InputStatistics]]:
    """The statistics from passes for them alone."""
    family = request.param
    data = dict(zip(vectors_of(zoo, family), DATA.values(), strict=True))
    return family, list(gather_statistics(zoo.models(family).base, data).values())


@pytest.mark.parametrize("asked_by", ["the table", "losses", "nothing", "a cache of losses"])
def test_statistics_are_those_of_passes_of_their_own(
    zoo: Zoo, expected: tuple[str, list[InputStatistics]], asked_by: str
) -> None:
    family, statistics = expected
    base, vectors = zoo.models(family).base, vectors_of(zoo, family)
    evaluator = make(base, vectors)
    paid = 0.0
    if asked_by == "the table":
        evaluator.keep_table()
        paid = 3
    elif asked_by == "losses":
        evaluator.losses((1.0, 0.0))
        evaluator.losses((0.0, 1.0))
        paid = 2
    elif asked_by == "a cache of losses":
        earlier = make(base, vectors)
        earlier.keep_table()
        evaluator = make(base, vectors, MeasurementCache(known=earlier.cache))
        evaluator.keep_table()
        assert evaluator.num_forward == 0
    assert_same(evaluator.own_statistics(), statistics)
    assert evaluator.num_forward == (paid or 1)  # each vector over its own data alone, unless that was run before
    evaluator.own_statistics()
    assert evaluator.num_forward == (paid or 1)


def test_a_point_of_groups_is_no_vector_alone(zoo: Zoo) -> None:
    """Its first number is one of a group."""
    evaluator = make(zoo.models("llama-tied").base, vectors_of(zoo, "llama-tied"))
    finer = evaluator.at(Coordinates(evaluator.model, (("mlp", "rest"), ())))
    finer.losses((1.0, 0.0, 0.0))
    assert evaluator.own_inputs is not None
    assert not evaluator.own_inputs.has(0)


def test_losses_are_the_same_with_and_without(zoo: Zoo) -> None:
    base, vectors = zoo.models("qwen2-moe").base, vectors_of(zoo, "qwen2-moe")
    with_statistics = make(base, vectors)
    with_statistics.keep_table()
    plain = make(base, vectors)
    plain.own_inputs = None
    plain.keep_table()
    for point in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        # Experts are multiplied one by one meanwhile, in another order than at once.
        assert with_statistics.losses(point) == pytest.approx(plain.losses(point), rel=1e-6)


def test_sequence_to_sequence_runs_window_by_window(tmp_path: Path) -> None:
    """The encoder's and the decoder's padding are not told apart by their shapes."""
    import transformers as t

    from dem_hub import DistributionVector

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    torch.manual_seed(0)
    model = t.T5ForConditionalGeneration(t.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "full")
    vector = str(tmp_path / "maths")
    DistributionVector.extract(tmp_path / "base", tmp_path / "full", codec="dense").save_pretrained(vector)
    rows = [{"input_ids": row, "labels": row[::-1][:3]} for row in DATA["maths"]]
    expected = gather_statistics(tmp_path / "base", {vector: rows})
    loaded = DEMModel.from_pretrained(tmp_path / "base", vectors={vector: 0.0}, dtype="float32")
    windows = [Window(tuple(row["input_ids"]), tuple(row["labels"]), number) for number, row in enumerate(rows)]
    evaluator = LossEvaluator(
        loaded, {"maths": windows}, MeasurementCache(), batch_size=4, own_inputs=OwnInputs(loaded, ["maths"])
    )
    evaluator.keep_table()
    assert_same(evaluator.own_statistics(), list(expected.values()))
