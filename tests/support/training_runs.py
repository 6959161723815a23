"""Short runs of transformers' Trainer on tiny models, and the comparison of their vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from dem_hub import DEMCallback, DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.evaluation.likelihood import as_inputs, is_seq2seq
from dem_hub.evaluation.windows import Window
from dem_hub.hub.download import Resolved
from dem_hub.input_statistics.gathering import watching
from dem_hub.input_statistics.statistics_file import InputStatistics

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


LENGTHS = (9, 4, 12, 7, 7, 3)  # of the rows of `ragged`


def ragged(lengths: Sequence[int] = LENGTHS, seed: int = 5) -> list[dict[str, list[int]]]:
    """Return rows of random token ids, of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(4, 60, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


def pad(batch: list[dict[str, list[int]]], side: str = "right") -> dict[str, Tensor]:
    """Put rows of several lengths into one batch, as a data collator does."""
    width = max(len(row["input_ids"]) for row in batch)
    filled: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in batch:
        ids, space = row["input_ids"], width - len(row["input_ids"])
        values = {"input_ids": (ids, 3), "attention_mask": ([1] * len(ids), 0), "labels": (ids, -100)}
        for name, (own, filler) in values.items():
            padding = [filler] * space
            filled[name].append(own + padding if side == "right" else padding + own)
    return {name: torch.tensor(value) for name, value in filled.items()}


def one_by_one(model: Any, base: Path, data: Sequence[dict[str, list[int]]]) -> InputStatistics:
    """Return the statistics of a model without PEFT, from rows without padding."""
    architecture = Base(Resolved.local(base)).architecture
    assert architecture is not None
    with watching(model.eval(), architecture) as watch, torch.no_grad():
        for row in data:
            inputs = as_inputs([Window.of(row["input_ids"])], model.device)
            if not is_seq2seq(model):
                del inputs["labels"]
            model(**inputs)
    return watch.statistics("")


def assert_same_moments(found: InputStatistics, expected: InputStatistics, tolerance: float = 0.02) -> None:
    """Compare moments. Files have eigenvectors in bfloat16."""
    assert found.tokens == expected.tokens
    assert found.moments.keys() == expected.moments.keys()
    for key, moments in expected.moments.items():
        dense = moments.dense()
        torch.testing.assert_close(
            found.moments[key].dense(), dense, rtol=0, atol=tolerance * float(dense.abs().max()), msg=key
        )
