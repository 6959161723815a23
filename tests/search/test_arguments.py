"""What a search refuses, most of it before anything is loaded."""

from collections.abc import Callable
from typing import Any

import pytest

from dem_hub import SearchResult, search_coefficients
from dem_hub.errors import BaseMismatchError, ConfigError
from dem_hub.search.solve.objective import Objective
from tests.support.counting_models import Counters
from tests.support.tiny_models import Models, Zoo

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no vectors": ({"vectors": []}, "needs vectors and eval_datasets; it was given 0 and 1"),
    "no data": ({"eval_datasets": {}}, "it was given 1 and 0"),
    "one vector, not in a list": (
        {"vectors": "chat-lora"},
        "vectors is 'chat-lora', one name; give a list of names: \\['chat-lora'\\]",
    ),
    "data without a name": (
        {"eval_datasets": "maths.jsonl"},
        "eval_datasets is 'maths.jsonl'; give data by name: {'maths': 'maths.jsonl'}",
    ),
    "rows without a name": ({"eval_datasets": [[1, 2]]}, "eval_datasets is list; give data by name"),
    "no trials": ({"max_forward": 0}, "max_forward is 0; it must be 1 or more"),
    "seed": ({"seed": 1 << 64}, "seed is a number of 65 bits; it must be a whole number"),
    "direction": ({"direction": "up"}, "direction is 'up'"),
    "method": ({"method": "magic"}, "method is 'magic'"),
    "objective": ({"objective": "best"}, "objective is 'best'"),
    "weights": ({"weights": {"other": 1.0}}, "weights name 'other'; the distributions are 'maths'"),
    "share": ({"held_out": 1.5}, "held_out is 1.5; it must be a share"),
    "data and a score": ({"score": float}, "there are eval_datasets and a score"),
    "two weights": (
        {"objective": Objective("mean", {"maths": 2.0}), "weights": {"maths": 1.0}},
        "the objective has weights of its own",
    ),
    "a model over processes": ({"distributed_config": {"fsdp_size": 2}}, "takes no distributed_config=.*device_map"),
    "tensor parallelism": ({"tp_plan": "auto"}, "takes no tp_plan='auto'"),
    "bounds": ({"bounds": [(0, 1), (0, 1)]}, "give one \\(lower, upper\\) pair, or one for each of 1 vectors"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vectors": ["me/maths"], "eval_datasets": {"maths": [[1, 2]]}, **changes}
    with pytest.raises(ConfigError, match=message):
        search_coefficients("org/base", **arguments)


def test_a_distribution_with_nothing_to_score(search: Callable[..., SearchResult], counters: Counters) -> None:
    with pytest.raises(
        ConfigError, match="'empty': there is nothing to score(.|\n)*'short': there is nothing to score"
    ):
        search(data={**counters.data, "empty": [], "short": [[1]]})


def test_held_out_data_of_another_distribution(search: Callable[..., SearchResult], counters: Counters) -> None:
    with pytest.raises(ConfigError, match="'upp': held out, and not searched on"):
        search("up", held_out={"upp": counters.data["up"]})


def test_a_vector_of_another_base(zoo: Zoo, llama: Models, counters: Counters) -> None:
    with pytest.raises(BaseMismatchError):
        search_coefficients(counters.base, [str(zoo.vector("llama-untied"))], counters.data)


def test_a_vector_named_twice(counters: Counters) -> None:
    with pytest.raises(ConfigError, match="Vectors named twice: .*up"):
        search_coefficients(counters.base, [counters.vectors["up"]] * 2, counters.data)
