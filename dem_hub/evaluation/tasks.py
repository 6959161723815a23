"""Downstream tasks, through lm-evaluation-harness (extra `eval`): what a model scores, item by item.

The harness gets the native model, loaded as everywhere, so a recipe is evaluated as it is used. Its own index has some 15,000 names and takes seconds
to read; where every name is a task in the caller's folder, that folder alone is read.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import ConfigError, MissingDependencyError, refuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskScore:
    """What a model scores on one task, or on a group of tasks.

    `metrics` and `errors` (standard errors, where there are any) are by the harness's names: `acc`, or `exact_match,strict-match` where a
    filter comes first. `each` has a metric's value for every item, in the order of the task's data; a group has none.
    """

    items: int
    metrics: Mapping[str, float]
    errors: Mapping[str, float]
    each: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Tasks:
    """Names of tasks that exist, and the harness's index that knows them."""

    names: tuple[str, ...]
    manager: Any


def find_tasks(names: Sequence[str], include_path: str | os.PathLike[str] | None = None) -> Tasks:
    """Look for tasks by name, before anything heavy is loaded.

    Args:
        names (`Sequence[str]`): tasks, groups or tags of lm-evaluation-harness, or patterns of them such as `mmlu_*`.
        include_path (`str` or `os.PathLike`, *optional*): folder with more tasks as YAML, which come before the harness's own.

    Returns:
        [`Tasks`]: with patterns replaced by what they match.

    Raises:
        `MissingDependencyError`: lm-evaluation-harness is not installed.
        `ConfigError`: no names, no such folder, or names that nothing is called by.
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
    unknown = [name for name, found in matches.items() if not found]
    if unknown:
        _refuse_unknown(unknown, manager.all_tasks, folder)
    return Tasks(tuple(dict.fromkeys(found for some in matches.values() for found in some)), manager)


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
        model (`PreTrainedModel`): on the device where it is to run.
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        tasks ([`Tasks`]): what [`find_tasks`] found.
        limit (`int`, *optional*): how many items of each task, from the first; all of them by default.
        batch_size (`int`, *optional*, defaults to 8): requests in a forward pass.

    Returns:
        `dict[str, TaskScore]`: by task, and by group where a group was named.

    Raises:
        `ConfigError`: `limit` or `batch_size` below 1, or tasks that cannot be run: not readable, of images, or running a model's code.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    wrong = {
        name: value for name, value in (("limit", limit), ("batch_size", batch_size)) if value is not None and value < 1
    }
    if wrong:
        raise ConfigError(" ".join(f"{name} is {value}; it must be 1 or more." for name, value in wrong.items()))
    loaded = _load(tasks)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)  # the examples that `lm-eval` itself shows
    # It warns of every model that is not a name: of options which nobody gave.
    logging.getLogger("lm_eval.models.huggingface").addFilter(_no_advice)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    # Not `simple_evaluate`, which goes on to ask git, pip and the drivers for their versions.
    found = evaluate(lm=wrapped, task_dict=loaded, limit=limit)
    return {name: _score(values, found["samples"].get(name, [])) for name, values in found["results"].items()}


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str], folder: str | None) -> None:
    from difflib import get_close_matches

    close = {name: get_close_matches(name, known) for name in unknown}
    faults = [f"'{name}'" + (f" (close to it: {', '.join(found)})" if found else "") for name, found in close.items()]
    where = f"'{folder}' and in lm-evaluation-harness" if folder else "lm-evaluation-harness"
    refuse(
        ConfigError,
        f"No such task in {where}:",
        faults,
        "`lm-eval ls tasks` lists what there is; a folder of your own goes to include_path.",
    )


def _load(tasks: Tasks) -> Any:
    """The tasks and groups themselves, with their data, as the harness keeps them."""
    built: list[Any] = []
    try:
        for name in tasks.names:
            loaded = tasks.manager.load(name)
            built += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
        loaded = tasks.manager.load(built)  # refuses a task that comes by two ways
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The tasks {', '.join(tasks.names)} cannot be read: {str(error).strip()}") from error
    reasons = (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "is of more than text"))
    faults = [
        f"'{name}' {why}"
        for name, task in loaded["tasks"].items()
        for mark, why in reasons
        if getattr(task, mark, False)
    ]
    if faults:
        refuse(
            ConfigError,
            "These tasks are not run here:",
            faults,
            "Run them with lm-eval itself, on a merged model (`dem-hub merge`).",
        )
    return loaded


def _score(values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskScore:
    """The harness's `{"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 20, ...}`, sorted out."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in values.items():
        metric, comma, chain = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        bare, mark = metric.removesuffix("_stderr"), metric.endswith("_stderr")
        (errors if mark else metrics)[_name(bare, chain)] = float(value)
    each: dict[str, list[float]] = {}
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                each.setdefault(_name(metric, sample["filter"]), []).append(float(sample[metric]))
    return TaskScore(
        int(values.get("sample_len", 0)), metrics, errors, {name: tuple(found) for name, found in each.items()}
    )


def _name(metric: str, chain: str) -> str:
    return metric if chain == "none" else f"{metric},{chain}"


def _no_advice(record: logging.LogRecord) -> bool:
    return "pretrained" not in record.getMessage()
