"""No result depends on torch's default dtype or device, which transformers changes while any thread loads a model."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dem_hub
from dem_hub import DEMModel
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.rounding import round_by_torch
from dem_hub.numerics.slices import full_index
from tests.codecs.test_conformance import VARIANTS, decode, encode, pair
from tests.models.helpers import base_and_two_vectors, same_tensors, state_of
from tests.support.tiny_models import Zoo

ROOT = Path(dem_hub.__file__).parent
FOLDERS = (
    "checkpoints", "codecs", "evaluation", "files", "hub", "input_statistics", "mergekit", "merging", "mixer", "models",
    "numerics", "planning", "search", "serving", "training", "transformations", "vectors",
)  # fmt: skip

# The functions of torch that make a tensor on the default device, and those of them with the default dtype.
FLOATS = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "linspace", "logspace"}
OTHERS = {"arange", "tensor", "as_tensor", "asarray", "scalar_tensor", "randint", "randperm", "tril_indices"}


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = pytest.mark.parametrize(
    ("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")], ids=str
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_new_tensor_names_its_device_and_dtype(folder: str) -> None:
    faults = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not isinstance(node.func.value, ast.Name) or node.func.value.id != "torch":
                continue
            given = {keyword.arg for keyword in node.keywords}
            needed = {"device"} if node.func.attr in OTHERS else set()
            if node.func.attr in FLOATS:
                needed = {"dtype", "device"}
            if needed - given:
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno} torch.{node.func.attr}: {needed - given}")
    # A device that is asked for by name, to see whether it exists.
    assert [fault for fault in faults if "models/arguments.py" not in fault] == []


@DEFAULTS
@pytest.mark.parametrize("variant", VARIANTS)
def test_codecs(variant: str, dtype: torch.dtype, device: str) -> None:
    base, finetuned = pair((6, 200), torch.bfloat16)
    expected = encode(variant, base, finetuned)
    decoded = decode(variant, expected, base)
    with defaults(dtype, device):
        again = encode(variant, base, finetuned)
        assert all(torch.equal(again[name].tensor, part.tensor) for name, part in expected.items())
        assert torch.equal(decode(variant, expected, base), decoded)


@DEFAULTS
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_on_an_accelerator(target: torch.dtype, dtype: torch.dtype, device: str) -> None:
    shape = (40, 50)
    total = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4

    def rounded() -> Tensor:
        result = torch.empty(shape, dtype=target, device="cpu")
        round_by_torch(result, total, Noise.of(0, "w", full_index(shape), shape, torch.device("cpu")))
        return result

    expected = rounded()
    with defaults(dtype, device):
        assert torch.equal(rounded(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["llama-tied", "mixtral"])
def test_loads_and_changes(zoo: Zoo, family: str, dtype: torch.dtype) -> None:
    base, first, second = base_and_two_vectors(zoo, family)
    expected = state_of(DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6}))
    with defaults(dtype, "cpu"):
        model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: 0.1})
        model.dem.set_coefficients({first: 0.3, second: 0.6})
        assert torch.get_default_dtype() == dtype
    assert same_tensors(state_of(model), expected)


def test_changes_within_the_meta_device(zoo: Zoo) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: 0.1})
    with torch.device("meta"):
        model.dem.set_coefficients({first: 0.3, second: 0.6})
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})))
