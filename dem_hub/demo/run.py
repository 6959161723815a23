"""The whole method on a real model and real text, in minutes and without a GPU: `dem-hub demo`.

Every stage leaves its result in the folder, and is skipped if the result is there already. So a second run only loads
and shows, and an interrupted run resumes. The coefficients are chosen on validation text. The table also has the loss
on test text, on which nothing was chosen.
"""

import json
import logging
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.demo.model import find_gguf, prepare_base
from dem_hub.demo.texts import Distribution, find_reasoning_gym, load_distributions, write_distributions
from dem_hub.demo.training import train, train_lora
from dem_hub.errors import MissingDependencyError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import PERPLEXITY_PLOT
from dem_hub.merging.config import DEMConfig
from dem_hub.search.held_out import DEM, UNIFORM
from dem_hub.search.points import Point, all_at, alone, each_alone
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# How each distribution is trained: every weight or a LoRA, and the learning rate. A vector of each kind shows that
# both are added in the same way. The rates were chosen by hand: each is high enough for a clear gain in 24 steps.
FINE_TUNES: dict[str, tuple[Callable[..., Path], float]] = {
    "gsm": (train_lora, 1e-3),
    "code": (train_lora, 5e-4),
    "reference": (train, 5e-5),
}
# Tokens of each distribution, for validation and again for test. Chosen by hand: few, so that the search takes a
# minute or so on a CPU.
TOKENS = 1_400

# Tokens of a document that are read, from its beginning. The demo's texts are cut into pieces of about 400.
WINDOW = 256


@dataclass(frozen=True)
class Row:
    """One model of the table: its coefficients, and its loss on each distribution, in nats per token."""

    model: str
    coefficients: tuple[float, ...]
    validation: Mapping[str, float]
    test: Mapping[str, float]


def run_demo(folder: Path) -> str:
    """Run every stage whose result is not in the folder yet.

    Args:
        folder (`Path`): Where the base, the texts, the fine-tunes, the vectors, the recipe and the picture go.

    Returns:
        `str`: The report: the table, where everything is, and a generated sample.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If packages of the extra `demo` are not installed. Names all of
        them.
        `KeyboardInterrupt`: After Ctrl-C. It says what is kept.
    """
    _check_packages(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(len(FINE_TUNES) + 4)
    logger.info(
        "Three short fine-tunes of SmolLM2-135M-Instruct, each on one kind of text (%s), become one model.\n"
        "It takes about eight minutes on two idle CPU cores. What is finished stays in '%s', and is not made again.",
        ", ".join(FINE_TUNES),
        folder,
    )
    try:
        with stages.next("the base model"):
            base = prepare_base(folder / "base")
        with stages.next("the texts"):
            distributions = load_distributions(tuple(FINE_TUNES))
            write_distributions(distributions, folder / "texts")
            logger.info("Texts: saved in %s", folder / "texts")
        return combine(base, distributions, folder, stages)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C. The steps that were finished are kept in '{folder}': the same command goes on from "
            "there."
        ) from None


def _check_packages(folder: Path) -> None:
    """Refuse missing packages before anything is made, all of them in one error."""
    needed = [find_reasoning_gym]
    if not (folder / "base").is_dir():
        needed.insert(0, find_gguf)
    missing = []
    for find in needed:
        try:
            find()
        except MissingDependencyError as error:
            missing.append(str(error))
    if missing:
        raise MissingDependencyError(" ".join([*missing, "All but the model come with `pip install 'dem-hub[demo]'`."]))


class Stages:
    """The steps of the demo, as the user is told of them.

    Args:
        count (`int`): How many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._begun = 0

    @contextmanager
    def next(self, name: str) -> Iterator[None]:
        """Say that the next step begins, and when it is done, how long it took."""
        self._begun += 1
        start = time.monotonic()
        logger.info("\nStep %d of %d: %s", self._begun, self.count, name)
        yield
        logger.info("Done in %.0f s.", time.monotonic() - start)


def combine(base: Path, distributions: Sequence[Distribution], folder: Path, stages: Stages) -> str:
    """Make vectors, coefficients and a recipe of a base and texts, and report them.

    Args:
        base (`Path`): Folder of the base.
        distributions (`Sequence[Distribution]`): Texts. `FINE_TUNES` must have an entry for the name of each.
        folder (`Path`): Where everything goes.
        stages ([`Stages`]): Is told of each step.

    Returns:
        `str`: The report.
    """
    from dem_hub.plotting import draw_perplexities

    vectors = {}
    for distribution in distributions:
        with stages.next(f"a fine-tune on {distribution.name}, and its vector"):
            vectors[distribution.name] = _make_vector(base, distribution, folder)
    table = folder / "table.json"
    with stages.next("the search for coefficients, and the losses on test text"):
        if table.is_file() and (folder / "recipe").is_dir():
            logger.info("Search: reusing %s", folder / "recipe")
        else:
            rows = _search(base, vectors, distributions, folder)
            write_text(table, json.dumps([vars(row) for row in rows], indent=2) + "\n")
    rows = _read_rows(table)
    perplexities = {row.model: _perplexities(row.test) for row in rows}
    picture = folder / PERPLEXITY_PLOT
    draw_perplexities(perplexities, "Perplexity on test text").savefig(picture)
    with stages.next("a sample of what the merged model writes"):
        sample = _sample(folder / "recipe", distributions[0])
    logger.info("")  # the report is a part of its own
    return _report(rows, sample, folder, picture, vectors)


def _make_vector(base: Path, distribution: Distribution, folder: Path) -> Path:
    """Fine-tune on one distribution and extract the vector. A LoRA needs no extraction, as it is a vector already."""
    target = folder / "vectors" / distribution.name
    if target.is_dir():
        logger.info("Vector: reusing %s", target)
        return target
    finetuned = folder / "finetunes" / distribution.name
    fine_tune, learning_rate = FINE_TUNES[distribution.name]
    fine_tune(base, distribution.train, finetuned, learning_rate=learning_rate)
    if fine_tune is train_lora:
        logger.info("Vector: a LoRA adapter is one as it is, and needs no extraction")
        vector = DistributionVector.from_pretrained(finetuned)
    else:
        logger.info("Vector: extracting what the fine-tune changed in the base")
        vector = DistributionVector.extract(base, finetuned)
    vector.save_pretrained(target)
    logger.info("Vector: saved in %s", target)
    return target


def _search(base: Path, vectors: Mapping[str, Path], distributions: Sequence[Distribution], folder: Path) -> list[Row]:
    """Search for coefficients on validation text, save the recipe, and measure it and its rivals on test text.

    The rows that were searched on are kept, too: on them the mixer measures what it expects.
    """
    import torch
    from transformers import AutoTokenizer

    from dem_hub.models.loading import DEMModel
    from dem_hub.search import search_coefficients

    tokenizer = AutoTokenizer.from_pretrained(base)
    validation = {item.name: _windows(tokenizer, item.validation) for item in distributions}
    test = {item.name: _windows(tokenizer, item.test) for item in distributions}
    folders = [str(path) for path in vectors.values()]
    logger.info(
        "The first %s tokens of each validation and test text are read: few, so that two cores are done in minutes.",
        f"{TOKENS:,}",
    )
    # Nothing needs to be held out of the validation text: the test text is.
    result = search_coefficients(base, folders, validation, held_out=0)
    result.save_pretrained(folder / "recipe", exist_ok=True)
    for name, windows in validation.items():
        path = _searched(folder, name)
        path.parent.mkdir(exist_ok=True)
        write_text(path, "".join(json.dumps({"input_ids": ids}) + "\n" for ids in windows), shared=True)

    logger.info("Measuring the models of the table on test text")
    model = DEMModel.from_pretrained(base, vectors=dict.fromkeys(folders, 0.0), dtype=torch.float32)
    searched = {trial.coefficients: trial.losses for trial in result.trials}
    rows = []
    for label, point in _compared_points(list(vectors), result.best.coefficients).items():
        model.dem.set_coefficients(dict(zip(folders, point, strict=True)))
        validation_losses = searched.get(point) or _losses(model, validation)
        rows.append(Row(label, point, validation_losses, _losses(model, test)))
    return rows


def _searched(folder: Path, name: str) -> Path:
    """Return the file of the rows of a distribution that were searched on."""
    return folder / "searched" / f"{name}.jsonl"


def _compared_points(names: Sequence[str], chosen: Point) -> dict[str, Point]:
    """Return the coefficients of each model in the table: the base, each vector alone, 1/N, and what was chosen."""
    count = len(names)
    points = {"base": all_at(0.0, count)}
    for name, point in zip(names, each_alone(count), strict=True):
        points[alone(name)] = point
    points[UNIFORM] = all_at(1 / count, count)
    points[DEM] = chosen
    return points


def _read_rows(table: Path) -> list[Row]:
    rows = []
    for entry in json.loads(table.read_text("utf-8")):
        # JSON has no tuples.
        entry["coefficients"] = tuple(entry["coefficients"])
        rows.append(Row(**entry))
    return rows


def _windows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the beginnings of documents as token ids: as many as it takes for `TOKENS` tokens."""
    windows: list[list[int]] = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:WINDOW]
        if len(ids) > 1:
            windows.append(ids)
        if sum(map(len, windows)) >= TOKENS:
            break
    return windows


def _losses(model: "PreTrainedModel", data: Mapping[str, list[list[int]]]) -> dict[str, float]:
    from dem_hub.evaluation.likelihood import evaluate

    return {name: score.loss for name, score in evaluate(model, data).items()}


def _sample(recipe: Path, distribution: Distribution) -> str:
    """Return the beginning of a test document, and how the recipe's model continues it."""
    from transformers import AutoTokenizer

    from dem_hub.models.loading import DEMModel

    tokenizer = AutoTokenizer.from_pretrained(recipe)
    model = DEMModel.from_pretrained(recipe)
    start = tokenizer(distribution.test[0], return_tensors="pt")["input_ids"][:, :64]
    output = model.generate(start, max_new_tokens=60, do_sample=False, pad_token_id=tokenizer.eos_token_id)  # type: ignore[operator]
    return f"{tokenizer.decode(start[0])} >>> {tokenizer.decode(output[0, start.shape[1] :], skip_special_tokens=True)}"


def _perplexities(losses: Mapping[str, float]) -> dict[str, float]:
    return {name: math.exp(loss) for name, loss in losses.items()}


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _report(rows: Sequence[Row], sample: str, folder: Path, picture: Path, vectors: Mapping[str, Path]) -> str:
    """Return the table, the recipe as a formula, the gains on test text, a sample, and where everything is."""
    base, *_, average, chosen = rows
    lines = _table(rows)

    terms = [f"+ {value:.3f} * {name}" for name, value in zip(vectors, chosen.coefficients, strict=True)]
    lines += [
        "",
        f"{DEM} (distribution-edited model): the coefficients that the search found, base {' '.join(terms)}",
        f"{UNIFORM}: the coefficient {1 / len(vectors):.3f} for each vector",
    ]
    for other in (base, average):
        gain = _mean(other.test) - _mean(chosen.test)
        lines.append(f"Mean log-perplexity on test text, {other.model} minus {DEM}: {gain:+.4f}")

    lines += ["", "A test document, and after >>> what the DEM writes next:", sample, ""]
    recipe = DEMConfig.from_pretrained(folder / "recipe")
    lines.append(f"Recipe   {folder / 'recipe'}  ({len(recipe.vectors)} vectors and their coefficients)")
    lines.append(f"Picture  {picture}")
    lines.append(f'Load it  DEMModel.from_pretrained("{folder / "recipe"}")')
    lines.append("Mix it, on a page with a slider for each vector (needs pip install 'dem-hub[mixer]'):")
    command = ["  " + shlex.join([_command(), "mix", str(folder / "recipe")])]
    for name in vectors:
        path = _searched(folder, name)
        if path.is_file():  # a folder of an earlier version has none
            command.append("    " + shlex.join(["--data", f"{name}={path}"]))
    lines.append(" \\\n".join(command))
    return "\n".join(lines)


def _command() -> str:
    """Return how a user of this environment calls the command, which `make demo` does not put on the path."""
    called = Path(sys.argv[0])
    return str(called) if called.stem == "dem-hub" and shutil.which("dem-hub") is None else "dem-hub"


def _table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table: a perplexity for each distribution, and mean losses on validation and on test
    text.
    """
    width = max(len(row.model) for row in rows)
    names = "".join(f"{name:>12}" for name in rows[0].validation)
    lines = [
        f"Perplexity on validation text of {', '.join(rows[0].validation)}; lower is better.",
        "mean: their mean log-perplexity, in nats per token. test: the same on test text, on which nothing was chosen.",
        "",
        f"{'':{width}}{names}{'mean':>10}{'test':>10}",
    ]
    for row in rows:
        cells = "".join(f"{value:12.3f}" for value in _perplexities(row.validation).values())
        lines.append(f"{row.model:{width}}{cells}{_mean(row.validation):10.4f}{_mean(row.test):10.4f}")
    return lines
