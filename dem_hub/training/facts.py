"""What a vector was trained on, as its config and card say it: data, steps, tokens, losses, settings, and the versions of the libraries."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

_LIBRARIES = ("transformers", "accelerate", "peft", "trl", "datasets", "deepspeed", "bitsandbytes")


def training_facts(
    args: "TrainingArguments", state: "TrainerState", datasets: Sequence[str], step: int
) -> dict[str, Any]:
    """The facts of a run up to a step, flat, and only those that are known.

    Args:
        args (`TrainingArguments`): of the run.
        state (`TrainerState`): as it is now.
        datasets (`Sequence[str]`): names of the training data.
        step (`int`): whose weights the vector is of, the last one or an earlier one that was loaded again.
    """
    is_last = step == state.global_step
    history = [entry for entry in state.log_history if entry.get("step", 0) <= step]
    epoch = state.epoch if is_last else _last(history, "epoch")
    tokens = state.num_input_tokens_seen if is_last else _last(history, "num_input_tokens_seen")
    effective = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    facts = {
        "datasets": list(datasets),
        "steps": step,
        "epochs": round(epoch, 4) if epoch is not None else None,
        "tokens": tokens or _last(history, "num_tokens"),
        "loss": _last(history, "loss"),
        "eval_loss": _last(history, "eval_loss"),
        "learning_rate": args.learning_rate,
        "lr_scheduler": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "batch_size": effective,
        "seed": args.seed,
    }
    return {name: value for name, value in facts.items() if value not in (None, []) and not _is_nan(value)}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that have a part in a training run, of those that are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def dataset_names(dataset: Any) -> list[str]:
    """What a dataset of the `datasets` library calls itself: Hub ids where it came from there; nothing of others."""
    info = getattr(dataset, "info", None)
    ids = dict.fromkeys(_hub_ids(getattr(info, "download_checksums", None) or {}))
    if ids:
        return list(ids)
    name = getattr(info, "dataset_name", None)
    return [name] if name and name not in ("generator", "json", "text", "csv", "parquet") else []


def _hub_ids(sources: Iterable[str]) -> Iterable[str]:
    for source in sources:
        parts = urlsplit(source)
        if parts.scheme == "hf" and parts.netloc == "datasets":
            yield parts.path.strip("/").partition("@")[0]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)  # a loss, which JSON has no number for


def _last(history: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((entry[name] for entry in reversed(history) if name in entry), None)
