"""Changes in place from several threads, and changes that cannot be undone."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dem_hub import DEMModel
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import CheckpointError, CoefficientError
from dem_hub.hub.download import Resolved
from dem_hub.models import attached
from tests.models.helpers import base_and_two_vectors, same_tensors, save_recipe, state_of
from tests.support.tiny_models import Zoo

ROUNDS = 50


def together(*actions: Callable[[], Any]) -> None:
    """Run actions in threads of their own, and raise what one of them raised."""
    failures: list[BaseException] = []

    def run(action: Callable[[], Any]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_a_race_of_changes_loads_and_generation(zoo: Zoo) -> None:
    """4 threads, 50 rounds: two change one vector each, one loads in another dtype, one generates."""
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.0, second: 0.0})
    ids = torch.tensor([[5, 6]])

    def change(name: str) -> None:
        for number in range(ROUNDS):
            model.dem.set_coefficients({name: (number + 1) / ROUNDS})
            assert model.dem.coefficients[name] == (number + 1) / ROUNDS

    def load() -> None:
        for number in range(ROUNDS):
            dtype = (torch.float32, torch.bfloat16)[number % 2]
            other = DEMModel.from_pretrained(base, vectors={first: 0.3}, dtype=dtype)
            assert {parameter.dtype for parameter in other.parameters()} == {dtype}

    def generate() -> None:
        for _ in range(ROUNDS):
            model.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)

    before = torch.get_default_dtype()
    together(lambda: change(first), lambda: change(second), load, generate)
    assert torch.get_default_dtype() == before
    assert model.dem.coefficients == {first: 1.0, second: 1.0}
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(base, vectors={first: 1.0, second: 1.0})))


def test_loads_of_transformers_in_other_threads(zoo: Zoo) -> None:
    """Threads that load a tied model: two by dem_hub, and two by transformers alone, each in two dtypes in turn."""
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    dtypes = (torch.float32, torch.bfloat16)

    def ours(dtype: torch.dtype) -> Any:
        return DEMModel.from_pretrained(base, vectors={first: 0.5}, dtype=dtype)

    def theirs(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)

    def from_config(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=dtype)

    def architecture(dtype: torch.dtype) -> Any:
        described = Base(Resolved.local(base)).architecture
        assert described is not None
        assert described.ties == {"lm_head.weight": "model.embed_tokens.weight"}
        return theirs(dtype)

    expected = {(load, dtype): state_of(load(dtype)) for load in (ours, theirs) for dtype in dtypes}
    expected |= {(architecture, dtype): expected[theirs, dtype] for dtype in dtypes}

    def run(load: Callable[[torch.dtype], Any]) -> None:
        for number in range(ROUNDS // 2):
            dtype = dtypes[number % 2]
            model = load(dtype)
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert {parameter.dtype for parameter in model.parameters()} == {dtype}
            if load is not from_config:  # its random numbers are of a generator that all threads share
                assert same_tensors(state_of(model), expected[load, dtype])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # seconds; threads take turns within a load, and not only between two
    try:
        together(*(lambda load=load: run(load) for load in (ours, theirs, from_config, architecture)))
    finally:
        sys.setswitchinterval(interval)
    assert torch.get_default_dtype() == torch.float32


def test_of_two_changes_at_a_time_the_weights_are_those_of_one(zoo: Zoo, tmp_path: Path) -> None:
    base, first, _ = base_and_two_vectors(zoo, "gpt2")
    recipe = save_recipe(zoo, tmp_path / "recipe", "gpt2")
    model = DEMModel.from_pretrained(base, vectors={first: 0.5})
    fresh = {
        0.1: state_of(DEMModel.from_pretrained(base, vectors={first: 0.1})),
        0.3: state_of(DEMModel.from_pretrained(recipe)),
    }
    for _ in range(20):
        together(lambda: model.dem.set_coefficients({first: 0.1}), lambda: model.dem.switch(recipe))
        coefficients = model.dem.coefficients
        if len(coefficients) == 1:
            assert same_tensors(state_of(model), fresh[0.1])
        elif coefficients[first] == 0.3:
            assert same_tensors(state_of(model), fresh[0.3])
        model.dem.switch(recipe)


def test_a_change_that_cannot_be_undone_marks_the_model(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    write = attached.write_merged

    def broken(model: Any, places: Any, found: Any, merge: Any, keys: Any) -> None:
        write(model, places, found, merge, sorted(keys)[:3])
        raise CheckpointError("the disk is gone")

    monkeypatch.setattr(attached, "write_merged", broken)
    with pytest.raises(CheckpointError, match="the disk is gone") as caught:
        model.dem.set_coefficients({first: 0.9})
    assert "could not be restored" in caught.value.__notes__[0]
    for use in (lambda: model.dem.coefficients, lambda: model.dem.config, lambda: repr(model.dem)):
        with pytest.raises(CoefficientError, match="are a mixture: .* Repeat set_coefficients, or load"):
            use()
    with pytest.raises(CoefficientError, match="are a mixture"):
        model.dem.save_pretrained("recipe")
    monkeypatch.undo()
    model.dem.set_coefficients({first: 0.9}, only_changed=True)
    fresh = DEMModel.from_pretrained(base, vectors={first: 0.9, second: 0.6})
    assert same_tensors(state_of(model), state_of(fresh))
    assert model.dem.coefficients == {first: 0.9, second: 0.6}


def test_an_interrupted_change_is_undone(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3})
    before = state_of(model)
    write = attached.write_merged
    calls: list[int] = []

    def interrupted(model: Any, places: Any, found: Any, merge: Any, keys: Any) -> None:
        calls.append(1)
        write(model, places, found, merge, keys)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(attached, "write_merged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.dem.set_coefficients({first: 0.9})
    assert same_tensors(state_of(model), before)
    assert model.dem.coefficients == {first: 0.3}
