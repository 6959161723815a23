"""Norms and cosines against flattened float64 vectors."""

import pytest
import torch

from dem_hub import DistributionVector, VectorSource
from dem_hub.checkpoints.base_model import Base
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.vectors.comparison import compare
from dem_hub.vectors.norms import tensor_norms
from tests.support.tiny_models import Zoo, adapter_deltas, load_tensors, read_deltas

KINDS = ["dense", "short", "lowrank", "lossy", "adapter"]


@pytest.mark.parametrize("family", ["llama-untied", "gpt2"])
def test_compare(zoo: Zoo, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dem_hub.vectors.norms._BLOCK", 500)  # several blocks a tensor
    base = zoo.models(family, "float32").base
    folders = [zoo.adapter(family) if kind == "adapter" else zoo.vector(family, "float32", kind) for kind in KINDS]
    found = compare(
        [DistributionVector.from_pretrained(folder) for folder in folders],
        Base(resolve(VectorSource(str(base)), MODEL_FILES)),
    )
    tensors = load_tensors(base)
    deltas = [
        adapter_deltas(folder, tensors, 2.0) if folder.name == "adapter" else read_deltas(folder) for folder in folders
    ]
    flat = torch.stack(
        [
            torch.cat([delta.get(name, torch.zeros_like(tensors[name])).double().flatten() for name in tensors])
            for delta in deltas
        ]
    )
    norms = flat.norm(
        dim=1
    )  # of what was kept; from projections, which truncation in float32 meets to a few parts in 100,000
    torch.testing.assert_close(torch.tensor(found.norms, dtype=torch.float64), norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        torch.tensor(found.cosines, dtype=torch.float64), flat @ flat.T / norms / norms[:, None], rtol=0, atol=1e-4
    )
    assert found.names == tuple(map(str, folders))


def test_a_zero_vector_has_no_direction(zoo: Zoo) -> None:
    models = zoo.models("llama-tied")
    zero = DistributionVector.extract(models.base, models.base)
    other = DistributionVector.from_pretrained(zoo.vector("llama-tied"))
    found = compare([zero, other], Base(resolve(VectorSource(str(models.base)), MODEL_FILES)))
    assert found.norms[0] == 0
    assert found.cosines[0] == (0.0, 0.0)
    assert found.cosines[1][1] == pytest.approx(1)


def test_noise_is_no_length(zoo: Zoo) -> None:
    """The same fine-tune by an unbiased codec, and whole: the same norm, and no angle between them but what sampling leaves."""
    models = zoo.models("llama-untied", "float32")
    vectors = [
        DistributionVector.extract(models.base, models.full, codec=codec, **options)
        for codec, options in (("dense", {}), ("sign", {}), ("random", {"density": 0.5}))
    ]
    found = compare(vectors, Base(resolve(VectorSource(str(models.base)), MODEL_FILES)))
    assert found.norms == pytest.approx([found.norms[0]] * 3, rel=0.05)
    assert found.cosines[0][1:] == pytest.approx((1, 1), abs=0.05)


@pytest.mark.parametrize("kind", ["dense", "lowrank", "adapter"])
def test_tensor_norms(zoo: Zoo, kind: str) -> None:
    base = zoo.models("gpt2", "float32").base
    folder = zoo.adapter("gpt2") if kind == "adapter" else zoo.vector("gpt2", "float32", kind)
    found = tensor_norms(
        DistributionVector.from_pretrained(folder), Base(resolve(VectorSource(str(base)), MODEL_FILES))
    )
    deltas = adapter_deltas(folder, load_tensors(base), 2.0) if kind == "adapter" else read_deltas(folder)
    assert found.keys() == deltas.keys()
    for name, delta in deltas.items():
        assert found[name] == pytest.approx(float(delta.norm()), rel=1e-5)  # lowrank: of the delta before it was cut
