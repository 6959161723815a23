"""New tokens of adapters that PEFT wrote: read from the tokenizer beside the adapter, which comes along."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMCallback, DEMModel, DistributionVector, VectorStore
from dem_hub.errors import BaseMismatchError, ConfigError
from dem_hub.vectors.publishing import public_vector
from tests.fake_hub.server import Hub
from tests.support.new_tokens import INPUT, OUTPUT, ROWS, assert_by_token, ids_of, make_base
from tests.support.tiny_models import Zoo, add_tokens, load_tensors
from tests.support.training_runs import load, train

SAVED = {
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "lora alone": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.fixture
def base(zoo: Zoo, tmp_path: Path) -> Path:
    return make_base(zoo.models("llama-untied", "float32").base, tmp_path / "base", 62)


def adapt(base: Path, folder: Path, tokens: list[str], seed: int, **config: Any) -> Path:
    """Train an adapter on a model with more tokens. Its folder `merged` has the model that PEFT makes of it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    add_tokens(base, folder, tokens)
    model = load(base)
    model.resize_token_embeddings(max(ROWS, 62 + len(tokens)), mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=3, init_lora_weights=False, **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    add_tokens(base, folder / "merged", tokens)
    return folder


PADDING = [(["<a>"], ["<b>"]), (["<a>", "<b>"], ["<b>", "<c>"])]
NEW_ROWS = (["<a>", "<b>", "<c>"], ["<d>", "<c>"])


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*", "ignore:Could not find a config file")
@pytest.mark.parametrize(
    ("config", "tokens"),
    [*((config, tokens) for config in SAVED.values() for tokens in PADDING), (SAVED["modules_to_save"], NEW_ROWS)],
    ids=str,
)
def test_adapters_with_tokens(base: Path, tmp_path: Path, config: dict[str, Any], tokens: Any) -> None:
    adapters = [adapt(base, tmp_path / str(seed), added, seed, **config) for seed, added in enumerate(tokens)]
    coefficients = dict(zip(map(str, adapters), (0.5, -0.3), strict=True))
    model = DEMModel.from_pretrained(base, vectors=coefficients, dtype=torch.float32)
    model.dem.save_pretrained(tmp_path / "recipe")
    ids = ids_of(tmp_path / "recipe")
    assert set(ids) == set(ids_of(base)) | {token for added in tokens for token in added}
    finetunes = {adapter / "merged": coefficients[str(adapter)] for adapter in adapters}
    assert_by_token(INPUT, model.get_input_embeddings().weight, base, finetunes, ids)
    assert_by_token(OUTPUT, model.get_output_embeddings().weight, base, finetunes, ids)


def test_copies_keep_the_tokenizer(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", ["<a>"], 0, **SAVED["modules_to_save"])
    vector = DistributionVector.from_pretrained(adapter)
    vector.save_pretrained(tmp_path / "copy")
    content = (adapter / "tokenizer.json").read_bytes()
    assert (tmp_path / "copy" / "vector_tokenizer.json").read_bytes() == content
    copy = DistributionVector.from_pretrained(tmp_path / "copy")
    assert copy.sha256 == vector.sha256
    copy.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "vector_tokenizer.json").read_bytes() == content
    store = VectorStore.create(tmp_path / "store", base)
    store.add("a", copy)
    assert (tmp_path / "store" / "a" / "vector_tokenizer.json").read_bytes() == content
    # an adapter without an embedding takes none along, and none of an earlier one stays
    plain = adapt(base, tmp_path / "plain", [], 0, target_modules=["q_proj"])
    DistributionVector.from_pretrained(plain).save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "vector_tokenizer.json").exists()


def test_what_a_push_publishes(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", ["<a>"], 0, **SAVED["modules_to_save"])
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    (adapter / "adapter_config.json").write_text(
        (adapter / "adapter_config.json").read_text().replace(str(base), "org/base")
    )
    assert set(public_vector(adapter).files) == weights | {"vector_tokenizer.json"}
    (adapter / "tokenizer.json").rename(tmp_path / "secret.json")
    assert set(public_vector(adapter).files) == weights
    (adapter / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ConfigError, match="leads to"):
        public_vector(adapter)


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata:UserWarning")
def test_an_adapter_on_the_hub(hub: Hub, base: Path, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=hub.add_user("me").token)
    adapters = [adapt(base, tmp_path / str(seed), [f"<{seed}>"], seed, **SAVED["modules_to_save"]) for seed in range(2)]
    for number, adapter in enumerate(adapters):
        api.create_repo(f"me/{number}")
        api.upload_folder(repo_id=f"me/{number}", folder_path=adapter, ignore_patterns=["merged/*", "README.md"])
    here = DEMModel.from_pretrained(base, vectors=dict.fromkeys(map(str, adapters), 0.5), dtype="float32")
    there = DEMModel.from_pretrained(base, vectors={"me/0": 0.5, "me/1": 0.5}, dtype="float32")
    assert torch.equal(here.get_input_embeddings().weight, there.get_input_embeddings().weight)
    DistributionVector.from_pretrained("me/0").save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "vector_tokenizer.json").read_bytes() == (adapters[0] / "tokenizer.json").read_bytes()


def test_adapters_without_a_tokenizer(base: Path, tmp_path: Path) -> None:
    adapters = []
    for seed in range(2):
        adapters.append(
            adapt(base, tmp_path / str(seed), ["<a>", f"<{seed}>", "<c>"], seed, **SAVED["modules_to_save"])
        )
        (adapters[-1] / "tokenizer.json").unlink()
    alone = DEMModel.from_pretrained(base, vectors={adapters[0]: 0.5}, dtype=torch.float32)
    expected = load_tensors(adapters[0] / "merged")[INPUT][64:]
    torch.testing.assert_close(alone.get_input_embeddings().weight[64:], expected)
    with pytest.raises(BaseMismatchError, match=r"put that file beside the adapter"):
        DEMModel.from_pretrained(base, vectors=dict.fromkeys(map(str, adapters), 0.5))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_callback(base: Path, tmp_path: Path, lora: bool) -> None:
    """A run's vector has the tokens of the Trainer's tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    tokenizer.pad_token = "w0"
    model = load(base)
    model.resize_token_embeddings(65, mean_resizing=False)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, **SAVED["modules_to_save"]))
    train(model, DEMCallback(base), tmp_path / "run", processing_class=tokenizer)
    vector = DistributionVector.from_pretrained(tmp_path / "run" / "vector")
    assert (vector.config is None) == lora
    merged = DEMModel.from_pretrained(base, vectors={str(vector.folder): 1.0})
    merged.dem.save_pretrained(tmp_path / "recipe")
    assert ids_of(tmp_path / "recipe") == dict(tokenizer.get_vocab())
