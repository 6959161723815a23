"""The rows of one setting and one seed: each model is trained or merged, scored, and forgotten."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dem_hub.evaluation.likelihood import totals
from dem_hub.evaluation.windows import Window
from dem_hub.files.atomic import write_text
from dem_hub.transformations import dare, ties
from studies.beyond_sums import merges
from studies.beyond_sums.merges import HIGHEST, HIGHEST_OF_REGMEAN, HIGHEST_OF_SPARSE, Merge
from studies.beyond_sums.results import ROWS
from studies.beyond_sums.settings import (
    DARE_DENSITIES,
    MORE_STATISTICS_TOKENS,
    STATISTICS_TOKENS,
    TEST_TOKENS,
    TIES_DENSITIES,
    TUNED_SHARES,
    VALIDATION_TOKENS,
    WINDOW,
    Setting,
)
from studies.beyond_sums.sources import statistics_rows, training_texts
from studies.beyond_sums.training import STEP, Part, blocks_of, train
from studies.data_mixing.cache import file_of, keep
from studies.data_mixing.scores import distribution_loss, mean_loss, tokens_of
from studies.data_mixing.texts import read_texts, windows

logger = logging.getLogger(__name__)

Blocks = Sequence[dict[str, Any]]

# How a round is merged: a searched sum of the vectors, or of what RegMean makes of them.
WAYS = ("DEM", "RegMean, searched")

# The methods that keep some elements of each vector, with the densities of which each takes the best.
SPARSE = {"TIES": (ties, TIES_DENSITIES), "DARE": (dare, DARE_DENSITIES)}


@dataclass(frozen=True)
class Model:
    """A model to score: how it is loaded, and the tokens of training and of forward passes that it cost."""

    load: Callable[[], Any]
    training_tokens: float
    evaluation_tokens: float = 0


class Run:
    """One setting with one seed: its texts, its folder, and its rows so far."""

    def __init__(self, setting: Setting, seed: int, base: Path, texts: Path, folder: Path) -> None:
        self.setting = setting
        self.seed = seed
        self.base = base
        self.folder = folder
        self.names = setting.sources
        self.rows: dict[str, dict[str, Any]] = {}
        self._texts = texts
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self.blocks = {name: self.blocks_of(name, setting.steps) for name in self.names}
        self.validation = self._windows("validation", VALIDATION_TOKENS)
        self.test = self._windows("test", TEST_TOKENS)

    @property
    def training_tokens(self) -> int:
        """Tokens that all sources are trained on together."""
        return self.setting.steps * STEP * len(self.names)

    def blocks_of(self, name: str, steps: int) -> Blocks:
        """Return the blocks of so many steps of a source."""
        # A step more than is needed, because of the last block, which is cut off.
        texts = training_texts(self._texts, name, (steps + 1) * STEP, self._tokenizer, self.seed)
        return blocks_of(texts, self._tokenizer, steps, self.seed)

    def statistics(self, tokens: int) -> list[list[list[int]]]:
        """Return so many tokens of training text of each source, for its input statistics."""
        return [statistics_rows(self._texts, name, tokens, self._tokenizer, self.seed) for name in self.names]

    def part(self, start: Path, blocks: Blocks, target: Path, **options: Any) -> Part:
        """Return a part to train as this setting trains."""
        return Part(start, blocks, target, lora=self.setting.lora, seed=self.seed, **options)

    def row(self, label: str, make: Callable[[], Model]) -> None:
        """Make a model and score it on test text, unless that is done. The report has the rows so far."""
        self.rows[label] = keep(file_of(self.folder / "rows", label), lambda: self._score(make()))
        write_text(self.folder / ROWS, json.dumps(_result(self)))
        logger.info("%s, seed %d, %s: %.4f", self.setting.name, self.seed, label, self.mean(label))

    def mean(self, label: str) -> float:
        """Return the mean over distributions of a row's loss."""
        return mean_loss(self.rows[label]["losses"], tokens_of(self.test), self.names)

    def _score(self, made: Model) -> dict[str, Any]:
        counts = tokens_of(self.test)
        model = made.load()
        losses = {
            name: (totals(model, of_name) / torch.tensor(counts[name])).tolist() for name, of_name in self.test.items()
        }
        return {
            "losses": losses,
            "training_tokens": made.training_tokens,
            "evaluation_tokens": made.evaluation_tokens,
        }

    def _windows(self, side: str, tokens: int) -> dict[str, list[Window]]:
        return {
            name: windows(read_texts(self._texts, name, side), tokens, WINDOW, self._tokenizer) for name in self.names
        }


def run(setting: Setting, seed: int, base: Path, texts: Path, folder: Path) -> dict[str, Any]:
    """Train, merge and score every row; returns what was measured."""
    result = folder / "result.json"
    return dict(keep(result, lambda: _measure(Run(setting, seed, base, texts, folder))))


def _measure(run: Run) -> dict[str, Any]:
    vectors = merges.vectors_of(run.base, _singles(run), run.folder / "vectors")
    run.row("base", lambda: Model(partial(_load, run.base), 0))
    for name, vector in zip(run.names, vectors, strict=True):
        alone = Merge(run.base, {str(vector): 1.0})
        run.row(name, lambda alone=alone: Model(alone.model, run.training_tokens / len(run.names)))
    _mixtures(run)
    _sums(run, vectors)
    for count in run.setting.rounds:
        for way in WAYS:
            folder = run.folder / f"rounds-{count}" / way
            run.row(f"{count} rounds, {way}", partial(_rounds, run, count, way, folder))
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run.folder / f"rounds-{count}", ignore_errors=True)
    if run.setting.is_headline:
        _sparse(run, vectors)
        _late(run, vectors)
    return _result(run)


def _singles(run: Run) -> list[Path]:
    """Train each source by itself; its first rounds are kept on the way."""
    steps = run.setting.steps
    found = []
    for name in run.names:
        kept = {steps // count: _first_round(run, count, name) for count in run.setting.rounds}
        found.append(train(run.part(run.base, run.blocks[name], run.folder / "singles" / name, kept=kept)))
    return found


def _first_round(run: Run, count: int, name: str) -> Path:
    return run.folder / f"rounds-{count}" / "first" / name


def _mixtures(run: Run) -> None:
    """Train on all sources at once: on the same blocks, and in the headline setting on tuned shares as well."""
    together = [block for name in run.names for block in run.blocks[name]]
    run.row("uniform mixture", partial(_mixture, run, "uniform", together))
    if run.setting.is_headline:
        count = len(run.names) * run.setting.steps
        tuned = [block for name, share in TUNED_SHARES.items() for block in run.blocks_of(name, round(share * count))]
        run.row("tuned mixture", partial(_mixture, run, "tuned", tuned))


def _mixture(run: Run, name: str, blocks: list[dict[str, Any]]) -> Model:
    target = _train_mixed(run, blocks, run.folder / "mixtures" / name)
    return Model(partial(_load, target), run.training_tokens)


def _train_mixed(run: Run, blocks: list[dict[str, Any]], target: Path) -> Path:
    """Train the base on the blocks of several sources in a random order."""
    Random(run.seed).shuffle(blocks)
    return train(run.part(run.base, blocks, target))


def _sums(run: Run, vectors: Sequence[Path]) -> None:
    """Merge the single fine-tunes: averaged, searched, with RegMean, and with RegMean and a search."""
    run.row("1/N", lambda: _merged(run, merges.average(run.base, vectors)))
    run.row("DEM", lambda: _merged(run, merges.search(run.base, vectors, run.validation, run.folder / "dem.json")))
    transformed = _regmean(run, run.base, vectors, run.folder / "regmean")
    run.row("RegMean", lambda: _merged(run, transformed))
    run.row("RegMean, searched", lambda: _merged(run, _searched(run, transformed, run.folder / "regmean.json")))
    if run.setting.is_headline:
        folder = run.folder / "regmean-more"
        more = partial(_regmean, run, run.base, vectors, folder, MORE_STATISTICS_TOKENS)
        run.row(f"RegMean, {MORE_STATISTICS_TOKENS:,} tokens", lambda: _merged(run, more()))
        shutil.rmtree(folder, ignore_errors=True)


def _merged(run: Run, merge: Merge) -> Model:
    """Return a merge of all sources' fine-tunes as a model."""
    return Model(merge.model, run.training_tokens, merge.evaluation_tokens)


def _regmean(run: Run, base: Path, vectors: Sequence[Path], folder: Path, tokens: int = STATISTICS_TOKENS) -> Merge:
    return merges.with_regmean(base, vectors, run.statistics(tokens), folder, 2 * tokens * len(run.names))


def _searched(run: Run, transformed: Merge, record: Path) -> Merge:
    """Return vectors from RegMean with the coefficients that are best on validation text."""
    names = [Path(name) for name in transformed.coefficients]
    found = merges.search(transformed.base, names, run.validation, record, highest=HIGHEST_OF_REGMEAN)
    return replace(found, evaluation_tokens=found.evaluation_tokens + transformed.evaluation_tokens)


def _sparse(run: Run, vectors: Sequence[Path]) -> None:
    """Merge with TIES and DARE, with a common coefficient and with one for each source."""
    for name in SPARSE:
        run.row(name, partial(_best_density, run, name, vectors, common=True))
        run.row(f"{name}, searched", partial(_best_density, run, name, vectors, common=False))
        shutil.rmtree(run.folder / name, ignore_errors=True)


def _best_density(run: Run, name: str, vectors: Sequence[Path], *, common: bool) -> Model:
    transformation, densities = SPARSE[name]
    highest = HIGHEST if common else HIGHEST_OF_SPARSE
    tried = []
    for density in densities:
        folder = run.folder / name / str(density)
        made = merges.transformed(partial(transformation, density=density), run.base, vectors, folder)
        record = folder / ("common.json" if common else "each.json")
        tried.append(merges.search(run.base, made, run.validation, record, common=common, highest=highest))
    return _merged(run, merges.best_of(tried))


def _late(run: Run, vectors: Sequence[Path]) -> None:
    """Let the last source arrive when the others have been mixed: train on it then, or merge its own fine-tune."""
    *early, late = run.names
    folder = run.folder / "late"
    together = [block for name in early for block in run.blocks[name]]
    mixed = _train_mixed(run, together, folder / "mixture")
    last = train(run.part(mixed, run.blocks[late], folder / "last"))
    run.row(f"{late} late, trained last", lambda: Model(partial(_load, last), run.training_tokens))

    step = merges.vectors_of(mixed, [last], folder / "vectors")
    scaled = partial(merges.search, mixed, step, run.validation, folder / "last.json")
    run.row(f"{late} late, trained last, searched", lambda: _merged(run, scaled()))

    both = [*merges.vectors_of(run.base, [mixed], folder / "vectors"), vectors[-1]]
    plain = partial(merges.search, run.base, both, run.validation, folder / "dem.json")
    run.row(f"{late} late, DEM", lambda: _merged(run, plain()))

    *of_early, of_late = run.statistics(STATISTICS_TOKENS)
    statistics = [[row for rows in of_early for row in rows], of_late]
    tokens = 2 * STATISTICS_TOKENS * len(run.names)
    transformed = merges.with_regmean(run.base, both, statistics, folder / "regmean", tokens)
    record = folder / "regmean.json"
    run.row(f"{late} late, RegMean, searched", lambda: _merged(run, _searched(run, transformed, record)))
    shutil.rmtree(folder)


def _rounds(run: Run, count: int, way: str, folder: Path) -> Model:
    """Train in rounds: each source goes on from the merge of the round before."""
    size = len(run.blocks[run.names[0]]) // count
    base = run.base
    finetunes = [_first_round(run, count, name) for name in run.names]
    evaluated = 0
    for number in range(count):
        of_round = folder / str(number + 1)
        if number:
            finetunes = [
                _continue(run, base, of_round / "finetunes" / name, number, size, before)
                for name, before in zip(run.names, finetunes, strict=True)
            ]
        vectors = merges.vectors_of(base, finetunes, of_round / "vectors")
        merge = _merge_round(run, way, base, vectors, of_round)
        evaluated += merge.evaluation_tokens
        if number + 1 < count:
            base = merge.export(of_round / "merged")
            # A round takes ten gigabytes. The next one needs its merge, and where each optimizer stood.
            # LoRAs are vectors as they are, and have no folder.
            for name in ("vectors", "regmean"):
                shutil.rmtree(of_round / name, ignore_errors=True)
    return Model(merge.model, run.training_tokens, evaluated)


def _merge_round(run: Run, way: str, base: Path, vectors: Sequence[Path], folder: Path) -> Merge:
    if way == "DEM":
        return merges.search(base, vectors, run.validation, folder / "dem.json")
    transformed = _regmean(run, base, vectors, folder / "regmean")
    return _searched(run, transformed, folder / "regmean.json")


def _continue(run: Run, base: Path, target: Path, number: int, size: int, before: Path) -> Path:
    """Train one source's part of a later round, without a warm-up, from its own optimizer's state."""
    blocks = run.blocks[target.name][number * size : (number + 1) * size]
    # A LoRA is a new one in every round, so the state of the old one is of other weights.
    state = None if run.setting.lora else before
    return train(run.part(base, blocks, target, warmup=0, state=state, keeps_state=True))


def _load(folder: Path) -> Any:
    """Load a trained model in float32, an adapter with its base."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _result(run: Run) -> dict[str, Any]:
    counts = tokens_of(run.test)
    return {
        "setting": run.setting.name,
        "seed": run.seed,
        "sources": list(run.names),
        "tokens": counts,
        "rows": run.rows,
        "means": {label: run.mean(label) for label in run.rows},
        "by_distribution": {
            label: {name: distribution_loss(row["losses"], counts, name) for name in run.names}
            for label, row in run.rows.items()
        },
    }
