"""Likelihoods: every scored token weighs the same, whatever the batches and the padding."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dem_hub.errors import ConfigError
from dem_hub.evaluation import likelihood as likelihood_module
from dem_hub.evaluation.likelihood import batches, evaluate, likelihood, scored_tokens, totals
from dem_hub.evaluation.windows import NOT_SCORED, Window
from tests.support.tiny_models import Zoo


@pytest.fixture(scope="module")
def model(zoo: Zoo) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(zoo.models("llama-tied", "float32").base)


def windows(*lengths: int, hide: float = 0.0) -> list[Window]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        ids = torch.randint(0, 64, (length,), generator=generator)
        hidden = torch.rand(length, generator=generator) < hide
        found.append(Window(tuple(ids.tolist()), tuple(ids.masked_fill(hidden, NOT_SCORED).tolist())))
    return found


def one_by_one(model: Any, rows: list[Window]) -> list[float]:
    """The reference: log-softmax in float64, token by token, a window at a time and unpadded."""
    found = []
    for row in rows:
        with torch.no_grad():
            scores = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        found.append(
            -sum(float(scores[place, label]) for place, label in enumerate(row.labels[1:]) if label != NOT_SCORED)
        )
    return found


@pytest.mark.parametrize("hide", [0.0, 0.6])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_is_the_sum_over_scored_tokens(model: Any, batch_size: int, hide: float) -> None:
    rows = windows(2, 30, 5, 17, 9, 9, 3, 64, hide=hide)
    expected = one_by_one(model, rows)
    assert totals(model, rows, batch_size).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)  # float32 logits
    found = likelihood(model, rows, batch_size)
    assert (
        found.tokens == sum(label != NOT_SCORED for row in rows for label in row.labels[1:]) == sum(scored_tokens(rows))
    )
    assert found.loss == pytest.approx(sum(expected) / found.tokens, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_batches_have_room_for_their_logits(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = windows(30, 9, 30, 30, 9, 9, 9, 64)
    monkeypatch.setattr(likelihood_module, "PASS_LOGIT_BYTES", 4 * 64 * 60)  # 60 tokens of a vocabulary of 64
    assert batches(rows, 8, 64) == [[7], [0, 2], [3, 1], [4, 5, 6]]
    assert batches(rows, 1, 64) == [[place] for place in (7, 0, 2, 3, 1, 4, 5, 6)]
    assert batches([], 8, 64) == []
    assert totals(model, rows, 8).tolist() == pytest.approx(one_by_one(model, rows), rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30), st.integers(1, 9), st.integers(1, 300))
def test_no_batch_is_too_large(lengths: list[tuple[int, int]], size: int, tokens: int) -> None:
    """Whatever the lengths of inputs and labels: each window is in one batch, and what is too large is one window."""
    rows = [Window((1,) * inputs, (1,) * labels) for inputs, labels in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood_module, "PASS_LOGIT_BYTES", 4 * 64 * tokens)
        found = batches(rows, size, 64)
    assert sorted(place for places in found for place in places) == list(range(len(rows)))
    for places in found:
        width = max(len(rows[place].labels) for place in places)
        assert len(places) <= size
        assert len(places) == 1 or len(places) * width <= tokens


def test_more_tokens_than_a_piece(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = windows(120, 110, 100)
    monkeypatch.setattr("dem_hub.evaluation.likelihood._PIECE_BYTES", 4 * 64 * 7)  # 7 tokens of a vocabulary of 64
    assert totals(model, rows, 3).tolist() == pytest.approx(one_by_one(model, rows), rel=1e-6)


def test_evaluate(model: Any) -> None:
    data = {"short": windows(4, 5), "long": windows(40)}
    scores = evaluate(model, data, 2)
    assert list(scores) == ["short", "long"]
    assert scores == {name: likelihood(model, rows, 2) for name, rows in data.items()}


def test_sequence_to_sequence_scores_its_labels(tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    model = t.T5ForConditionalGeneration(t.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)).eval()
    rows = [Window((3, 4, 5, 6), (7, 8)), Window((9,), (10, 11, 12)), Window((3, 3), (NOT_SCORED, 13))]
    expected = []
    for row in rows:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
        expected.append(float(output.loss) * sum(label != NOT_SCORED for label in row.labels))
    for size in (1, 3):
        assert totals(model, rows, size).tolist() == pytest.approx(expected, rel=1e-5)
    assert likelihood(model, rows).tokens == 6


def test_nothing_to_score(model: Any) -> None:
    with pytest.raises(ConfigError, match="There is nothing to score"):
        likelihood(model, [[1]])


def test_batches_of_nothing(model: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0; it must be 1 or more"):
        likelihood(model, [[1, 2]], batch_size=0)


def test_a_masked_language_model_has_no_likelihood() -> None:
    import transformers as t

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 32,
    }
    with pytest.raises(ConfigError, match="The model is a BertForMaskedLM, and a masked language model sees"):
        likelihood(t.BertForMaskedLM(t.BertConfig(**sizes)), [[1, 2, 3]])


def own_model(output_is_named: bool) -> Any:
    """Return a language model of its own code, whose configuration has another word for its vocabulary."""
    import transformers as t
    from transformers.modeling_outputs import CausalLMOutput

    class Bigrams(t.PreTrainedModel):
        config_class = t.PretrainedConfig

        def __init__(self, config: t.PretrainedConfig) -> None:
            super().__init__(config)
            self.embedding = torch.nn.Embedding(config.n_tokens, 8)
            self.output = torch.nn.Linear(8, config.n_tokens)

        def get_output_embeddings(self) -> torch.nn.Module | None:
            return self.output if output_is_named else None

        def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
            return CausalLMOutput(logits=self.output(self.embedding(input_ids)))

    torch.manual_seed(0)
    return Bigrams(t.PretrainedConfig(n_tokens=64)).eval()


def test_a_vocabulary_of_another_name() -> None:
    model, rows = own_model(output_is_named=True), windows(2, 9, 5)
    assert totals(model, rows).tolist() == pytest.approx(one_by_one(model, rows), rel=1e-5)
    with pytest.raises(ConfigError, match="Bigrams does not say how many tokens its vocabulary has"):
        totals(own_model(output_is_named=False), rows)
