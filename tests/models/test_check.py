"""What a merge has kept of a fine-tune: losses and divergences against ones computed by hand, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, check_merge
from dem_hub.errors import AdapterError, ConfigError, DiskSpaceError, NotFoundError
from tests.support.tiny_models import Zoo, edit_json, make_adapter, reshard

ROWS = [[5, 6, 7, 8, 9, 3, 44], [9, 10, 11], [12, 13, 14, 15, 16], [40, 41, 42], [50, 20, 30, 10]]
DATA = {"words": ROWS}


def logits_of(model: Any, row: list[int]) -> torch.Tensor:
    """The log-probabilities of a row's predictions, in float64."""
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1)  # type: ignore[no-any-return]


def expected(finetuned: Any, model: Any) -> tuple[float, float]:
    """The reference: mean loss, and mean KL(fine-tune || model), row by row in float64."""
    loss, divergence, count = 0.0, 0.0, 0
    for row in ROWS:
        p, q = logits_of(finetuned, row), logits_of(model, row)
        loss -= float(q.gather(1, torch.tensor(row[1:])[:, None]).sum())
        divergence += float((p.exp() * (p - q)).sum())
        count += len(row) - 1
    return loss / count, divergence / count


def recipe_of(folder: Path, base: Path, vectors: dict[str, float], **options: Any) -> Path:
    DEMModel.from_pretrained(base, vectors=vectors, **options).dem.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["model", "adapter", "dora"])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_the_numbers_are_those_of_the_models_themselves(zoo: Zoo, tmp_path: Path, family: str, kind: str) -> None:
    """The fine-tune is a model, or what PEFT makes of the base with the adapter beside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    models = zoo.models(family, "float32")
    base = AutoModelForCausalLM.from_pretrained(models.base)
    if kind == "model":
        against = models.full
        finetuned = AutoModelForCausalLM.from_pretrained(against)
    else:
        against = tmp_path / "adapter"
        options = {"r": 3, "use_dora": kind == "dora", "fan_in_fan_out": family == "gpt2"}
        make_adapter(models.base, against, target_modules="all-linear", **options)
        finetuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models.base), against)
    recipe = recipe_of(tmp_path / "recipe", models.base, {str(zoo.vector(family, "float32")): 0.4})
    found = check_merge(recipe, against, DATA, batch_size=2)["words"]
    # A loss of 4 nats, in float32.
    assert (found.finetuned.value, 0) == pytest.approx(expected(finetuned, finetuned), abs=2e-6)
    assert (found.base.value, found.base_divergence.value) == pytest.approx(expected(finetuned, base), abs=2e-6)
    merged = AutoModelForCausalLM.from_pretrained(recipe)
    assert (found.merged.value, found.divergence.value) == pytest.approx(expected(finetuned, merged), abs=2e-6)
    share = (found.base.value - found.merged.value) / (found.base.value - found.finetuned.value)
    assert found.kept.value == pytest.approx(share)
    assert (found.tokens, found.documents) == (17, 5)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose matrices have whole blocks of 64, with weights large enough for its logits to differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore")
def test_the_merge_is_run_as_it_is_served(wide: Path, tmp_path: Path, quantize: str) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    make_adapter(wide, tmp_path / "adapter", target_modules="all-linear")
    recipe = recipe_of(tmp_path / "recipe", wide, {str(tmp_path / "adapter"): 1.0})
    config: Any = BitsAndBytesConfig(load_in_8bit=True)
    if quantize == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    options = {"dtype": torch.float32, "quantization_config": config}
    found = check_merge(recipe, tmp_path / "adapter", DATA, batch_size=1, **options)["words"]
    served = AutoModelForCausalLM.from_pretrained(recipe, **options)
    exact = AutoModelForCausalLM.from_pretrained(recipe)
    expected_loss, expected_divergence = expected(exact, served)
    # 8 bits have a kernel of their own, which rounds the inputs.
    assert (found.merged.value, found.divergence.value) == pytest.approx((expected_loss, expected_divergence), abs=1e-4)
    assert found.divergence.value > 5e-4  # of the quantization alone: the merge itself is the fine-tune


def test_a_qlora_is_compared_on_the_base_that_it_was_trained_on(wide: Path, tmp_path: Path) -> None:
    """The recipe says how the base was quantized, or the caller."""
    adapter = tmp_path / "adapter"
    make_adapter(wide, adapter, target_modules="all-linear")
    recipe = recipe_of(tmp_path / "recipe", wide, {str(adapter): 1.0}, base_quantized="nf4,double_quant")
    plain = recipe_of(tmp_path / "plain", wide, {str(adapter): 1.0})
    assert check_merge(recipe, adapter, DATA)["words"].divergence.value < 1e-6
    found = check_merge(plain, adapter, DATA, base_quantized="nf4,double_quant")["words"]
    assert found.divergence.value > 1e-3
    assert found.base.value == check_merge(recipe, adapter, DATA)["words"].base.value  # the base is as it is
    with pytest.raises(ConfigError, match="is for an adapter .* is a whole model"):
        check_merge(recipe, wide, DATA, base_quantized="nf4")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_what_cannot_be_compared_is_refused(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = zoo.models("llama-tied", "float32")
    vector = zoo.vector("llama-tied", "float32")
    recipe = recipe_of(tmp_path / "recipe", models.base, {str(vector): 0.5})

    def resize(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(66, 32)

    larger = reshard(models.full, tmp_path / "larger", change=resize)
    edit_json(larger / "config.json", vocab_size=66)
    classifier = tmp_path / "classifier"
    make_adapter(models.base, classifier, target_modules="all-linear", task_type="CAUSAL_LM")
    edit_json(classifier / "adapter_config.json", task_type="SEQ_CLS")
    prompt = tmp_path / "prompt"
    prompt.mkdir()
    (prompt / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4})
    )
    resized = tmp_path / "resized"
    make_adapter(models.base, resized, target_modules=["q_proj"], modules_to_save=["embed_tokens"], resize=70)
    elsewhere = tmp_path / "elsewhere"
    make_adapter(models.base, elsewhere, target_modules=["q_proj"])
    edit_json(elsewhere / "adapter_config.json", base_model_name_or_path="org/base")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((models.base / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (recipe, larger, DATA, ConfigError, r"decoder, 64 tokens.*decoder, 66 tokens"),
        (recipe, zoo.models("bert", "float32").base, DATA, ConfigError, "BertForMaskedLM.*both sides"),
        (recipe, vector, DATA, ConfigError, "is a vector, which its codec may have rounded"),
        (recipe, classifier, DATA, AdapterError, "is for SEQ_CLS, which predicts no tokens"),
        (recipe, prompt, DATA, AdapterError, "is PROMPT_TUNING.*tokens of its own"),
        (zoo.adapter("llama-tied"), models.full, DATA, ConfigError, "is a LoRA adapter, and no model that is served"),
        (models.low, models.full, DATA, ConfigError, "its base is not known.*--base"),
        (recipe, resized, DATA, AdapterError, "PEFT cannot load the adapter .* size mismatch"),
        (recipe, elsewhere, DATA, ConfigError, "The recipe's base is '.*' and the adapter's is 'org/base'.*--base"),
        (recipe, pickled, DATA, OSError, "safetensors"),
        (recipe, tmp_path / "absent", DATA, NotFoundError, "absent"),
        (recipe, models.full, {}, ConfigError, "no data"),
        (recipe, models.full, {"words": [[5]]}, ConfigError, "nothing to score"),
    ]
    for model, against, data, error, match in cases:
        with pytest.raises(error, match=match):
            check_merge(model, against, data)
    # The same base under another name.
    found = check_merge(recipe, elsewhere, DATA, base=models.base)["words"]
    assert found.divergence.value > 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(DiskSpaceError, match=r"take 4.4 kB.*100 B are free.*TMPDIR"):
        check_merge(recipe, models.full, DATA)


def test_other_tokenizers_are_refused_where_they_matter(zoo: Zoo, tmp_path: Path) -> None:
    models = zoo.models("llama-tied", "float32")
    recipe = recipe_of(tmp_path / "recipe", models.base, {str(zoo.vector("llama-tied", "float32")): 0.5})
    finetuned = reshard(models.full, tmp_path / "finetuned")
    for path in models.base.glob("*token*"):
        text = path.read_text()
        (finetuned / path.name).write_text(text)
    (finetuned / "chat_template.jinja").write_text(
        "{% for message in messages %} w1 {{ message['content'] }}{% endfor %}"
    )
    chats = [{"messages": [{"role": "user", "content": "w2 w3 "}, {"role": "assistant", "content": "w4 w5"}]}]
    texts = [{"text": "w2 w3 w4"}]
    assert check_merge(recipe, finetuned, {"texts": texts})["texts"].tokens == 2
    with pytest.raises(ConfigError, match="'chats': row 1 has other tokens by the tokenizer or the chat template of"):
        check_merge(recipe, finetuned, {"chats": chats})
