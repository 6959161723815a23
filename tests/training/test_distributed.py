"""Several processes: DDP and ZeRO-3 in a real Trainer, and shards (FSDP2) that are put together one at a time. Only the main process writes."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMModel, DistributionVector
from dem_hub.vectors.statistics_beside import read_statistics
from tests.fake_hub.server import Hub
from tests.support.processes import run_ranks
from tests.support.tiny_models import Models, Zoo, load_tensors
from tests.support.training_runs import assert_same_moments, load, one_by_one, ragged

DENSE = {"codec": "dense", "dtype": "float32"}

DDP = """
import sys, torch
from tests.support.training_runs import DENSE, arguments, rows
from transformers import AutoModelForCausalLM, Trainer
from dem_hub import DEMCallback

base, run = sys.argv[1:]
callback = DEMCallback("org/base", when="save", push_to_hub=True, hub_model_id="ann/maths", **DENSE)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
trainer = Trainer(model, arguments(run, ddp_backend="gloo"), train_dataset=rows(), callbacks=[callback])
trainer.train()
assert trainer.args.world_size == 2
if trainer.is_world_process_zero():
    print("norms", len([entry for entry in trainer.state.log_history if "dem/norm" in entry]))
else:
    assert callback.folder is None
"""

# The Trainer shards on an accelerator only, so its events are called here as it calls them.
FSDP = """
import sys, torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState
from tests.support.training_runs import DENSE, LORA, arguments, rows
from dem_hub import DEMCallback

base, run = sys.argv[1:]
distributed.init_process_group("gloo")
rank = distributed.get_rank()


def build(kind):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**LORA)) if kind == "lora" else model


def train(kind, folder):
    model = build(kind)
    for layer in (model.get_base_model() if kind == "lora" else model).model.layers:
        fully_shard(layer)
    fully_shard(model)
    settings, control = arguments(folder), TrainerControl()
    state = TrainerState(is_world_process_zero=rank == 0, is_local_process_zero=True)
    try:
        DEMCallback("/nowhere").on_train_begin(settings, state, control, model=model)
    except (FileNotFoundError, ValueError) as error:
        assert "'/nowhere' is not a local folder, and not a Hub id" in str(error)
    else:
        raise AssertionError("no refusal")
    callback = DEMCallback(base, when="save", **({} if kind == "lora" else DENSE))
    callback.on_train_begin(settings, state, control, model=model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        ids = torch.tensor([rows()[2 * step + rank]["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state.global_step = 2
    with torch.no_grad():
        model(input_ids=ids)  # an evaluation leaves the root's weights whole
    callback.on_save(settings, state, control, model=model)
    callback.on_train_end(settings, state, control, model=model)
    with torch.no_grad():
        model(input_ids=ids)  # and the model goes on working
    state_dict = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if rank == 0:
        assert callback.vector
        saved = build(kind)
        saved.load_state_dict(state_dict)
        saved.save_pretrained(folder + "/saved")
    else:
        assert callback.folder is None


for kind in ("full", "lora"):
    train(kind, f"{run}/{kind}")
distributed.barrier()
"""

ZERO = """
import sys, torch
from peft import LoraConfig, get_peft_model
from tests.support.training_runs import DENSE, LORA, arguments, rows
from transformers import AutoModelForCausalLM, Trainer
from dem_hub import DEMCallback

base, run = sys.argv[1:]
zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
own = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "train_micro_batch_size_per_gpu": "auto"}
for kind in ("full", "lora"):
    settings = arguments(f"{run}/{kind}", deepspeed={"zero_optimization": zero, **own})
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if kind == "lora":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(**LORA))
    callback = DEMCallback(base, when="save", **({} if kind == "lora" else DENSE))
    trainer = Trainer(model, settings, train_dataset=rows(), callbacks=[callback])
    trainer.train()
    assert trainer.args.world_size == 2 and all(hasattr(parameter, "ds_id") for parameter in model.parameters())
    assert (callback.folder is None) == (not trainer.is_world_process_zero())
"""


# Each process runs over half of the rows. What the Trainer shards on an accelerator only is sharded here by hand.
STATISTICS = """
import sys, torch
from torch.distributed.fsdp import fully_shard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer
from tests.support.training_runs import DENSE, LORA, arguments, pad, ragged, rows
from dem_hub import DEMCallback
from dem_hub.errors import ConfigError

moe, llama, run = sys.argv[1:]


def build(base, folder, kind):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(**LORA))
    settings = arguments(folder, ddp_backend="gloo", per_device_eval_batch_size=2, save_strategy="no")
    trainer = Trainer(model, settings, train_dataset=rows(), eval_dataset=ragged((9, 4, 12, 7, 7, 3, 5, 8)), data_collator=pad)
    callback = DEMCallback(base, input_statistics=True, **({} if kind == "lora" else DENSE)).attach(trainer)
    return trainer, callback


def shard(trainer, kind):
    for layer in (trainer.model.get_base_model() if kind == "lora" else trainer.model).model.layers:
        fully_shard(layer)
    fully_shard(trainer.model)


trainer, callback = build(moe, run + "/ddp", "full")
trainer.train()
assert trainer.args.world_size == 2
assert (callback.folder is None) == (not trainer.is_world_process_zero())

for kind in ("full", "lora"):
    trainer, callback = build(llama, f"{run}/{kind}", kind)
    shard(trainer, kind)
    events = (trainer.args, trainer.state, trainer.control)
    callback.on_train_begin(*events, model=trainer.model)
    callback.on_train_end(*events, model=trainer.model)
    assert (callback.folder is None) == (not trainer.is_world_process_zero())

trainer, callback = build(moe, run + "/moe", "full")
shard(trainer, "full")
try:
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
except ConfigError as error:
    assert "FSDP2 shards the experts" in str(error)
else:
    raise AssertionError("no refusal")
"""


@pytest.mark.slow
def test_ddp(hub: Hub, llama: Models, tmp_path: Path) -> None:
    """One vector, and one push a save."""
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo("org/base")
    HfApi().upload_folder(repo_id="org/base", folder_path=llama.base)
    done = run_ranks(DDP, llama.base, tmp_path / "run", environment=hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "norms 2" in done.stdout
    vector = DistributionVector.from_pretrained(tmp_path / "run" / "vector")
    assert vector.sha256 == DistributionVector.extract(llama.base, tmp_path / "run" / "checkpoint-4", **DENSE).sha256
    assert DistributionVector.from_pretrained("ann/maths").sha256 == vector.sha256
    assert len(hub.requests("POST", "/repos/create")) <= 1 + 3, (
        "one before training and one for each push, whatever the processes"
    )


@pytest.mark.slow
def test_fsdp2(llama: Models, tmp_path: Path) -> None:
    """What is sharded is put together by all; what the main process refuses is refused by all; nobody waits for anybody at the end."""
    done = run_ranks(FSDP, llama.base, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    full, lora = tmp_path / "run" / "full", tmp_path / "run" / "lora"
    vector = DistributionVector.from_pretrained(full / "vector")
    assert vector.sha256 == DistributionVector.extract(llama.base, full / "saved", **DENSE).sha256
    ours, saved = (load_tensors(lora / name, "adapter_model") for name in ("vector", "saved"))
    assert ours.keys() == saved.keys() and all(torch.equal(ours[name], saved[name]) for name in saved)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero3(llama: Models, tmp_path: Path) -> None:
    done = run_ranks(ZERO, llama.base, tmp_path / "run", environment={**os.environ, "DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]
    full, lora = tmp_path / "run" / "full", tmp_path / "run" / "lora"
    expected = DistributionVector.extract(llama.base, full / "checkpoint-4", **DENSE)
    assert DistributionVector.from_pretrained(full / "vector").sha256 == expected.sha256
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (lora / "vector" / name).read_bytes() == (lora / "checkpoint-4" / name).read_bytes()


def test_what_no_process_can_read() -> None:
    from dem_hub.errors import CheckpointError
    from dem_hub.training.gathering import Gathering

    with torch.device("meta"):
        model: Any = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="2 weights are offloaded"):
        Gathering(model)


@pytest.mark.slow
def test_input_statistics(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    """The tokens of both processes count, also for an expert that those of one of them did not reach."""
    moe = zoo.models("qwen2-moe").base
    done = run_ranks(STATISTICS, moe, llama.base, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    data = ragged((9, 4, 12, 7, 7, 3, 5, 8))
    vector = DistributionVector.from_pretrained(tmp_path / "run" / "ddp" / "vector")
    trained = DEMModel.from_pretrained(moe, vectors={str(vector.folder): 1.0}, dtype="float32")
    assert_same_moments(read_statistics(vector), one_by_one(trained, moe, data))
    # The others ended before their first step, so they are the base.
    for kind in ("full", "lora"):
        found = read_statistics(DistributionVector.from_pretrained(tmp_path / "run" / kind / "vector"))
        assert_same_moments(found, one_by_one(load(llama.base), llama.base, data))
