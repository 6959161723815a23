"""The whole way for each architecture, on a tiny model of its real class: extract, save, load, merge, compare, run."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.architecture import PLAIN, describe, describe_plain
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from tests.support.families import FAMILIES, TEXT, build
from tests.support.tiny_models import assert_around, load_tensors, reference, shake

CUSTOM = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class WaveConfig(PretrainedConfig):
    model_type = "wave"

    def __init__(self, size=16, **kwargs):
        self.size = size
        super().__init__(**kwargs)


class WaveModel(PreTrainedModel):
    config_class = WaveConfig

    def __init__(self, config):
        super().__init__(config)
        self.up = torch.nn.Linear(config.size, 2 * config.size)
        self.down = torch.nn.Linear(2 * config.size, config.size)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x):
        return self.down(torch.sin(self.up(x)))
"""


COEFFICIENTS = (0.4, -0.3)


def make(folder: Path, family: str) -> list[Path]:
    """A base in bfloat16 and two fine-tunes of it."""
    paths = [folder / name for name in ("base", "first", "second")]
    for number, path in enumerate(paths):
        model = build(family)
        if number:
            shake(model, number)
        model.to(torch.bfloat16).save_pretrained(path)
    return paths


def merged_reference(paths: list[Path]) -> dict[str, torch.Tensor]:
    """The sum in float64, by the names on disk."""
    tensors = [load_tensors(path) for path in paths]
    terms = [
        ({name: tuned[name].double() - tensors[0][name].double() for name in tuned}, c)
        for tuned, c in zip(tensors[1:], COEFFICIENTS, strict=True)
    ]
    return reference(paths[0], terms)


@pytest.mark.filterwarnings("ignore:Casting complex values")  # torch, of rotations that Llama 4 does not save
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_way(family: str, tmp_path: Path) -> None:
    paths = make(tmp_path, family)
    vectors = {}
    for path, coefficient in zip(paths[1:], COEFFICIENTS, strict=True):
        vector = DistributionVector.extract(paths[0], path, codec="dense")
        vector.save_pretrained(tmp_path / f"{path.name}-vector")
        vectors[str(tmp_path / f"{path.name}-vector")] = coefficient
    model = DEMModel.from_pretrained(paths[0], vectors=vectors)
    assert type(model) is type(build(family))
    model.save_pretrained(tmp_path / "saved")  # in the names on disk again
    expected = merged_reference(paths)
    for name, tensor in load_tensors(tmp_path / "saved").items():
        assert_around(tensor, expected[name])
    export(PlannedModel.of(open_base_and_vectors(VectorSource(str(paths[0])), vectors)), tmp_path / "exported")
    exported, saved = load_tensors(tmp_path / "exported"), load_tensors(tmp_path / "saved")
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items())
    with torch.no_grad():
        logits = model.eval()(**FAMILIES[family].inputs(torch.bfloat16)).logits
        assert logits.isfinite().all()
        assert torch.equal(
            logits,
            type(model).from_pretrained(tmp_path / "exported").eval()(**FAMILIES[family].inputs(torch.bfloat16)).logits,
        )
        if model.can_generate():
            prompt = {
                key: value
                for key, value in FAMILIES[family].inputs(torch.bfloat16).items()
                if not key.startswith("decoder")
            }
            assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > 1
    model.dem.set_coefficients(dict.fromkeys(vectors, 0.0))
    for name, tensor in type(model).from_pretrained(paths[0]).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore:Casting complex values")  # as above; torch warns once in a process
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter(family: str, tmp_path: Path) -> None:
    """What is of low rank is kept as a PEFT adapter, and PEFT puts it where we do."""
    from peft import PeftModel

    base, first, _ = make(tmp_path, family)
    model = build(family)
    shake(model, 1, rank=2)
    model.to(torch.bfloat16).save_pretrained(first)
    vector = DistributionVector.extract(base, first, codec="lowrank", rank=8)
    vector.save_pretrained(tmp_path / "vector")
    assert vector.config is not None
    in_adapter = [name for name, record in vector.config.tensors.items() if record.module]
    if family == "mamba":  # PEFT takes no `out_proj` of it
        assert 0 < len(in_adapter) < sum(record.codec == "lowrank" for record in vector.config.tensors.values())
    else:
        assert len(in_adapter) == sum(record.codec == "lowrank" for record in vector.config.tensors.values())
    ours = DEMModel.from_pretrained(base, vectors={str(tmp_path / "vector"): 1.0}, dtype="float32")
    theirs = PeftModel.from_pretrained(
        type(ours).from_pretrained(base, dtype="float32"), tmp_path / "vector"
    ).merge_and_unload()
    alone = dict(theirs.named_parameters())
    beside = {name for name, record in vector.config.tensors.items() if not record.module}
    for name, parameter in ours.named_parameters():
        if name not in beside:
            torch.testing.assert_close(parameter, alone[name], rtol=1e-5, atol=1e-7)


def test_a_model_with_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is merged like any other, and its code runs only if the caller says so."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "modeling_wave.py").write_text(CUSTOM)
    import modeling_wave

    modeling_wave.WaveConfig.register_for_auto_class()
    modeling_wave.WaveModel.register_for_auto_class("AutoModel")
    try:
        torch.manual_seed(0)
        model = modeling_wave.WaveModel(modeling_wave.WaveConfig())
        model.save_pretrained(tmp_path / "base")
        shake_all(model)
        model.save_pretrained(tmp_path / "tuned")
    finally:
        sys.modules.pop("modeling_wave")
    DistributionVector.extract(tmp_path / "base", tmp_path / "tuned", codec="dense").save_pretrained(
        tmp_path / "vector"
    )
    vectors = {str(tmp_path / "vector"): 1.0}
    with pytest.raises(ValueError, match="trust_remote_code"):
        DEMModel.from_pretrained(tmp_path / "base", vectors=vectors)
    merged = DEMModel.from_pretrained(tmp_path / "base", vectors=vectors, trust_remote_code=True)
    tuned = load_tensors(tmp_path / "tuned")
    assert all(torch.allclose(tensor, tuned[name], rtol=2**-22) for name, tensor in merged.state_dict().items())
    assert merged(torch.ones(2, 16)).shape == (2, 16)
    assert resolve(VectorSource(str(tmp_path / "base")), MODEL_FILES).folder == tmp_path / "base"
    assert Base(resolve(VectorSource(str(tmp_path / "base")), MODEL_FILES)).architecture is None


def shake_all(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", list(PLAIN))
def test_plain_decoders_are_what_transformers_says(family: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **TEXT, head_dim=8, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    plain = describe_plain(read_config(tmp_path), checkpoint)
    assert plain is not None
    assert plain == describe(tmp_path, checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"tie_word_embeddings": None},
        {"key": "model.layers.0.self_attn.rotary_emb.inv_freq"},
    ],
    ids=str,
)
def test_everything_else_is_left_to_transformers(change: dict[str, Any]) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    keys = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    assert describe_plain(config, keys) is not None
    assert describe_plain({**config, **change}, [*keys, *([change["key"]] if "key" in change else [])]) is None
