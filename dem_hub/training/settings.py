"""The callback's settings, compared with the `TrainingArguments` of the Trainer before training begins.

A setting that could only fail at the end of a run is refused here, before the first step costs anything.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dem_hub.errors import ConfigError, refuse

if TYPE_CHECKING:
    from transformers import TrainingArguments

When = Literal["end", "save", "best"]


def check_when(when: When, args: "TrainingArguments") -> None:
    """Check that the Trainer saves and evaluates as `when` needs it.

    Args:
        when (`str`): `"end"`, `"save"` or `"best"`.
        args (`TrainingArguments`): The Trainer's arguments.

    Raises:
        `ConfigError`: If it does not. All missing settings are listed.
    """
    if when == "end":
        return
    faults = []
    if _name_of(args.save_strategy) == "no":
        faults.append("save_strategy is 'no'")
    if when == "best" and _name_of(args.eval_strategy) == "no":
        faults.append("eval_strategy is 'no'")
    if when == "best" and args.metric_for_best_model is None:
        faults.append("metric_for_best_model is None")
    if faults:
        refuse(
            ConfigError,
            f"when='{when}' has nothing to go by.",
            faults,
            "Set them in the TrainingArguments, or use when='end'.",
        )


def check_statistics(when: When, args: "TrainingArguments") -> None:
    """Check that the model at the end of the run, which input statistics are gathered from, is the vector's.

    Raises:
        `ConfigError`: If it is not.
    """
    if when == "best" and not args.load_best_model_at_end:
        raise ConfigError(
            "input_statistics=True gathers them from the model at the end of the run, and the vector of when='best' is "
            "that of an earlier step. Set load_best_model_at_end=True in the TrainingArguments, or use when='end'."
        )


def choose_folder(output_dir: Path | None, args: "TrainingArguments") -> Path:
    """Return the folder for the vector.

    Args:
        output_dir (`Path`, *optional*): The folder that the user asked for.
        args (`TrainingArguments`): The Trainer's arguments.

    Raises:
        `ConfigError`: If the Trainer would push the folder together with its model.
    """
    run_folder = Path(str(args.output_dir)).resolve()
    if output_dir is not None:
        folder = output_dir
    elif args.push_to_hub:
        # The Trainer pushes everything in its folder but names that begin with an underscore.
        folder = run_folder / "_dem" / "vector"
    else:
        folder = run_folder / "vector"
    folder = folder.resolve()
    is_pushed = args.push_to_hub and folder.is_relative_to(run_folder)
    if is_pushed and not str(folder.relative_to(run_folder)).startswith("_"):
        raise ConfigError(
            f"output_dir is '{folder}', in '{run_folder}', which the Trainer pushes. Name a folder elsewhere, or "
            "leave output_dir out: it is "
            f"'{run_folder / '_dem' / 'vector'}' then, which the Trainer leaves out."
        )
    return folder


def _name_of(strategy: object) -> str:
    """Return the name of a strategy, which is an enum or a string."""
    return str(getattr(strategy, "value", strategy))
