"""The study of other architectures from end to end, on texts of sixty words: what it reports hangs together, and it is done once."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from studies.data_mixing.architectures import (
    COMMON,
    COMMON_VALUES,
    DEM,
    MIXTURE,
    NAMES,
    PRETRAINED_ON,
    UNIFORM,
    Budget,
    study,
)
from studies.data_mixing.small_models import BATCH_SIZE, KINDS, SIZES, WINDOW, Kind
from tests.support.tiny_models import save_tokenizer

BUDGET = Budget(pretraining_steps=4, steps=2, training_documents=8, validation_documents=8, test_documents=6)

# A smaller encoder-decoder learns nothing in four steps.
SMALLER: dict[Kind, dict[str, int]] = {
    "mixture-of-experts": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_local_experts": 3,
    },
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Each distribution counts in steps of its own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for step, name in enumerate(PRETRAINED_ON, 1):
        for side, documents in (("train", 8), ("validation", 8), ("test", 6)):
            random = Random(f"{name}/{side}")
            starts = [random.randrange(60) for _ in range(documents)]
            lines = [
                json.dumps({"text": " ".join(f"w{(start + step * place) % 60}" for place in range(WINDOW))})
                for start in starts
            ]
            (folder / f"{name}.{side}.jsonl").write_text("\n".join(lines))
    save_tokenizer(tmp_path / "tokenizer")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_study(kind: Kind, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, kind, SIZES[kind] | SMALLER.get(kind, {}))
    found = run(kind, texts, tmp_path / "out")
    names = {"base", *(f"{name} alone" for name in NAMES), UNIFORM, COMMON, DEM}
    assert set(found["losses"]) == {*names, MIXTURE} and set(found["coefficients"]) == names
    losses = {label: one["mean"] for label, one in found["losses"].items()}
    assert losses["base"] < found["chance"] and losses[MIXTURE] < losses["base"]  # training trains
    gains = {label: losses[label.removesuffix(f" minus {DEM}")] - losses[DEM] for label in found["intervals"]}
    assert {label: one["mean"] for label, one in found["intervals"].items()} == pytest.approx(gains, abs=1e-9)
    step = BATCH_SIZE * WINDOW
    assert found["training_tokens"] == {"pretraining": 4 * step, **dict.fromkeys(NAMES, 2 * step), MIXTURE: 6 * step}
    assert found["forward_tokens"]["test"] == 8 * len(NAMES) * 6 * WINDOW
    search = found["num_forward"]["search"] * 6 + found["num_forward"]["held_out"] * 2  # of 8 documents, 2 are held out
    assert found["forward_tokens"]["search"] == pytest.approx(search * len(NAMES) * WINDOW, abs=1)
    assert found["forward_tokens"][COMMON] == len(COMMON_VALUES) * len(NAMES) * 8 * WINDOW
    assert set(found["coefficients"][COMMON].values()) < set(COMMON_VALUES)
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    again = run(kind, texts, tmp_path / "out")
    assert {**again, "seconds": None} == {**found, "seconds": None}
    assert {path: path.stat().st_mtime_ns for path in models} == models


def run(kind: Kind, texts: Path, folder: Path) -> dict[str, Any]:
    """As JSON would have it."""
    return json.loads(
        json.dumps(study(kind, texts, folder, tokenizer_folder=texts.parent / "tokenizer", budget=BUDGET))
    )  # type: ignore[no-any-return]
