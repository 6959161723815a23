"""Where numba cannot be loaded, torch merges with the same bits; where it can, it is loaded once there is much to merge."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dem_hub import DEMModel, DistributionVector
from dem_hub.cli import main
from dem_hub.merging import lazy
from dem_hub.numerics import passes, rounding
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.products import Product
from dem_hub.numerics.rounding import round_into
from dem_hub.numerics.slices import full_index
from tests.support.tiny_models import Models, Zoo

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where the import fails."""
    monkeypatch.setitem(sys.modules, "dem_hub.numerics.kernels", None)
    monkeypatch.delattr("dem_hub.numerics.kernels", raising=False)
    passes._load.cache_clear()
    yield
    passes._load.cache_clear()


def rounded(dtype: torch.dtype, *, factors: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (37, 301)
    total = torch.randn(shape, generator=generator, dtype=torch.float64)
    product = None
    if factors:
        product = Product.of(torch.randn(37, 5, generator=generator), torch.randn(5, 301, generator=generator))
    result = torch.empty(shape, dtype=dtype)
    noise = Noise.of(3, "weight", full_index(shape), shape, torch.device("cpu"))
    assert round_into(result, total, product, noise)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [False, True])
def test_torch_rounds_to_the_same_bits(request: pytest.FixtureRequest, dtype: torch.dtype, factors: bool) -> None:
    compiled = rounded(dtype, factors=factors)
    request.getfixturevalue("without_numba")
    assert torch.equal(rounded(dtype, factors=factors), compiled)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["dense", "lowrank", "lossy"])
def test_models_are_the_same(
    request: pytest.FixtureRequest, zoo: Zoo, llama: Models, dtype: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = {str(zoo.vector("llama-tied", "bfloat16", kind)): 0.3}
    compiled = DEMModel.from_pretrained(llama.base, vectors=vectors, dtype=dtype).state_dict()
    request.getfixturevalue("without_numba")
    found = DEMModel.from_pretrained(llama.base, vectors=vectors, dtype=dtype).state_dict()
    assert all(torch.equal(found[name], compiled[name]) for name in compiled)
    said = [record for record in caplog.records if "numba cannot be loaded" in record.getMessage()]
    assert len(said) == (dtype != "float32" or kind != "lowrank")


def test_threads_that_begin_together_say_it_once(
    without_numba: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Barrier(4)

    @contextmanager
    def slowly() -> Iterator[None]:
        time.sleep(0.05)  # as where there is something to load, so that the others come meanwhile
        yield

    def ask(_: int) -> object:
        start.wait()
        return passes.kernels()

    monkeypatch.setattr(passes, "collections_paused", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [None] * 4
    assert len(caplog.records) == 1


def test_extraction_and_export_are_the_same(
    request: pytest.FixtureRequest, llama: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every way through the package: what is extracted, and what is written, are the same bytes, and it is said once."""

    def made(folder: Path) -> dict[str, bytes]:
        vectors = {}
        for codec, coefficient in {"auto": 0.3, "lrsign": 0.2, "int4": -0.1, "exact": 0.4}.items():
            vector = DistributionVector.extract(llama.base, llama.full, codec=codec)
            vectors[codec] = coefficient
            vector.save_pretrained(folder / codec)
        named = [word for codec, value in vectors.items() for word in ("--vector", f"{folder / codec}={value}")]
        assert main(["merge", str(llama.base), *named, "--output", str(folder / "merged")]) == 0
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}

    compiled = made(tmp_path / "compiled")
    request.getfixturevalue("without_numba")
    assert made(tmp_path / "torch") == compiled
    assert len([record for record in caplog.records if "numba cannot be loaded" in record.getMessage()]) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_merge_that_torch_begins_and_compiled_passes_end_is_the_same(
    zoo: Zoo, llama: Models, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {str(zoo.vector("llama-tied", "bfloat16", "lossy")): 0.3}
    compiled = DEMModel.from_pretrained(llama.base, vectors=vectors, dtype=dtype).state_dict()
    size = sum(tensor.numel() for tensor in compiled.values())
    monkeypatch.setattr(lazy, "expect_work", lambda _: None)  # as if each tensor was the first that is known
    for by_torch in (size // 3, 2 * size):
        monkeypatch.setattr(passes, "BY_TORCH", by_torch)
        monkeypatch.setattr(passes, "_elements", 0)
        monkeypatch.setattr(passes, "_expected", 0)
        found = DEMModel.from_pretrained(llama.base, vectors=vectors, dtype=dtype).state_dict()
        assert (passes.kernels() is None) == (by_torch > size)
        assert all(torch.equal(found[name], compiled[name]) for name in compiled)


def test_a_large_load_has_the_compiled_passes_from_its_first_tensor(
    zoo: Zoo, llama: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("torch merged")

    monkeypatch.setattr(passes, "BY_TORCH", 10_000)  # less than the model has, and more than its first tensors
    monkeypatch.setattr(passes, "_elements", 0)
    monkeypatch.setattr(passes, "_expected", 0)
    monkeypatch.setattr(rounding, "round_by_torch", refuse)
    DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied", "bfloat16", "lossy")): 0.3})
    assert passes.kernels() is not None


def test_what_is_announced_and_then_merged_counts_once(
    zoo: Zoo, llama: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {str(zoo.vector("llama-tied", "bfloat16", "lossy")): 0.3}
    size = sum(tensor.numel() for tensor in DEMModel.from_pretrained(llama.base, vectors=vectors).state_dict().values())
    monkeypatch.setattr(passes, "BY_TORCH", size)
    monkeypatch.setattr(passes, "_elements", 0)
    monkeypatch.setattr(passes, "_expected", 0)
    DEMModel.from_pretrained(llama.base, vectors=vectors)
    assert passes._elements > size / 2
    assert passes.kernels() is None


def test_a_merge_of_a_tiny_model_loads_no_numba(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    vector = zoo.vector("llama-tied", "bfloat16", "lossy")
    words = ["merge", str(llama.base), "--vector", f"{vector}=0.3", "--output", str(tmp_path / "merged")]
    code = f"import sys\nfrom dem_hub.cli import main\nmain({words!r})\nprint('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    expected = tmp_path / "expected"
    assert main([*words[:-1], str(expected)]) == 0
    weights = "model.safetensors"
    assert (tmp_path / "merged" / weights).read_bytes() == (expected / weights).read_bytes()
