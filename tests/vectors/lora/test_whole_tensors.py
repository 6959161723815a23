"""What PEFT keeps whole in an adapter is a delta like any other, or is refused where it is one end of a tie."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMModel
from dem_hub.errors import AdapterError
from dem_hub.merging.lazy import merged_tensor
from tests.fake_hub.server import Hub
from tests.support.lora_merges import LINEAR, assert_as_peft, merge_one, train_all
from tests.support.tiny_models import Zoo, load_tensors, make_adapter


@pytest.mark.parametrize("coefficient", [0.5, -2.0])
def test_saved_modules_are_scaled_like_any_delta(zoo: Zoo, tmp_path: Path, coefficient: float) -> None:
    base = zoo.models("llama-untied", "float32").base
    make_adapter(base, tmp_path / "adapter", train=train_all, target_modules=LINEAR, modules_to_save=["lm_head"])
    before = load_tensors(base)["lm_head.weight"].double()
    after = load_tensors(tmp_path / "adapter", "adapter_model")["base_model.model.lm_head.weight"].double()
    found = merged_tensor(merge_one(base, tmp_path / "adapter", coefficient), "lm_head.weight").double()
    torch.testing.assert_close(found, before + coefficient * (after - before), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["llama-untied", "llama-tied"])
def test_resized_vocabulary(zoo: Zoo, tmp_path: Path, family: str) -> None:
    base = zoo.models(family, "float32").base
    adapted = make_adapter(base, tmp_path / "adapter", resize=70, target_modules=LINEAR, r=4)
    saved = load_tensors(tmp_path / "adapter", "adapter_model")
    rows = saved["base_model.model.model.embed_tokens.weight"][64:]
    merge = merge_one(base, tmp_path / "adapter", 0.3)
    assert torch.equal(merged_tensor(merge, "model.embed_tokens.weight")[64:], rows)
    assert merge.vocabulary == 70
    assert_as_peft(base, tmp_path / "adapter", adapted)


def test_a_module_that_was_saved_and_not_trained_changes_nothing(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("gpt2", "float32").base
    make_adapter(base, tmp_path / "adapter", target_modules=["c_fc"], modules_to_save=["wte"], fan_in_fan_out=True)
    assert not merge_one(base, tmp_path / "adapter").active("transformer.wte.weight")


SAVED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "input": (["embed_tokens"], {}, "model.embed_tokens"),
    "output, which is not on disk": (["lm_head"], {}, "lm_head"),
    "each alone": (["embed_tokens", "lm_head"], {}, "model.embed_tokens"),
    "one tensor": (["embed_tokens", "lm_head"], {"ensure_weight_tying": True}, ""),
}


@pytest.mark.filterwarnings("ignore")  # PEFT, of tied embeddings
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("saved", "options", "refused"), SAVED.values(), ids=SAVED)
def test_saved_ends_of_a_tie(
    zoo: Zoo, tmp_path: Path, saved: list[str], options: dict[str, Any], refused: str, trained: bool
) -> None:
    """One that was not trained changes nothing. One that was is a tensor of its own, unless PEFT tied both."""

    def train(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if trained and "modules_to_save" in name:
                parameter.add_(0.1)

    base = zoo.models("llama-tied", "float32").base
    adapted = make_adapter(
        base, tmp_path / "adapter", train=train, target_modules=["q_proj"], modules_to_save=saved, **options
    )
    if trained and refused:
        message = (
            rf"(?s)'{refused}' is one tensor with another embedding.*Train both ends with ensure_weight_tying=True, or"
        )
        with pytest.raises(AdapterError, match=message) as caught:
            merge_one(base, tmp_path / "adapter")
        assert "Use the base it was trained on" not in str(caught.value)
    else:
        assert_as_peft(base, tmp_path / "adapter", adapted)


@pytest.mark.filterwarnings("ignore")  # PEFT, of tied embeddings
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("on_hub", [("base",), ("adapter",), ("base", "adapter")], ids=" and ".join)
def test_one_end_of_a_tie_on_the_hub(
    hub: Hub,
    zoo: Zoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_hub: tuple[str, ...],
    saved: str,
    trained: bool,
) -> None:
    """Whether it was trained is known once the weights are here, and not from their stand-ins, which are zeros."""

    def train(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if trained and "modules_to_save" in name:
                parameter.add_(0.1)

    base = zoo.models("llama-tied", "float32").base
    make_adapter(base, tmp_path / "adapter", train=train, target_modules=["q_proj"], modules_to_save=[saved])
    places = {"base": base, "adapter": tmp_path / "adapter"}
    names = {what: str(folder) for what, folder in places.items()}
    for what in on_hub:
        names[what] = f"ann/{what}"
        HfApi().create_repo(names[what])
        HfApi().upload_folder(repo_id=names[what], folder_path=places[what], ignore_patterns=["README.md"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    if trained:
        with pytest.raises(AdapterError, match="is one tensor with another embedding"):
            DEMModel.from_pretrained(names["base"], vectors={names["adapter"]: 0.5})
    else:
        model = DEMModel.from_pretrained(names["base"], vectors={names["adapter"]: 0.5})
        assert torch.equal(model.model.embed_tokens.weight, load_tensors(base)["model.embed_tokens.weight"])


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_lora_on_both_ends_of_a_tie_is_added_once(zoo: Zoo, tmp_path: Path) -> None:
    """Each end adds the same delta to the one tensor. PEFT's merge does it for both ends, so the tensor moves twice."""
    base = zoo.models("llama-tied", "float32").base
    ends = ["embed_tokens", "lm_head"]
    adapted = make_adapter(base, tmp_path, target_modules=ends, ensure_weight_tying=True)
    ours = DEMModel.from_pretrained(base, vectors={str(tmp_path): 1.0}, dtype="float32")
    ids = torch.arange(1, 9).reshape(2, 4)
    with torch.no_grad():
        unmerged = adapted(ids).logits
        torch.testing.assert_close(ours(ids).logits, unmerged, rtol=1e-5, atol=1e-6)  # sums in another order
        merged = adapted.merge_and_unload()
        assert (merged(ids).logits - unmerged).abs().max() > 0.1
    original = load_tensors(base)["model.embed_tokens.weight"]
    delta = ours.get_input_embeddings().weight - original
    torch.testing.assert_close(merged.get_input_embeddings().weight - original, 2 * delta, rtol=1e-5, atol=1e-6)
