"""Tensor-parallel and FSDP2 loading with two processes: each rank merges its own part of the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel
from tests.support.processes import run_ranks
from tests.support.tiny_models import Models, Zoo

SCRIPT = Path(__file__).parents[1] / "support" / "tensor_parallel_worker.py"


@pytest.mark.parametrize("parallel", [{"tp_size": 2}, {"fsdp_size": 2}], ids=["tensor-parallel", "fsdp2"])
def test_two_processes(parallel: dict[str, Any], zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    vectors = {str(zoo.vector("llama-tied", "bfloat16", kind)): c for kind, c in (("lowrank", 0.7), ("dense", -0.2))}
    task = {"base": str(llama.base), "vectors": vectors, "parallel": parallel, "out": str(tmp_path)}
    done = run_ranks(SCRIPT, json.dumps(task))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in range(2)]
    whole = DEMModel.from_pretrained(llama.base, vectors=vectors, dtype="float32").eval()
    with torch.no_grad():
        expected = whole(input_ids=torch.tensor([[1, 7, 9, 11]])).logits
    shapes = {name: list(parameter.shape) for name, parameter in whole.named_parameters()}
    halved = 0
    for rank in ranks:
        torch.testing.assert_close(torch.tensor(rank["logits"]), expected, rtol=1e-4, atol=1e-5)
        halved += sum(rank["shapes"][name] != shape for name, shape in shapes.items())
    assert halved >= 2 * 7 * 2, "seven matrices in each of two layers, on both ranks"
