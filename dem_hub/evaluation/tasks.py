"""Downstream tasks of lm-evaluation-harness (extra `eval`): scores of a model on a task as a whole, and on every item.

The harness is given the native model, loaded as everywhere, so a recipe is evaluated as it is used. The harness's own
index has some 15,000 names and takes seconds to read; if every task is in the caller's folder, only that folder is
read.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import ConfigError, MissingDependencyError, refuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Attributes of the harness's tasks that are not run, and why not.
_REFUSED = {"UNSAFE_CODE": "runs code that the model writes", "MULTIMODAL": "is of more than text"}

# The filter of a metric that has none, in the harness's results.
_NO_FILTER = "none"


@dataclass(frozen=True)
class TaskScore:
    """The scores of a model on one task, or on a group of tasks.

    `metrics`, and `errors`, which are standard errors where the harness has them, are by the harness's names: `acc`,
    or `exact_match,strict-match` if a filter comes first. `each` has the values of a metric for every item, in the
    order of the task's data; it is empty for a group.
    """

    items: int
    metrics: Mapping[str, float]
    errors: Mapping[str, float]
    each: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Tasks:
    """Names of tasks that exist, and the harness's index that has them."""

    names: tuple[str, ...]
    manager: Any


def find_tasks(names: Sequence[str], include_path: str | os.PathLike[str] | None = None) -> Tasks:
    """Look up tasks by name, before anything heavy is loaded.

    Args:
        names (`Sequence[str]`): Tasks, groups or tags of lm-evaluation-harness, or patterns of them such as `mmlu_*`.
        include_path (`str` or `os.PathLike`, *optional*): A folder with more tasks as YAML files. They come before
            the harness's own.

    Returns:
        [`Tasks`]: The names, in which every pattern is replaced by the tasks that match it.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If lm-evaluation-harness is not installed.
        [`~dem_hub.errors.ConfigError`]: If no names are given, the folder does not exist, or a name matches no task.
    """
    if not names:
        raise ConfigError("No task is named.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependencyError(
            f"Tasks need lm-evaluation-harness ({error}): pip install 'dem-hub[eval]'"
        ) from error

    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"'{include_path}' is not a folder; give one that has the tasks' YAML files.")
    folder = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=folder)
    matches = {name: manager.match_tasks([name]) for name in names}
    unknown = [name for name, matched in matches.items() if not matched]
    if unknown:
        _refuse_unknown(unknown, manager.all_tasks, folder)
    matched_names: list[str] = []
    for matched in matches.values():
        matched_names += matched
    return Tasks(tuple(dict.fromkeys(matched_names)), manager)


def score_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, TaskScore]:
    """Score a model on tasks.

    Args:
        model (`PreTrainedModel`): A model on the device where it is to run.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        tasks ([`Tasks`]): Tasks that [`find_tasks`] returned.
        limit (`int`, *optional*): How many items of each task are used, from the first. All of them by default.
        batch_size (`int`, *optional*, defaults to 8): Requests in a forward pass.

    Returns:
        `dict[str, TaskScore]`: Scores by task, and by group if a group was named.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `limit` or `batch_size` is below 1, or a task cannot be read, has images,
            or runs code that the model writes.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    numbers = {"limit": limit, "batch_size": batch_size}
    faults = [f"{name} is {value}; it must be 1 or more." for name, value in numbers.items() if _is_below_1(value)]
    if faults:
        raise ConfigError(" ".join(faults))
    loaded = _load(tasks)
    for task in loaded["tasks"].values():
        # The seed of `lm-eval` itself, so that few-shot examples are the same ones.
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    # The harness warns that options are ignored if it is given a model and not a name. No such option was given.
    logging.getLogger("lm_eval.models.huggingface").addFilter(_is_not_advice)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    # `simple_evaluate` would also ask git, pip and the drivers for their versions.
    results = evaluate(lm=wrapped, task_dict=loaded, limit=limit)
    samples = results["samples"]
    return {name: _task_score(values, samples.get(name, [])) for name, values in results["results"].items()}


def _is_below_1(value: int | None) -> bool:
    return value is not None and value < 1


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str], folder: str | None) -> None:
    from difflib import get_close_matches

    faults = []
    for name in unknown:
        close = get_close_matches(name, known)
        hint = f" (close to it: {', '.join(close)})" if close else ""
        faults.append(f"'{name}'{hint}")
    where = f"'{folder}' and in lm-evaluation-harness" if folder else "lm-evaluation-harness"
    refuse(
        ConfigError,
        f"No such task in {where}:",
        faults,
        "`lm-eval ls tasks` lists what there is; a folder of your own goes to include_path.",
    )


def _load(tasks: Tasks) -> Any:
    """Return the tasks and groups with their data, in the harness's own form."""
    built: list[Any] = []
    try:
        for name in tasks.names:
            loaded = tasks.manager.load(name)
            if name in loaded["groups"]:
                built.append(loaded["groups"][name])
            else:
                built += loaded["tasks"].values()
        # All in one, which refuses a task that is named twice, alone and in a group.
        loaded = tasks.manager.load(built)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The tasks {', '.join(tasks.names)} cannot be read: {str(error).strip()}") from error
    faults: list[str] = []
    for name, task in loaded["tasks"].items():
        faults += [f"'{name}' {why}" for attribute, why in _REFUSED.items() if getattr(task, attribute, False)]
    if faults:
        refuse(
            ConfigError,
            "These tasks are not run here:",
            faults,
            "Run them with lm-eval itself, on a merged model (`dem-hub merge`).",
        )
    return loaded


def _task_score(values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskScore:
    """Sort out the harness's results of a task: `{"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 20, ...}`."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        target = errors if metric.endswith("_stderr") else metrics
        target[_metric_name(metric.removesuffix("_stderr"), filter_name)] = float(value)
    each: dict[str, list[float]] = {}
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        for name, value in _sample_values(sample):
            each.setdefault(name, []).append(value)
    items = int(values.get("sample_len", 0))
    return TaskScore(items, metrics, errors, {name: tuple(column) for name, column in each.items()})


def _sample_values(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each metric of one item that is a number."""
    for metric in sample["metrics"]:
        if isinstance(sample[metric], int | float):
            yield _metric_name(metric, sample["filter"]), float(sample[metric])


def _metric_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == _NO_FILTER else f"{metric},{filter_name}"


def _is_not_advice(record: logging.LogRecord) -> bool:
    return "pretrained" not in record.getMessage()
