"""Brief fine-tunes with transformers' own `Trainer`: every weight (`train`) or a LoRA (`train_lora`), a minute or so
on two CPU cores.

Weights are float32 under bfloat16 autocast and are saved as float32: a short run moves most weights by less than half
a step of bfloat16's grid, and a checkpoint saved in bfloat16 would lose half of what was learnt before the vector is
ever taken. What the Trainer usually leaves behind (optimizer state, `training_args.bin`) is not written at all: the
folder holds the model and nothing else.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.checkpoints.writer import system_errors
from dem_hub.errors import MissingDependencyError
from dem_hub.files.atomic import atomic_folder

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

logger = logging.getLogger(__name__)

# Sequences in a batch, tokens in a sequence, and the rank of a LoRA: chosen by hand, so that 24 steps take a minute
# or so on two cores.
BATCH_SIZE = 4
BLOCK_SIZE = 128
LORA_RANK = 16

# The token `<|endoftext|>`, which SmolLM2 saw between documents in its own training.
SEPARATOR = 0

# Steps until the learning rate is reached. Chosen by hand, not measured.
_WARMUP = 4


def train(
    base: Path,
    texts: list[str],
    output_dir: Path,
    *,
    steps: int = 24,
    learning_rate: float = 5e-5,
    seed: int = 0,
) -> Path:
    """Fine-tune every weight and save a float32 checkpoint with its tokenizer.

    Args:
        base (`Path`): Folder of the model to start from.
        texts (`list[str]`): Documents to train on. They are packed, so short ones cost no padding.
        output_dir (`Path`): Where the checkpoint goes. If it exists it is reused, whatever its settings were.
        steps (`int`, *optional*, defaults to 24): Optimizer steps, of 4 sequences of 128 tokens each (on each device).
        learning_rate (`float`, *optional*, defaults to 5e-5): Constant after a short warm-up.
        seed (`int`, *optional*, defaults to 0): Decides the order of the sequences.

    Returns:
        `Path`: `output_dir`.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If `accelerate`, which the Trainer needs, is not installed.
    """
    return _run(base, texts, output_dir, None, steps=steps, learning_rate=learning_rate, seed=seed)


def train_lora(
    base: Path,
    texts: list[str],
    output_dir: Path,
    *,
    steps: int = 24,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Path:
    """Train a LoRA of rank 16 on every linear layer and save the adapter, as PEFT does.

    Args:
        base (`Path`): Folder of the model to start from; the adapter's config names it.
        texts (`list[str]`): Documents to train on.
        output_dir (`Path`): Where the adapter goes. If it exists it is reused, whatever its settings were.
        steps (`int`, *optional*, defaults to 24): Optimizer steps, of 4 sequences of 128 tokens each (on each device).
        learning_rate (`float`, *optional*, defaults to 1e-3): Constant after a short warm-up; a LoRA wants a higher
        one. seed (`int`, *optional*, defaults to 0): Decides the adapter's first values and the order of the
        sequences.

    Returns:
        `Path`: `output_dir`.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If `peft`, or `accelerate`, which the Trainer needs, is not
        installed.
    """
    return _run(base, texts, output_dir, _with_lora, steps=steps, learning_rate=learning_rate, seed=seed)


def pack(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[dict[str, "Tensor"]]:
    """Tokenize documents, join them with the separator and cut the stream into sequences of `BLOCK_SIZE`; the rest is
    dropped.

    Raises:
        `ValueError`: If the documents do not fill one sequence.
    """
    import torch

    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text)["input_ids"], SEPARATOR]
    count = len(stream) // BLOCK_SIZE
    if count == 0:
        raise ValueError(
            f"The training texts have {len(stream)} tokens, less than the {BLOCK_SIZE} of one sequence. Give more text."
        )
    blocks = torch.tensor(stream[: count * BLOCK_SIZE]).view(count, BLOCK_SIZE)
    return [{"input_ids": block, "labels": block} for block in blocks]


def _run(
    base: Path,
    texts: list[str],
    output_dir: Path,
    adapt: "Callable[[PreTrainedModel], PeftModel] | None",
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> Path:
    """Train the base, or the model that `adapt` makes of it, and save that model and nothing else."""
    if output_dir.is_dir():
        logger.info("Fine-tune: reusing %s", output_dir)
        return output_dir
    _require("accelerate")

    import torch
    from huggingface_hub.utils.tqdm import tqdm  # `HF_HUB_DISABLE_PROGRESS_BARS` switches it off
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Trainer, set_seed

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = base_model if adapt is None else adapt(base_model)
    bar = tqdm(total=steps, desc=f"Training {output_dir.name}", unit="step")
    with bar, atomic_folder(output_dir) as temporary, system_errors():
        trainer = Trainer(
            model=model,
            args=_arguments(temporary, steps=steps, learning_rate=learning_rate, seed=seed),
            train_dataset=pack(tokenizer, texts),
            callbacks=[_advance(bar)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, where only data belongs
        trainer.train()
        model.save_pretrained(str(temporary))
        if adapt is None:
            tokenizer.save_pretrained(temporary)
    logger.info("Fine-tune: saved in %s", output_dir)
    return output_dir


def _arguments(folder: Path, *, steps: int, learning_rate: float, seed: int) -> "TrainingArguments":
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=_WARMUP,
        seed=seed,
        bf16=_has_fast_bf16(),
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _has_fast_bf16() -> bool:
    """Return whether bfloat16 autocast saves time here.

    A processor without AVX-512 emulates it, slower than float32.
    """
    import torch

    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def _with_lora(model: "PreTrainedModel") -> "PeftModel":
    _require("peft")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for an attribute under its old name; the user can do nothing about it.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _advance(bar: "tqdm") -> "TrainerCallback":
    from transformers import TrainerCallback

    class Advance(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            bar.update()

    return Advance()


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(
            f"The demo trains with the package '{package}', which is not installed. Run `pip install {package}`."
        )
