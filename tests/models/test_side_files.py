"""What comes along with a base, from a folder and from the Hub, into merged models and recipes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from dem_hub import DEMModel, DistributionVector, VectorSource
from dem_hub.hub.download import side_files
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models, Zoo, reshard

# In a repository: what comes along, and what does not.
OTHERS = {
    "LICENSE",
    "tekken.json",
    "assets/logo.svg",
    "additional_chat_templates/rag.jinja",
    "odd/names.yaml",
    "sub/README.md",
}
LEFT = {"README.md", ".gitattributes", "modeling_odd.py", "tools/run.sh", "onnx/model.onnx", "pytorch_model.bin", "x/weights.pt",
        "other/model.safetensors", "model.safetensors.index.json", "runs/events.tfevents.1", "adapter_config.json"}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata:UserWarning")
def test_from_the_hub_all_but_weights_and_code(hub: Hub, llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    api = HfApi(token=hub.add_user("me", orgs=("org",)).token)
    api.create_repo("org/full")
    api.upload_folder(repo_id="org/full", folder_path=llama.base)
    modules = b'[{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "a.Dense"}]'
    dense = {"2_Dense/config.json", "2_Dense/model.safetensors"}
    for name in (*OTHERS, *LEFT, *dense):
        api.upload_file(path_or_fileobj=name.encode(), path_in_repo=name, repo_id="org/full")
    api.upload_file(path_or_fileobj=modules, path_in_repo="modules.json", repo_id="org/full")
    usual = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "modules.json"}
    expected = OTHERS | dense | usual
    assert set(side_files(VectorSource("org/full"))) == expected
    vectors = {str(zoo.vector("llama-tied", kind="lowrank")): 0.5}
    opened = open_base_and_vectors(VectorSource("org/full"), vectors)
    export(PlannedModel.of(opened), tmp_path / "merged")
    opened.recipe.save_pretrained(tmp_path / "recipe")
    for folder in ("merged", "recipe"):
        for name in expected - usual:
            assert (tmp_path / folder / name).read_text() == name
        assert not [name for name in LEFT - {"modeling_odd.py"} if (tmp_path / folder / name).exists()]


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_transformer_pools_and_projects_as_before(zoo: Zoo, tmp_path: Path) -> None:
    """CLS pooling, a projection with weights of its own, and unit length: none of them is the default."""
    import sentence_transformers
    import transformers
    from sentence_transformers import models as modules

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{number}" for number in range(20))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=32, max_position_embeddings=32, **sizes))
    dense = modules.Dense(32, 8)
    for name in ("base", "finetuned"):
        model.save_pretrained(tmp_path / f"plain-{name}")
        transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / f"plain-{name}")
        parts = [modules.Transformer(str(tmp_path / f"plain-{name}")), modules.Pooling(32, pooling_mode="cls")]
        whole = sentence_transformers.SentenceTransformer(modules=[*parts, dense, modules.Normalize()], device="cpu")
        whole.save(str(tmp_path / name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    base = tmp_path / "base"
    DistributionVector.extract(base, tmp_path / "finetuned", codec="exact").save_pretrained(tmp_path / "vector")
    vectors = {str(tmp_path / "vector"): 1.0}
    export(PlannedModel.of(open_base_and_vectors(VectorSource(str(base)), vectors)), tmp_path / "merged")
    DEMModel.from_pretrained(base, vectors=vectors).dem.save_pretrained(tmp_path / "recipe")

    def encode(name: str) -> torch.Tensor:
        loaded = sentence_transformers.SentenceTransformer(str(tmp_path / name), device="cpu")
        return torch.tensor(loaded.encode(["t1 t2 t3", "t9"]))

    expected = encode("finetuned")
    assert not torch.allclose(encode("base"), expected, atol=1e-3)
    torch.testing.assert_close(encode("merged"), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode("recipe"), expected, rtol=0, atol=1e-6)


def save_projection(folder: Path, values: float, *, pickled: bool = False, kind: str = "Dense") -> None:
    name = f"sentence_transformers.models.{kind}"
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": name}]))
    for module in ("1_Pooling", "2_Dense"):
        (folder / module).mkdir(exist_ok=True)
        (folder / module / "config.json").write_text("{}")
    weights = {"linear.weight": torch.full((2, 32), values)}
    if pickled:
        torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(weights, folder / "2_Dense" / "model.safetensors")


# What the module of the base and of the fine-tune is, and what is said. `None` stands for no module.
PROJECTIONS = {
    "the same": (1.0, 1.0, ""),
    "trained": (1.0, 2.0, "'2_Dense' of .* was trained"),
    "new": (None, 1.0, "has weights, and the base has none for it"),
    "only in the base": (1.0, None, ""),
    "pickled": (1.0, "pickled", "not known whether it was trained"),
    "both pickled": ("pickled", "pickled", "not known whether it was trained"),
}


@pytest.mark.parametrize("where", ["folder", "Hub"])
@pytest.mark.parametrize(("ours", "theirs", "said"), PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.filterwarnings("ignore:Warnings while validating metadata:UserWarning")
def test_a_projection_that_a_vector_does_not_have(
    hub: Hub,
    llama: Models,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ours: Any,
    theirs: Any,
    said: str,
    where: str,
) -> None:
    sides = {}
    for name, source, value in (("base", llama.base, ours), ("finetuned", llama.low, theirs)):
        folder = reshard(source, tmp_path / name)
        sides[name] = str(folder)
        if value is not None:
            save_projection(folder, 1.0 if value == "pickled" else value, pickled=value == "pickled")
    if where == "Hub":
        api = HfApi(token=hub.add_user("me").token)
        for name, folder in sides.items():
            api.create_repo(f"me/{name}")
            api.upload_folder(repo_id=f"me/{name}", folder_path=folder)
            sides[name] = f"me/{name}"
    DistributionVector.extract(sides["base"], sides["finetuned"], codec="dense")
    assert bool(said) == ("2_Dense" in caplog.text)
    assert re.search(said, caplog.text)
    caplog.clear()
    side_files(VectorSource(sides["base"]))
    assert ("no weights in safetensors, and pickled ones are not copied" in caplog.text) == (ours == "pickled")
