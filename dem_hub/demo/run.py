"""`dem-hub demo`: the whole method on a real model and real text, in minutes and without a GPU.

Every stage leaves its result in the folder and is skipped when it is there already, so that a second run only loads and shows. The
coefficients are chosen on validation text; the table reports test text beside it, which nothing was chosen on.
"""

import json
import logging
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
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# How each distribution is trained: every weight or a LoRA, and the learning rate.
FINE_TUNES: dict[str, tuple[Callable[..., Path], float]] = {
    "gsm": (train_lora, 1e-3),
    "code": (train_lora, 5e-4),
    "reference": (train, 5e-5),
}
TOKENS = 1_400  # of each distribution, for validation and again for test
WINDOW = 256  # tokens
UNIFORM, CHOSEN = "uniform average", "DEM"


@dataclass(frozen=True)
class Row:
    """One model of the table: its coefficients, and its loss on each distribution, in nats a token."""

    model: str
    coefficients: tuple[float, ...]
    validation: Mapping[str, float]
    test: Mapping[str, float]


def run_demo(folder: Path) -> str:
    """Run the main job into a folder, or what is left of it to do.

    Args:
        folder (`Path`): for the base, the fine-tunes, the vectors, the recipe and the picture.

    Returns:
        `str`: the report: the table, where everything is, and a generated sample.

    Raises:
        `MissingDependencyError`: a package of the extra `demo` is missing; names it.
    """
    _check_packages(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _stage("base"):
        base = prepare_base(folder / "base")
    with _stage("texts"):
        distributions = load_distributions()
        write_distributions(distributions, folder / "texts")
    return combine(base, distributions, folder)


def _check_packages(folder: Path) -> None:
    """Refuse before anything is made, and name all that is missing at once."""
    missing = []
    for find in (find_reasoning_gym,) if (folder / "base").is_dir() else (find_gguf, find_reasoning_gym):
        try:
            find()
        except MissingDependencyError as error:
            missing.append(str(error))
    if missing:
        raise MissingDependencyError(" ".join([*missing, "All but the model come with `pip install 'dem-hub[demo]'`."]))


def combine(base: Path, distributions: Sequence[Distribution], folder: Path) -> str:
    """The method itself, on any base and any distributions that `FINE_TUNES` names: vectors, coefficients, recipe, report."""
    from dem_hub.plotting import plot_perplexities

    vectors = {}
    for distribution in distributions:
        with _stage(f"vector {distribution.name}"):
            vectors[distribution.name] = _make_vector(base, distribution, folder)
    table = folder / "table.json"
    if not (table.is_file() and (folder / "recipe").is_dir()):
        with _stage("search"):
            rows = _search(base, vectors, distributions, folder / "recipe")
            write_text(table, json.dumps([vars(row) for row in rows], indent=2) + "\n")
    rows = [
        Row(**{**entry, "coefficients": tuple(entry["coefficients"])}) for entry in json.loads(table.read_text("utf-8"))
    ]
    picture = plot_perplexities(
        {row.model: _perplexities(row.test) for row in rows},
        folder / PERPLEXITY_PLOT,
        "Perplexity on test text, lower is better",
    )
    with _stage("sample"):
        sample = _sample(folder / "recipe", distributions[0])
    return _report(rows, sample, folder, picture, vectors)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    start = time.monotonic()
    logger.info("%s ...", name)
    yield
    logger.info("%s: %.0f s", name, time.monotonic() - start)


def _make_vector(base: Path, distribution: Distribution, folder: Path) -> Path:
    """Fine-tune on one distribution and take the vector; a LoRA is one already."""
    target = folder / "vectors" / distribution.name
    if target.is_dir():
        return target
    finetuned = folder / "finetunes" / distribution.name
    fine_tune, learning_rate = FINE_TUNES[distribution.name]
    fine_tune(base, distribution.train, finetuned, learning_rate=learning_rate)
    is_adapter = fine_tune is train_lora
    vector = (
        DistributionVector.from_pretrained(finetuned) if is_adapter else DistributionVector.extract(base, finetuned)
    )
    vector.save_pretrained(target)
    return target


def _search(base: Path, vectors: Mapping[str, Path], distributions: Sequence[Distribution], target: Path) -> list[Row]:
    """Find the coefficients on validation text, save the recipe, and score the models worth comparing on test text."""
    import torch
    from transformers import AutoTokenizer

    from dem_hub.models.loading import DEMModel
    from dem_hub.search import search_coefficients

    tokenizer = AutoTokenizer.from_pretrained(base)
    validation = {item.name: _windows(tokenizer, item.validation) for item in distributions}
    test = {item.name: _windows(tokenizer, item.test) for item in distributions}
    names = list(vectors)
    result = search_coefficients(
        base, [str(vectors[name]) for name in names], validation, held_out=0
    )  # `test` is held out already
    result.config.save_pretrained(target)
    count = len(names)
    compared = {"base": (0.0,) * count}
    compared |= {f"{name} alone": tuple(float(name == other) for other in names) for name in names}
    compared |= {UNIFORM: (1 / count,) * count, CHOSEN: result.best.coefficients}
    model = DEMModel.from_pretrained(base, vectors={str(vectors[name]): 0.0 for name in names}, dtype=torch.float32)
    searched = {trial.coefficients: trial.losses for trial in result.trials}
    rows = []
    for label, point in compared.items():
        model.dem.set_coefficients(dict(zip(model.dem.coefficients, point, strict=True)))
        rows.append(Row(label, point, searched.get(point) or _losses(model, validation), _losses(model, test)))
    return rows


def _windows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """About `TOKENS` tokens, from the beginnings of as many documents as that takes."""
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
    """What the model of the recipe makes of the beginning of a test document."""
    from transformers import AutoTokenizer

    from dem_hub.models.loading import DEMModel

    tokenizer = AutoTokenizer.from_pretrained(recipe)
    model = DEMModel.from_pretrained(recipe)
    start = tokenizer(distribution.test[0], return_tensors="pt")["input_ids"][:, :64]
    output = model.generate(start, max_new_tokens=60, do_sample=False, pad_token_id=tokenizer.eos_token_id)  # type: ignore[operator]
    return f"{tokenizer.decode(start[0])} >>> {tokenizer.decode(output[0, start.shape[1] :], skip_special_tokens=True)}"


def _perplexities(losses: Mapping[str, float]) -> dict[str, float]:
    import math

    return {name: math.exp(loss) for name, loss in losses.items()}


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _report(rows: Sequence[Row], sample: str, folder: Path, picture: Path, vectors: Mapping[str, Path]) -> str:
    names = list(rows[0].validation)
    width = max(len(row.model) for row in rows)
    head = "".join(f"{name:>12}" for name in names)
    lines = [
        f"Perplexity on validation text (mean: log-perplexity, nats a token), and the mean on test text\n{'':{width}}{head}{'mean':>10}{'test':>10}"
    ]
    for row in rows:
        cells = "".join(f"{value:12.3f}" for value in _perplexities(row.validation).values())
        lines.append(f"{row.model:{width}}{cells}{_mean(row.validation):10.4f}{_mean(row.test):10.4f}")
    by_name = {row.model: row for row in rows}
    chosen = by_name[CHOSEN]
    lines.append(
        "\nDEM = base "
        + " ".join(f"+ {value:.3f} * {name}" for name, value in zip(vectors, chosen.coefficients, strict=True))
    )
    for other in ("base", UNIFORM):
        gain = _mean(by_name[other].test) - _mean(chosen.test)
        lines.append(f"Mean log-perplexity on test text, {other} minus DEM: {gain:+.4f}")
    lines.append(f"\nA sample of it, continuing a test document:\n{sample}")
    recipe = DEMConfig.from_pretrained(folder / "recipe")
    lines.append(
        f"\nRecipe   {folder / 'recipe'}  ({len(recipe.vectors)} vectors, {recipe.rounding} rounding)\nPicture  {picture}"
    )
    lines.append(f'Load it  DEMModel.from_pretrained("{folder / "recipe"}")')
    return "\n".join(lines)
