"""The pictures of vectors show their norms, for our own vectors and for LoRA adapters."""

import math
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tensor_groups import layer_number
from dem_hub.cli.app import main
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.vectors.comparison import Comparison
from dem_hub.vectors.norms import tensor_norms
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Zoo, load_tensors, make_adapter


@pytest.mark.parametrize("kind", ["dense", "adapter"])
def test_norms(zoo: Zoo, kind: str, tmp_path: Path) -> None:
    base = zoo.models("llama-tied", "float32").base
    folder = zoo.adapter("llama-tied") if kind == "adapter" else zoo.vector("llama-tied", "float32", kind)
    vector = DistributionVector.from_pretrained(folder)
    picture = vector.plot(tmp_path / "norms.png", base=base)
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    norms = tensor_norms(vector, Base(resolve(VectorSource(str(base)), MODEL_FILES)))
    drawn = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in picture.axes[0].lines}
    for kind_of_tensor, part in (("attention", ".self_attn."), ("mlp", ".mlp.")):
        for layer in (0, 1):
            inside = [norm for key, norm in norms.items() if part in key and layer_number(key) == layer]
            if inside:
                assert drawn[kind_of_tensor][layer] == pytest.approx(math.hypot(*inside))
    outside = {key.removesuffix(".weight"): norm for key, norm in norms.items() if layer_number(key) is None}
    if outside:
        lower = picture.axes[1]
        bars = dict(zip((text.get_text() for text in lower.get_yticklabels()), lower.patches, strict=True))
        assert {name: bar.get_width() for name, bar in bars.items()} == pytest.approx(outside)
    assert bool(outside) == (kind == "dense")


def test_norms_of_saved_modules_where_the_base_is_still_on_the_hub(
    hub: Hub, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norm of a module that PEFT saved whole is that of its difference to the base, and needs the base's weights."""
    base = zoo.models("llama-untied", "float32").base

    def move(model: Any) -> None:
        model.base_model.model.model.norm.modules_to_save["default"].weight.add_(0.5)

    make_adapter(base, tmp_path / "adapter", train=move, target_modules=["q_proj"], modules_to_save=["norm"], r=2)
    vector = DistributionVector.from_pretrained(tmp_path / "adapter")
    HfApi().create_repo("ann/base")
    HfApi().upload_folder(repo_id="ann/base", folder_path=base)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    (bar,) = vector.plot(base="ann/base").axes[1].patches
    assert bar.get_width() == pytest.approx(0.5 * math.sqrt(load_tensors(base)["model.norm.weight"].numel()))


def test_cosines(tmp_path: Path) -> None:
    cosines = ((1.0, -0.25), (-0.25, 1.0))
    comparison = Comparison(("me/maths", "/runs/chat"), (2.0, 8.0), cosines, cosines)
    picture = comparison.plot(tmp_path / "cosines.svg", theme="dark")
    assert (tmp_path / "cosines.svg").read_bytes().startswith(b"<?xml")
    matrix, bars = picture.axes
    assert matrix.images[0].get_array().tolist() == [list(row) for row in cosines]
    assert [bar.get_width() for bar in bars.patches] == [2.0, 8.0]
    assert [text.get_text() for text in matrix.get_yticklabels()] == ["maths  [1]", "chat  [2]"]


def test_info_draws(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = zoo.models("llama-tied", "float32").base
    paths = [str(zoo.vector("llama-tied", "float32", "dense")), str(zoo.adapter("llama-tied"))]
    assert main(["info", *paths, "--base", str(base), "--plot", str(tmp_path / "pictures"), "--theme", "dark"]) == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(names) == 6
    assert [name for name in names if name.startswith("cosines")] == ["cosines.png", "cosines.svg"]
    assert sum(name.startswith("norms-") for name in names) == 4
    assert "cosines" in capsys.readouterr().out
