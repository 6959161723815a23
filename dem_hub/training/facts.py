"""Training facts for a vector's config and card: data, steps, tokens, losses, settings, and the versions of the
libraries.

Only what is known is stated. The facts describe the weights that the vector was taken from: after
`load_best_model_at_end` those are the weights of an earlier step, and later entries of the log are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

# `dataset_name` of data that was loaded from files or from memory: the name of the loader, which says nothing about
# the data.
_LOADERS = ("generator", "json", "text", "csv", "parquet")

_LIBRARIES = ("transformers", "accelerate", "peft", "trl", "datasets", "deepspeed", "bitsandbytes")


def training_facts(
    args: "TrainingArguments", state: "TrainerState", datasets: Sequence[str], step: int
) -> dict[str, Any]:
    """Return the facts of a run up to a step, as a flat dict of those that are known.

    Args:
        args (`TrainingArguments`): The Trainer's arguments.
        state (`TrainerState`): The Trainer's state now.
        datasets (`Sequence[str]`): Names of the training data.
        step (`int`): The optimizer step whose weights the vector has: the last one, or an earlier one that was
            loaded again.
    """
    history = [entry for entry in state.log_history if entry.get("step", 0) <= step]
    if step == state.global_step:
        epoch = state.epoch
        tokens = state.num_input_tokens_seen
    else:
        epoch = _last(history, "epoch")
        tokens = _last(history, "num_input_tokens_seen")
    facts = {
        "datasets": list(datasets),
        "steps": step,
        "epochs": None if epoch is None else round(epoch, 4),
        "tokens": tokens or _last(history, "num_tokens"),
        "loss": _last(history, "loss"),
        "eval_loss": _last(history, "eval_loss"),
        "learning_rate": args.learning_rate,
        "lr_scheduler": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "seed": args.seed,
    }
    return {name: value for name, value in facts.items() if value not in (None, []) and not _is_nan(value)}


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that take part in a training run, by name."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def dataset_names(dataset: Any) -> list[str]:
    """Return the names of a dataset of the `datasets` library.

    Args:
        dataset (`Any`): The training data of any kind.

    Returns:
        `list[str]`: Hub ids if it was downloaded from the Hub, else its own name; empty if it has none.
    """
    info = getattr(dataset, "info", None)
    hub_ids = dict.fromkeys(_hub_ids(getattr(info, "download_checksums", None) or {}))
    if hub_ids:
        return list(hub_ids)
    name = getattr(info, "dataset_name", None)
    if not name or name in _LOADERS:
        return []
    return [name]


def _hub_ids(sources: Iterable[str]) -> Iterable[str]:
    for source in sources:
        parts = urlsplit(source)
        if parts.scheme == "hf" and parts.netloc == "datasets":
            yield parts.path.strip("/").partition("@")[0]


def _is_nan(value: Any) -> bool:
    """Check for a loss that is NaN or infinite, for which JSON has no number."""
    return isinstance(value, float) and not isfinite(value)


def _last(history: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return the newest value of a log, or `None`."""
    for entry in reversed(history):
        if name in entry:
            return entry[name]
    return None
