"""RegMean on the demo's fine-tunes: is it better than searched coefficients, and what do its settings matter?

    dem-hub demo                                     # base, fine-tunes, vectors, coefficients: in dem-hub-demo
    python benchmarks/regmean.py dem-hub-demo        # the headline rows, and a table for each setting
    python benchmarks/regmean.py dem-hub-demo --settings ridge data
    python benchmarks/regmean.py dem-hub-demo --search    # what a search costs with RegMean and without, and nothing else

Every model is scored on test text on which nothing was chosen. The difference to the searched DEM has a standard error
over documents. The settings are tried with one change at a time from the defaults of the library.
"""

import argparse
import json
import multiprocessing
import resource
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from dem_hub import DEMModel, regmean, search_coefficients
from dem_hub.codecs.delta import to_dense
from dem_hub.demo.texts import load_distributions
from dem_hub.evaluation.likelihood import Likelihood, evaluate, scored_tokens, totals
from dem_hub.evaluation.standard_errors import clustered_error
from dem_hub.evaluation.windows import Window
from dem_hub.input_statistics import gathering, sketch
from dem_hub.input_statistics.gathering import gather
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput
from dem_hub.transformations.regmean import RegMean
from dem_hub.transformations.transformation import TensorDeltas
from dem_hub.vectors.deltas import all_deltas

WINDOW = 256  # tokens
TEST_TOKENS = 2_000  # of each distribution, at the least
TOKENS = 4_000  # of each distribution, for the statistics
SEARCH_TOKENS = 1_800  # of each distribution, of which a quarter is held out
RANK = gathering.RANK  # eigenvectors of each input
WHOLE = 1 << 20  # a rank that keeps every eigenvector
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scores:
    """The negative log-likelihood of each test window, by distribution."""

    totals: Mapping[str, Tensor]


class Study:
    """The demo's models and texts, and how a set of weights is scored."""

    def __init__(self, folder: Path) -> None:
        self.names = [path.name for path in sorted((folder / "vectors").iterdir())]
        self.vectors = [str(folder / "vectors" / name) for name in self.names]
        self.base = folder / "base"
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        texts = {item.name: item for item in load_distributions()}
        self.test = {name: windows_of(tokenizer, texts[name].test, TEST_TOKENS) for name in self.names}
        self.train = {name: windows_of(tokenizer, texts[name].train, 4 * TOKENS) for name in self.names}
        self.validation = {name: windows_of(tokenizer, texts[name].validation, TOKENS) for name in self.names}
        self.model = DEMModel.from_pretrained(self.base, vectors=dict.fromkeys(self.vectors, 0.0), dtype="float32")
        self.opened = self.model.dem.open()
        self.architecture = self.opened.base.architecture
        self.stored = all_deltas(self.opened.vectors, self.opened.base)

    def set(self, coefficients: Sequence[float]) -> None:
        """Merge a plain weighted sum."""
        self.model.dem.set_coefficients(dict(zip(self.model.dem.coefficients, coefficients, strict=True)))

    def score(self) -> Scores:
        """Score the weights as they are."""
        return Scores({name: totals(self.model, windows) for name, windows in self.test.items()})

    def score_transformed(self, transformation: RegMean, share: float = 1) -> Scores:
        """Score the base plus all transformed deltas, in float32 and without a codec."""
        with self.merged(transformation, share):
            return self.score()

    @contextmanager
    def merged(self, transformation: RegMean, share: float = 1) -> Iterator[None]:
        """Merge a share of the transformed deltas, with 1/N for the rest."""
        count = len(self.names)
        self.set([(1 - share) / count] * count)
        parameters = dict(self.model.named_parameters())
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            for key, delta in self.deltas(transformation):
                parameter = parameters[key]
                if key not in kept:
                    kept[key] = parameter.clone()
                parameter.add_(delta, alpha=share)
            yield
            for key, values in kept.items():
                parameters[key].copy_(values)

    def deltas(self, transformation: RegMean) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor's new delta of each vector."""
        for place in range(len(self.names)):
            for key in self.stored[place]:
                stored = tuple(of_vector.get(key) for of_vector in self.stored)
                deltas = TensorDeltas(self.opened.base, key, stored, tuple(self.names), CPU)
                shape = self.opened.base.checkpoint[key].shape
                yield key, to_dense(transformation.delta(place, deltas), torch.empty(shape))

    def statistics(self, data: Mapping[str, list[Window]], rank: int, at: str = "finetune") -> list[InputStatistics]:
        """Gather the statistics of each distribution: through its fine-tune, the base, or the DEM."""
        gathering.RANK = rank
        base_losses = self.base_losses(data)
        gathered = []
        for place, name in enumerate(self.names):
            points = {
                "finetune": [float(other == place) for other in range(len(self.names))],
                "base": [0.0] * len(self.names),
                "average": [1 / len(self.names)] * len(self.names),
            }
            self.set(points[at])
            gathered.append(gather(self.model, self.architecture, data[name], base_loss=base_losses[name].loss))
        return gathered

    def base_losses(self, data: Mapping[str, list[Window]]) -> dict[str, Likelihood]:
        """Return the loss of the base on each distribution."""
        self.set([0.0] * len(self.names))
        return dict(evaluate(self.model, data))

    def statistics_of_merge(self, transformation: RegMean, data: Mapping[str, list[Window]]) -> list[InputStatistics]:
        """Gather the statistics of each distribution through a merge of transformed vectors, with the gains of these."""
        with self.merged(transformation):
            gathered = [gather(self.model, self.architecture, data[name]) for name in self.names]
        return [
            replace(item, gain=before.gain) for item, before in zip(gathered, transformation.statistics, strict=True)
        ]


def windows_of(tokenizer: object, texts: Sequence[str], tokens: int) -> list[Window]:
    """Return the beginnings of documents, as many as it takes for this many tokens."""
    windows: list[Window] = []
    for number, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"][:WINDOW]  # type: ignore[operator]
        if len(ids) > 1:
            windows.append(Window(tuple(ids), tuple(ids), number))
        if sum(map(len, windows)) >= tokens:
            break
    return windows


def first(windows: list[Window], tokens: int) -> list[Window]:
    """Return as many of the windows as it takes for this many tokens, the last one cut."""
    kept = []
    for window in windows:
        size = min(len(window), tokens - sum(map(len, kept)))
        if size < 2:
            break
        kept.append(Window(window.input_ids[:size], window.labels[:size], window.document))
    return kept


def truncated(statistics: Sequence[InputStatistics], rank: int) -> list[InputStatistics]:
    """Return statistics with the leading eigenvectors only; the diagonal stays exact."""
    shorter = []
    for item in statistics:
        inputs = []
        for layer in item.inputs:
            moments = layer.moments
            vectors = moments.vectors[:, :rank]
            values = moments.values[:rank]
            rest = (moments.diagonal() - vectors.square() @ values).clamp(min=0)
            inputs.append(LayerInput(layer.keys, Moments(vectors, values, rest)))
        shorter.append(replace(item, inputs=tuple(inputs)))
    return shorter


class Table:
    """Rows of losses, with the difference to the searched DEM."""

    def __init__(self, study: Study, reference: Scores) -> None:
        self.study = study
        self.reference = reference

    def head(self, title: str) -> None:
        """Print a title and the columns."""
        names = "".join(f"{name:>11}" for name in self.study.names)
        print(f"\n{title:40}{names}{'mean':>10}   DEM minus this", flush=True)

    def row(self, label: str, scores: Scores) -> None:
        """Print one model."""
        losses = []
        differences = []
        errors = []
        for name, windows in self.study.test.items():
            counts = scored_tokens(windows)
            losses.append(float(scores.totals[name].sum()) / sum(counts))
            gains = self.reference.totals[name] - scores.totals[name]
            differences.append(float(gains.sum()) / sum(counts))
            errors.append(clustered_error(gains, counts, windows))
        count = len(losses)
        error = sum(value**2 for value in errors) ** 0.5 / count
        cells = "".join(f"{loss:11.4f}" for loss in losses)
        print(
            f"{label:40}{cells}{sum(losses) / count:10.4f}   {sum(differences) / count:+.4f} ({error:.4f})", flush=True
        )


def headline(study: Study, folder: Path) -> Table:
    """Print base, average, DEM and RegMean, the last one as the library writes and loads it."""
    rows = {row["model"]: row["coefficients"] for row in json.loads((folder / "table.json").read_text())}
    order = [row["model"].removesuffix(" alone") for row in json.loads((folder / "table.json").read_text())]
    places = [order.index(name) - 1 for name in study.names]
    count = len(study.names)
    study.set([rows["DEM"][place] for place in places])
    reference = study.score()
    table = Table(study, reference)
    table.head("test loss, nats a token")
    for label, point in (("base", [0.0] * count), ("1/N", [1 / count] * count)):
        study.set(point)
        table.row(label, study.score())
    table.row("DEM, searched", reference)
    data = {
        vector: [window.input_ids for window in study.train[name]]
        for vector, name in zip(study.vectors, study.names, strict=True)
    }
    data = {vector: first_rows(rows_of_vector, TOKENS) for vector, rows_of_vector in data.items()}
    saved = {}
    for name, vector in zip(study.names, regmean(study.base, data).values(), strict=True):
        vector.save_pretrained(folder / "regmean" / name)
        saved[str(folder / "regmean" / name)] = 1.0
    model = DEMModel.from_pretrained(study.base, vectors=saved, dtype="float32")
    study.model, kept = model, study.model
    table.row("RegMean, nothing searched", study.score())
    study.model = kept
    return table


def first_rows(rows: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Return as many rows as it takes for this many tokens."""
    kept: list[Sequence[int]] = []
    for row in rows:
        if sum(map(len, kept)) >= tokens:
            break
        kept.append(row)
    return kept


@dataclass(frozen=True)
class Settings:
    """The tables of settings, one change at a time from the defaults."""

    study: Study
    table: Table

    def scores(self, statistics: Sequence[InputStatistics], **options: float) -> Scores:
        """Score the transformed vectors."""
        return self.study.score_transformed(RegMean(tuple(statistics), self.study.architecture, **options))

    def training(self, tokens: int = TOKENS) -> dict[str, list[Window]]:
        """Return this many tokens of training text of each distribution."""
        return {name: first(windows, tokens) for name, windows in self.study.train.items()}

    def eigenvectors(self) -> None:
        """Compare ranks, of whole matrices and of sketches."""
        self.table.head("eigenvectors of each input")
        whole = self.study.statistics(self.training(), WHOLE)
        self.table.row("all, whole matrices", self.scores(whole))
        for rank in (0, 4, 16, 32, 64, 128):
            self.table.row(f"{rank}, exact", self.scores(truncated(whole, rank)))
        columns = sketch.COLUMNS
        for rank, sketch.COLUMNS in ((64, 2), (64, 4), (64, 8), (128, 3), (128, 4)):
            statistics = self.study.statistics(self.training(), rank)
            self.table.row(f"{rank}, from a sketch of {rank * sketch.COLUMNS} columns", self.scores(statistics))
        sketch.COLUMNS = columns

    def ridge(self) -> None:
        """Compare ridges."""
        self.table.head("ridge")
        leading = self.study.statistics(self.training(), RANK)
        for ridge in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            self.table.row(f"{ridge:g}", self.scores(leading, ridge=ridge))

    def weights(self) -> None:
        """Compare weights of distributions."""
        self.table.head("how much a distribution counts")
        statistics = self.study.statistics(self.training(), RANK)
        alike = [replace(item, gain=None) for item in statistics]
        self.table.row("all alike", self.scores(alike))
        self.table.row("by what its vector gains", self.scores(statistics))

    def data(self) -> None:
        """Compare amounts and kinds of data, and the models that they run through."""
        self.table.head("statistics of")
        for tokens in (250, 1_000, 4_000):
            statistics = self.study.statistics(self.training(tokens), RANK)
            self.table.row(f"training text, {tokens} tokens", self.scores(statistics))
        self.table.row("validation text", self.scores(self.study.statistics(self.study.validation, RANK)))
        for at in ("base", "average"):
            statistics = self.study.statistics(self.training(), RANK, at)
            self.table.row(f"training text, inputs of the {at}", self.scores(statistics))
        # The idea of RegMean++ (arXiv 2508.03121), where each layer reads what the merged layers before it give.
        merge = RegMean(tuple(self.study.statistics(self.training(), RANK)), self.study.architecture)
        statistics = self.study.statistics_of_merge(merge, self.training())
        self.table.row("training text, inputs of RegMean's merge", self.scores(statistics))

    def shrinkage(self) -> None:
        """Compare shares of RegMean, with 1/N for the rest."""
        self.table.head("share of RegMean, the rest 1/N")
        statistics = self.study.statistics(self.training(), RANK)
        merge = RegMean(tuple(statistics), self.study.architecture)
        for share in (0.6, 0.8, 1.0):
            self.table.row(f"{share:g}", self.study.score_transformed(merge, share))


@dataclass(frozen=True)
class SearchCost:
    """What a search took: forward passes over the data to search on and over held-out data, seconds, bytes of memory."""

    passes: float
    held_out_passes: float
    seconds: float
    peak: int


def search_data(folder: Path) -> dict[str, list[list[int]]]:
    """Return token ids of the validation text of each of the demo's distributions."""
    texts = {item.name: item for item in load_distributions()}
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    data = {}
    for vector in sorted((folder / "vectors").iterdir()):
        of_name = windows_of(tokenizer, texts[vector.name].validation, SEARCH_TOKENS)
        data[vector.name] = [list(window.input_ids) for window in of_name]
    return data


def search_cost(folder: Path, *, with_regmean: bool) -> SearchCost:
    """Search the demo's coefficients in this process, from the validation text of each distribution."""
    vectors = sorted((folder / "vectors").iterdir())
    data = search_data(folder)
    found = search_coefficients(folder / "base", list(map(str, vectors)), data, regmean=with_regmean)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return SearchCost(found.num_forward, found.num_forward_held_out, found.seconds, peak)


def print_search_costs(folder: Path) -> None:
    """Print what a search costs without RegMean and with it, each in a process of its own."""
    print(f"{'search':20}{'passes':>8}{'held out':>10}{'seconds':>10}{'peak, GiB':>11}")
    for label, with_regmean in (("coefficients", False), ("with RegMean", True)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            cost = pool.submit(search_cost, folder, with_regmean=with_regmean).result()
        numbers = f"{cost.passes:8.1f}{cost.held_out_passes:10.1f}{cost.seconds:10.1f}{cost.peak / 2**30:11.2f}"
        print(f"{label:20}{numbers}", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a finished dem-hub demo")
    tables = ["weights", "eigenvectors", "ridge", "data", "shrinkage"]
    parser.add_argument("--settings", nargs="*", choices=tables, default=tables, help="the tables of settings")
    parser.add_argument("--search", action="store_true", help="the cost of a search with RegMean, and no other table")
    arguments = parser.parse_args()
    if arguments.search:
        print_search_costs(arguments.folder)
        return
    study = Study(arguments.folder)
    table = headline(study, arguments.folder)
    for name in arguments.settings:
        getattr(Settings(study, table), name)()


if __name__ == "__main__":
    main()
