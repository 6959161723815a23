"""Short runs of transformers' Trainer on tiny models, and the comparison of their vectors."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from dem_hub import DEMCallback, DistributionVector

DENSE = {"codec": "dense", "dtype": "float32"}


LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def rows(seed: int = 0, count: int = 48) -> list[dict[str, list[int]]]:
    """Return rows of eight random token ids."""
    drawn = torch.randint(4, 60, (count, 8), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


def arguments(folder: Path, kind: type[Any] = TrainingArguments, **changes: Any) -> Any:
    """Return arguments for four steps, with a save after every second step."""
    settings = {
        "output_dir": str(folder), "max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "per_device_train_batch_size": 4, "save_only_model": True,
    }  # fmt: skip
    return kind(**{**settings, **changes})


def train(
    model: Any, callback: DEMCallback, folder: Path, resume: bool = False, processing_class: Any = None, **changes: Any
) -> Trainer:
    settings = arguments(folder, **changes)
    data = {"train_dataset": rows(), "eval_dataset": rows(1, 8)}
    trainer = Trainer(model, settings, processing_class=processing_class, **data)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def assert_same_files(vector: DistributionVector, expected: DistributionVector) -> None:
    """Check that tensors and records are equal byte for byte. The rest of the config says where they come from."""
    assert vector.config is not None and expected.config is not None
    assert vector.config.files == expected.config.files
    assert vector.sha256 == expected.sha256
    assert vector.base == expected.base


def adapted(folder: Path, config: Any = None, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(load(folder, **options), config or LoraConfig(**LORA))


def begin(callback: DEMCallback, model: Any, settings: Any) -> None:
    from transformers import TrainerControl, TrainerState

    callback.on_train_begin(settings, TrainerState(), TrainerControl(), model=model)
