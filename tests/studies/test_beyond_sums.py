"""The study of what comes closer to the mixture: its parts of trainings, its figures, and its page."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studies.beyond_sums.report import from_data, to_markdown
from studies.beyond_sums.results import Results
from studies.beyond_sums.settings import FOUR, TUNED_SHARES
from studies.beyond_sums.training import Part, train
from tests.support.tiny_models import Models

REPORT = Path(__file__).parents[2] / "studies" / "beyond_sums" / "report"


def blocks(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 40, (16,), generator=generator) for _ in range(count)]
    return [{"input_ids": block, "labels": block} for block in ids]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_parts_with_the_optimizers_state_are_one_training(llama: Models, tmp_path: Path) -> None:
    """A source alone that is stopped and goes on, as a round does, ends where the whole training ends."""
    all_blocks = blocks(16)
    first = tmp_path / "first"
    whole = train(Part(llama.base, all_blocks, tmp_path / "whole", warmup=1, kept={2: first}))
    part = Part(first, all_blocks[8:], tmp_path / "second", warmup=0, state=first, keeps_state=True)
    again = train(part)
    assert (again / "optimizer.pt").is_file()
    expected = weights(whole)
    found = weights(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    new = train(Part(first, all_blocks[8:], tmp_path / "new", warmup=0))
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in weights(new).items())


def test_figures_are_means_over_seeds_documents_and_distributions() -> None:
    def run(shift: float) -> dict[str, object]:
        losses = {
            "DEM": {"a": [3.0, 2.0], "b": [4.0 + shift]},
            "RegMean": {"a": [2.5, 1.5], "b": [3.0 + shift]},
            "uniform mixture": {"a": [2.0, 1.0], "b": [1.0 + shift]},
        }
        rows = {
            label: {"losses": of_row, "training_tokens": 10, "evaluation_tokens": 2} for label, of_row in losses.items()
        }
        return {"sources": ["a", "b"], "tokens": {"a": [3, 1], "b": [5]}, "rows": rows}

    results = Results.of([run(0.0), run(1.0)])
    assert results.loss("DEM", "a") == pytest.approx((3 * 3.0 + 2.0) / 4)
    assert results.mean("DEM") == pytest.approx((2.75 + 4.5) / 2)
    assert results.by_seed("DEM") == pytest.approx([(2.75 + 4.0) / 2, (2.75 + 5.0) / 2])
    assert results.gain("RegMean")[0] == pytest.approx(0.75)
    assert results.gain("RegMean", ["a"]) == pytest.approx((0.5, 0.5, 0.5))
    assert results.closed("RegMean") == pytest.approx(0.75 / 2.0)
    assert results.costs["DEM"].flops(1) == 6 * 10 + 2 * 2


def test_tuned_shares_are_of_all_sources() -> None:
    assert set(TUNED_SHARES) == set(FOUR)
    assert sum(TUNED_SHARES.values()) == pytest.approx(1)


def test_the_page_is_written_from_the_data() -> None:
    data = json.loads((REPORT / "report.json").read_text("utf-8"))
    found = {name: from_data(of_setting) for name, of_setting in data.items()}
    assert to_markdown(found) == (REPORT / "report.md").read_text("utf-8")
