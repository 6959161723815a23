"""What a plan says is what then happens: bytes that come down, bytes on the disk, and forward passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from dem_hub import DEMModel, SearchResult
from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.planning.bounds import in_flight, in_flight_on_accelerator, loading_bound, streaming_bound
from dem_hub.planning.passes import most_forward, most_forward_held_out
from dem_hub.planning.planner import SERVED_SHARE, Planner
from dem_hub.planning.step import Need, Wishes
from dem_hub.planning.ways_out import with_ways_out
from dem_hub.search.measure.loss_evaluator import LOGIT_BYTES
from dem_hub.search.strategies import STRATEGIES
from tests.support.counting_models import STEPS, Counters
from tests.support.published_repos import BASE, RECIPE, VECTOR, Published
from tests.support.tiny_models import Zoo

LARGE = 1 << 40
WEIGHTS = "*.safetensors"


@pytest.fixture
def planner(zoo: Zoo) -> Planner:
    return planner_of(zoo.models("llama-untied").base, zoo.vector("llama-untied", kind="lowrank"))


def planner_of(base: Path, vector: Path) -> Planner:
    return Planner(
        PlannedModel.of(open_base_and_vectors(VectorSource.parse(base), {str(vector): 0.5}, headers_only=True))
    )


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob(WEIGHTS))


def test_the_download(published: Published) -> None:
    """The plan of a recipe on the Hub downloads no weights, and says how many bytes of them a load downloads."""
    opened = open_recipe(VectorSource(RECIPE), headers_only=True)
    step = Planner(PlannedModel.of(opened)).plan("load", Wishes({"cpu": LARGE}))
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    assert sizes(cache) == 0
    (on_disk,) = (need for need in step.needs if need.is_on_disk)
    DEMModel.from_pretrained(RECIPE)
    assert on_disk.most == sum(blob.resolve().stat().st_size for blob in cache.rglob(WEIGHTS)) > 0

    # What is on this machine is not downloaded again.
    again = open_base_and_vectors(VectorSource(BASE), {VECTOR: 0.5}, headers_only=True)
    assert Planner(PlannedModel.of(again)).facts.downloads == 0


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_disk_of_a_merge(planner: Planner, tmp_path: Path, dtype: Any) -> None:
    step = planner.plan("merge", Wishes({"cpu": LARGE}, dtype=dtype, folder=tmp_path))
    export(planner.written(dtype), tmp_path / "merged")
    in_memory, on_disk = step.needs
    assert on_disk.most == sizes(tmp_path / "merged")
    assert in_memory == Need("cpu", 0, streaming_bound(planner.facts.largest), LARGE)


def test_facts_are_those_of_the_files(planner: Planner, zoo: Zoo) -> None:
    facts = planner.facts
    model = DEMModel.from_pretrained(zoo.models("llama-untied").base, vectors={})
    assert facts.parameters == sum(map(torch.numel, model.parameters()))
    assert facts.largest == 4 * max(map(torch.numel, model.parameters()))
    assert facts.base_bytes == 2 * facts.parameters
    assert facts.vector_bytes == sizes(zoo.vector("llama-untied", kind="lowrank"))


def test_loading_keeps_the_model_and_takes_the_bound_of_the_benchmark(planner: Planner) -> None:
    facts = planner.facts
    (need,) = planner.plan("load", Wishes({"cpu": LARGE})).needs
    assert need.most == loading_bound(need.keeps, facts.largest, facts.vector_bytes)
    assert need.verdict == "fits"


def test_a_load_leaves_room_for_what_is_in_flight(planner: Planner) -> None:
    """What the weights may fill is told as `max_memory`; the rest of a device stays free for the merge."""
    facts = planner.facts
    beside = in_flight_on_accelerator(facts.largest, facts.vector_bytes, 0)
    step = planner.plan("load", Wishes({"0": LARGE, "cpu": LARGE}))
    assert [(need.place, need.most - need.keeps) for need in step.needs] == [("0", beside)]
    limits = f"{{0: {LARGE - beside}, 'cpu': {LARGE - in_flight(facts.largest, facts.vector_bytes)}}}"
    assert step.notes == (f"DEMModel.from_pretrained(..., dtype='bfloat16', device_map='auto', max_memory={limits})",)


@pytest.mark.parametrize("method", ["gauss_newton", "quadratic", "uniform"])
def test_forward_passes(search: Callable[..., SearchResult], method: str) -> None:
    result = search("up", "down", method=method)
    assert result.num_forward <= most_forward(method, 2)
    assert 0 < result.num_forward_held_out <= most_forward_held_out(2)
    if method == "uniform":
        assert result.num_forward >= most_forward(method, 2) - 1  # all points, and a baseline if it is better


@pytest.mark.parametrize("count", [1, 2, 3])
def test_forward_passes_of_several_vectors(search: Callable[..., SearchResult], count: int) -> None:
    """The table, at least one step with its check, and no more than the budget where what was found is returned."""
    result = search(*list(STEPS)[:count])
    table = count + 1
    step = count + 2
    assert result.acceptance is not None
    assert result.acceptance.is_found
    assert table + step <= result.num_forward <= most_forward("auto", count) - 1
    assert result.num_forward_held_out <= most_forward_held_out(count)


def test_the_last_pass_is_for_a_baseline(search: Callable[..., SearchResult], counters: Counters) -> None:
    """Held-out data of another kind take a vector alone, which was no trial."""
    data = {"counting": counters.data["down"]}
    held_out = {"counting": counters.data["up"]}
    result = search("down", "up", data=data, held_out=held_out, method="uniform", max_forward=4)
    assert result.acceptance is not None
    assert not result.acceptance.is_found
    assert result.num_forward == most_forward("uniform", 2, 4) == 5


def test_forward_passes_of_one_vector(search: Callable[..., SearchResult]) -> None:
    result = search("up", max_forward=7)
    assert result.num_forward <= most_forward("auto", 1, 7) == 8
    assert result.num_forward_held_out <= most_forward_held_out(1)


def test_budgets_of_all_methods() -> None:
    """By hand: 12, 60, 25, 5 to the power of 4, 11 and 40, and a baseline if it is better than what was found."""
    assert [most_forward(method, 4) for method in STRATEGIES] == [13, 61, 26, 41, 626, 12]
    assert (most_forward("auto", 4), most_forward("auto", 17)) == (13, 61)


def test_a_search_is_planned_in_float32_with_its_logits(planner: Planner) -> None:
    (on_cpu,) = planner.plan("search", Wishes({"cpu": LARGE})).needs
    assert on_cpu.keeps >= 4 * planner.facts.parameters
    assert on_cpu.most - on_cpu.keeps > LOGIT_BYTES
    on_gpu, beside = planner.plan("search", Wishes({"0": LARGE, "cpu": LARGE})).needs
    assert (on_gpu.keeps, beside) == (on_cpu.keeps, Need("cpu", 0, LOGIT_BYTES, LARGE))


def test_a_search_does_not_offload(planner: Planner) -> None:
    """A GPU that is too small does not send a part of the model to the CPU, because it could not be merged there."""
    step = with_ways_out(planner, "search", Wishes({"0": planner.facts.base_bytes, "cpu": LARGE}))
    assert step.verdict == "does not fit"
    assert "would be on the disk, where weights cannot be merged in place" in step.refused
    assert step.needs[0].keeps >= 4 * planner.facts.parameters
    assert [way.partition(":")[0] for way in step.ways_out] == ["--device-map cpu"]


def test_quantised_weights(planner: Planner) -> None:
    wishes = Wishes({"0": LARGE}, quantize="4bit")
    assert planner.plan("load", wishes).verdict == "fits"
    assert "quantised" in planner.plan("search", wishes).refused
    assert "vLLM quantises" in planner.plan("serve", wishes).refused


def test_each_way_out_fits(planner: Planner) -> None:
    """A model in float32 on a device with room for it in 16 bits, or quantised."""
    beside = in_flight_on_accelerator(planner.facts.largest, planner.facts.vector_bytes, 0)
    memory = {"0": 4 * planner.facts.parameters + beside - 1, "cpu": LARGE}
    step = with_ways_out(planner, "load", Wishes(memory, dtype="float32", device_map="0"))
    assert step.verdict == "may not fit"
    assert [way.partition(":")[0] for way in step.ways_out] == [
        "--dtype bfloat16",
        "--quantize 8bit",
        "--quantize 4bit",
        "--device-map auto",
        "--device-map cpu",
        "2 such GPUs",
        "vectors of a smaller codec, such as lowrank",
        "dem-hub merge first",
    ]


def test_a_server_divides_the_model_and_has_room_for_a_cache(planner: Planner) -> None:
    whole = planner.plan("serve", Wishes({"0": LARGE}))
    half = planner.plan("serve", Wishes({"0": LARGE, "1": LARGE}))
    assert [need.keeps for need in half.needs] == [-(-whole.needs[0].keeps // 2)] * 2
    # 2 layers x 2 heads of keys and values x 8 elements of bfloat16 x (keys and values)
    token = 2 * 2 * 8 * 2 * 2
    tokens = (int(LARGE * SERVED_SHARE) - whole.needs[0].keeps) // token
    assert f"A token takes {token} B of cache: at most {tokens:,} tokens" in whole.notes[1]
    assert (
        "4 attention heads cannot be divided among 3" in planner.plan("serve", Wishes(dict.fromkeys("012", 1))).refused
    )


def test_a_recipe_below_and_a_base_in_four_bits(zoo: Zoo, tmp_path: Path) -> None:
    """All vectors count, and so does what quantizing the base as in training takes on the CPU."""
    base, vector = zoo.models("llama-untied").base, zoo.vector("llama-untied", kind="lowrank")
    DEMModel.from_pretrained(base, vectors={str(vector): 0.5}).dem.save_pretrained(tmp_path / "first")
    adapter = zoo.adapter("llama-untied")
    assert planner_of(tmp_path / "first", adapter).facts.vector_bytes == sizes(vector) + sizes(adapter)
    opened = open_base_and_vectors(VectorSource.parse(base), {str(vector): 0.5}).with_changes({"base_quantized": "nf4"})
    planner = Planner(PlannedModel.of(opened))
    assert planner.facts.quantizing > 0
    wishes = Wishes({"0": LARGE, "cpu": LARGE})
    on_gpu, on_cpu = planner.plan("load", wishes).needs
    assert (on_gpu.place, on_cpu) == ("0", Need("cpu", 0, planner.facts.quantizing, LARGE))
    merging = planner.plan("merge", wishes).needs[0]
    assert merging.most == streaming_bound(planner.facts.largest) + planner.facts.quantizing


def test_a_device_without_memory(planner: Planner) -> None:
    with pytest.raises(ConfigError, match="The model is to go to '1', and there is memory of 0, cpu alone"):
        planner.plan("load", Wishes({"0": LARGE, "cpu": LARGE}, device_map="cuda:1"))
    with pytest.raises(ConfigError, match="'everywhere' is no device of a plan"):
        planner.plan("search", Wishes({"0": LARGE}, device_map="everywhere"))
