"""Training of a part of the steps: of one source in one round, or of the mixture.

The steps of a source are one sequence of blocks, whatever it is divided into: round k of K takes the k-th part. So the
first rounds of two and of four rounds are the first steps of the single fine-tune, and are kept on its way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from dem_hub.demo.training import BATCH_SIZE, BLOCK_SIZE, LORA_RANK, pack
from dem_hub.files.atomic import atomic_folder

STEP = BATCH_SIZE * BLOCK_SIZE  # tokens
WARMUP = 4  # steps, of a run that has no optimizer's state from before
OPTIMIZER = "optimizer.pt"

# Learning rates: of all weights, and of a LoRA.
RATE = 5e-5
LORA_RATE = 1e-3


@dataclass(frozen=True)
class Part:
    """What is trained: from which model, on which blocks, into which folder.

    Args:
        start (`Path`): The model to start from.
        blocks (`Sequence`): The blocks in their order, four a step.
        target (`Path`): Where the model goes.
        warmup (`int`): Steps until the learning rate is reached.
        state (`Path`, *optional*): The folder of an earlier part, with the optimizer's state to start from.
        keeps_state (`bool`): Whether the optimizer's state is saved.
        lora (`bool`): Whether a LoRA is trained.
        kept (`dict[int, Path]`): Folders for the model, and the optimizer's state, after so many steps on the way.
        seed (`int`): Decides a LoRA's first values.
    """

    start: Path
    blocks: Sequence[dict[str, Any]]
    target: Path
    warmup: int = WARMUP
    state: Path | None = None
    keeps_state: bool = False
    lora: bool = False
    kept: dict[int, Path] = field(default_factory=dict)
    seed: int = 0


def blocks_of(texts: list[str], tokenizer: Any, steps: int, seed: int) -> list[dict[str, Any]]:
    """Return the blocks of a source's steps in the order in which they are trained on."""
    blocks = pack(tokenizer, texts)[: BATCH_SIZE * steps]
    Random(seed).shuffle(blocks)
    return blocks


def train(part: Part) -> Path:
    """Train a part, unless it is done."""
    if part.target.is_dir():
        return part.target
    set_seed(part.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(part.start, dtype=torch.float32)
    if part.lora:
        model = _with_lora(model)
    tokenizer = AutoTokenizer.from_pretrained(part.start)
    with atomic_folder(part.target) as folder:
        trainer = Trainer(
            model,
            arguments(folder, len(part.blocks) // BATCH_SIZE, LORA_RATE if part.lora else RATE, part.warmup, part.seed),
            train_dataset=list(part.blocks),
            callbacks=[_Keep(part.kept, tokenizer)],
        )
        trainer.remove_callback(PrinterCallback)
        if part.state is not None:
            # The file is one of this run's own, and holds tensors and numbers.
            state = torch.load(part.state / OPTIMIZER, weights_only=True)  # noqa: TID251
            trainer.create_optimizer().load_state_dict(state)
        trainer.train()
        _save(model, tokenizer, folder)
        if part.keeps_state:
            torch.save(trainer.optimizer.state_dict(), folder / OPTIMIZER)
    return part.target


def arguments(folder: Path, steps: int, rate: float, warmup: int, seed: int) -> TrainingArguments:
    """Return the arguments of every run of the study: blocks in their order, at a constant rate, and nothing saved."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=warmup,
        train_sampling_strategy="sequential",
        seed=seed,
        bf16=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _with_lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


class _Keep(TrainerCallback):
    """Saves the model and the optimizer's state after some steps."""

    def __init__(self, folders: dict[int, Path], tokenizer: Any) -> None:
        self._folders = folders
        self._tokenizer = tokenizer

    def on_step_end(self, _args: Any, state: Any, _control: Any, **objects: Any) -> None:
        folder = self._folders.get(state.global_step)
        if folder is not None and not folder.is_dir():
            with atomic_folder(folder) as temporary:
                _save(objects["model"], self._tokenizer, temporary)
                torch.save(objects["optimizer"].state_dict(), temporary / OPTIMIZER)
