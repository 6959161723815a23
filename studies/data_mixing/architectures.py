"""The study on an encoder-decoder and on a mixture of experts: small models, pretrained briefly here, the whole method, honest intervals.

    python -m studies.data_mixing.architectures encoder-decoder texts folder            # some minutes on two idle cores
    python -m studies.data_mixing.architectures mixture-of-experts texts folder --smoke

`texts` holds `<name>.<side>.jsonl` as `dem_hub.demo.texts` writes it. Even documents of the training side pretrain the base, odd ones
fine-tune it, so that no fine-tune sees again what its base has seen. Training and scoring cut documents alike: windows of 128 tokens, of which
an encoder-decoder reads the first half and writes the second. Each stage is a folder or a file and is reused as it is, so that a run
that was killed goes on, and another budget needs another folder.

The mixture is trained from the base on exactly the sequences of all fine-tunes, shuffled: equal tokens, uniform weights. The same seed
gives the same result, to the last bit on one thread (`OMP_NUM_THREADS=1`), which on a busy machine is also the fastest.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dem_hub import DistributionVector, search_coefficients
from dem_hub.defaults import HELD_OUT
from dem_hub.errors import ConfigError
from dem_hub.evaluation.likelihood import scored_tokens, totals
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.rows import read_rows
from dem_hub.evaluation.split import split
from dem_hub.evaluation.windows import Window
from dem_hub.files.atomic import atomic_folder, write_text
from dem_hub.models.loading import DEMModel
from dem_hub.search import SearchResult
from studies.data_mixing.scores import difference
from studies.data_mixing.small_models import (
    BATCH_SIZE,
    KINDS,
    PRETRAINING_RATE,
    RATE,
    SEED,
    WINDOW,
    Kind,
    build,
    is_seq2seq,
    load,
    trained,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PRETRAINED_ON = ("gsm", "code", "reference", "tasks")
NAMES = ("gsm", "code", "reference")  # a vector each
DEM, UNIFORM, COMMON, MIXTURE = "DEM", "1/N", "common", "mixture"
COMMON_VALUES = (
    0.25,
    1 / 3,
    0.5,
    0.75,
    1.0,
    1.25,
)  # scored on all validation text, the best of which is the common coefficient


@dataclass(frozen=True)
class Budget:
    """How long each part may take, in steps of `BATCH_SIZE` windows, and in documents of each distribution."""

    pretraining_steps: int
    steps: int
    training_documents: int
    validation_documents: int
    test_documents: int


# A step of the mixture of experts, all of whose tokens go through the whole vocabulary, takes 2.2 CPU-seconds; one of
# the other takes 1.2.
FULL: Mapping[str, Budget] = {
    "encoder-decoder": Budget(160, 24, 1000, 24, 60),
    "mixture-of-experts": Budget(80, 12, 1000, 24, 60),
}
SMOKE: Mapping[str, Budget] = dict.fromkeys(KINDS, Budget(3, 1, 100, 6, 8))


@dataclass(frozen=True)
class Score:
    """A model's losses on the test documents of each distribution, in nats a token."""

    losses: dict[str, float]
    mean: float
    documents: dict[str, list[float]]


def study(kind: Kind, texts: Path, folder: Path, *, tokenizer_folder: Path, budget: Budget) -> dict[str, Any]:
    """Pretrain, fine-tune, take the vectors, search, and score everything worth comparing on test documents.

    Args:
        kind (`str`): `encoder-decoder` (a T5 of 7 M parameters) or `mixture-of-experts` (a Mixtral of 10 M, 8 experts of which 2 are used).
        texts (`Path`): the folder with `<name>.<side>.jsonl`.
        folder (`Path`): for models, vectors and the search; what is there is reused.
        tokenizer_folder (`Path`): the folder of a model whose tokenizer is used.
        budget (`Budget`): `FULL[kind]` or `SMOKE[kind]`.

    Returns:
        `dict[str, Any]`: JSON data: losses by model and distribution, per-document losses, coefficients, intervals, tokens and seconds.
    """
    from transformers import AutoTokenizer

    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    check_budget(folder / "budget.json", {"kind": kind, **asdict(budget)})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    seconds = Clock(folder / "seconds.json")
    train = {
        name: full_windows(tokenizer, texts / f"{name}.train.jsonl", kind, budget.training_documents)
        for name in PRETRAINED_ON
    }
    pretraining = taken(
        [w for part in train.values() for w in part if w.document % 2 == 0], budget.pretraining_steps * BATCH_SIZE
    )
    sequences = {name: taken([w for w in train[name] if w.document % 2], budget.steps * BATCH_SIZE) for name in NAMES}
    together = taken([window for part in sequences.values() for window in part], sum(map(len, sequences.values())))

    def fit(name: str, start: Callable[[], "PreTrainedModel"], windows: Sequence[Window], rate: float) -> Path:
        with seconds.of(name):
            return trained(start, windows, folder / name, tokenizer, rate)

    base = fit("base", lambda: build(kind, len(tokenizer)), pretraining, PRETRAINING_RATE)
    finetunes = {name: fit(name, lambda: load(base), windows, RATE) for name, windows in sequences.items()}
    mixture = fit(MIXTURE, lambda: load(base), together, RATE)
    with seconds.of("vectors"):
        vectors = {name: extracted(base, finetuned, folder / "vectors" / name) for name, finetuned in finetunes.items()}
    validation = {
        name: first_windows(tokenizer, texts / f"{name}.validation.jsonl", kind, budget.validation_documents)
        for name in NAMES
    }
    with seconds.of("search"):
        result = searched(base, vectors, validation, folder / "search")
    test = {name: first_windows(tokenizer, texts / f"{name}.test.jsonl", kind, budget.test_documents) for name in NAMES}
    with seconds.of(COMMON):
        common = best_common(base, vectors, validation)
    points = points_of(result, common)
    with seconds.of("test"):
        scores = score_points(base, vectors, points, test) | {MIXTURE: score(load(mixture), test)}
    counts = {name: scored_tokens(windows, seq2seq=is_seq2seq(kind)) for name, windows in test.items()}
    parts = {"pretraining": pretraining, **sequences, MIXTURE: together}
    return {
        "kind": kind,
        "parameters": sum(parameter.numel() for parameter in load(base).parameters()),
        "chance": float(torch.tensor(float(len(tokenizer))).log()),
        "budget": asdict(budget),
        "seed": SEED,
        "losses": {label: {**one.losses, "mean": one.mean} for label, one in scores.items()},
        "documents": {label: one.documents for label, one in scores.items()},
        "coefficients": {label: dict(zip(NAMES, point, strict=True)) for label, point in points.items()},
        "intervals": {
            f"{other} minus {DEM}": interval(scores[other], scores[DEM], counts) for other in (UNIFORM, COMMON, MIXTURE)
        },
        "training_tokens": {name: sum(map(size_of(kind), windows)) for name, windows in parts.items()},
        "forward_tokens": forward_tokens(kind, result, validation, test, len(scores)),
        "num_forward": {"search": result.num_forward, "held_out": result.num_forward_held_out},
        "accepted": result.acceptance.chosen if result.acceptance is not None else None,
        "seconds": seconds.all,
        "notes": [note.replace(f"{folder / 'vectors'}/", "") for note in result.notes],
    }


def check_budget(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that was begun with other settings: its models would be reused as if they were of these."""
    if path.is_file() and (found := json.loads(path.read_text("utf-8"))) != settings:
        raise ConfigError(f"{path.parent} was begun with {found}, and this is {dict(settings)}. Give another folder.")
    write_text(path, json.dumps(settings, indent=2) + "\n")


@dataclass(frozen=True)
class Clock:
    """Seconds of each stage, kept in a file; the longest time counts, since a stage that is only reused takes none."""

    path: Path

    @property
    def all(self) -> dict[str, float]:
        """By stage."""
        found: dict[str, float] = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        return found

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time what is done within."""
        logger.info("%s ...", stage)
        began = time.monotonic()
        yield
        taken_now = round(time.monotonic() - began, 1)
        write_text(
            self.path, json.dumps({**self.all, stage: max(taken_now, self.all.get(stage, 0.0))}, indent=2) + "\n"
        )


def size_of(kind: Kind) -> Callable[[Window], int]:
    """Tokens that a window runs through the model: an encoder-decoder reads some and writes others."""
    return lambda window: len(window.input_ids) + is_seq2seq(kind) * len(window.labels)


def full_windows(tokenizer: "PreTrainedTokenizerBase", path: Path, kind: Kind, documents: int) -> list[Window]:
    """Every whole window of the first documents; training needs no padding then."""
    windows = Reader(lambda: tokenizer, WINDOW).windows(read_rows(path)[:documents])
    return [shaped(window, kind) for window in windows if len(window) == WINDOW]


def first_windows(tokenizer: "PreTrainedTokenizerBase", path: Path, kind: Kind, documents: int) -> list[Window]:
    """The beginning of each of the first documents, so that a window is a document."""
    rows = read_rows(path)[:documents]
    beginnings = {
        window.document: window
        for window in reversed(Reader(lambda: tokenizer, WINDOW).windows(rows))
        if len(window) > 3
    }
    return [shaped(beginnings[document], kind) for document in sorted(beginnings)]


def shaped(window: Window, kind: Kind) -> Window:
    """As the model is given it: an encoder-decoder reads the first half and writes the second."""
    if not is_seq2seq(kind):
        return window
    half = len(window) // 2
    return Window(window.input_ids[:half], window.input_ids[half:], window.document)


def taken(windows: Sequence[Window], count: int) -> list[Window]:
    """So many windows in random order, each once before any comes again."""
    if not windows:
        raise ConfigError(f"No training document has {WINDOW} tokens. Give longer ones.")
    generator = torch.Generator().manual_seed(SEED)
    found: list[Window] = []
    while len(found) < count:
        found += [windows[place] for place in torch.randperm(len(windows), generator=generator).tolist()]
    return found[:count]


def extracted(base: Path, finetuned: Path, target: Path) -> Path:
    """The vector of a fine-tune, whole: what is compared is the method, not a codec."""
    if not target.is_dir():
        DistributionVector.extract(base, finetuned, codec="dense", dtype="float32").save_pretrained(target)
    return target


def searched(
    base: Path, vectors: Mapping[str, Path], validation: Mapping[str, list[Window]], target: Path
) -> SearchResult:
    """Coefficients by Gauss-Newton; a search that is done is read."""
    if not target.is_dir():
        names = [str(vectors[name]) for name in NAMES]
        result = search_coefficients(base, names, validation, method="gauss_newton", seed=SEED, logit_bytes=1 << 30)
        with atomic_folder(target) as temporary:
            result.save_pretrained(temporary)
    return SearchResult.from_pretrained(target)


def best_common(base: Path, vectors: Mapping[str, Path], validation: Mapping[str, list[Window]]) -> float:
    """The best of a few common coefficients, measured on all validation text: the search's own is the best of the text it held out."""
    scores = score_points(base, vectors, {str(value): (value,) * len(NAMES) for value in COMMON_VALUES}, validation)
    return min(COMMON_VALUES, key=lambda value: scores[str(value)].mean)


def points_of(result: SearchResult, common: float) -> dict[str, tuple[float, ...]]:
    """The coefficients worth comparing: the base, each vector alone, equal shares, the best common one, and what was found."""
    count = len(NAMES)
    points = {"base": (0.0,) * count}
    points |= {f"{name} alone": tuple(float(name == other) for other in NAMES) for name in NAMES}
    return points | {UNIFORM: (1 / count,) * count, COMMON: (common,) * count, DEM: tuple(result.best.coefficients)}


def score_points(
    base: Path, vectors: Mapping[str, Path], points: Mapping[str, tuple[float, ...]], test: Mapping[str, list[Window]]
) -> dict[str, Score]:
    """One model, merged anew for each point."""
    model = DEMModel.from_pretrained(base, vectors={str(vectors[name]): 0.0 for name in NAMES}, dtype="float32")
    found = {}
    for label, point in points.items():
        model.dem.set_coefficients({str(vectors[name]): value for name, value in zip(NAMES, point, strict=True)})
        found[label] = score(model, test)
    return found


def score(model: "PreTrainedModel", test: Mapping[str, list[Window]]) -> Score:
    """Losses a token, of distributions and of documents."""
    losses, documents = {}, {}
    for name, windows in test.items():
        counts = torch.tensor(scored_tokens(windows, seq2seq=model.config.is_encoder_decoder), dtype=torch.float64)
        found = totals(model.eval(), windows)
        losses[name], documents[name] = float(found.sum() / counts.sum()), (found / counts).tolist()
    return Score(losses, sum(losses.values()) / len(losses), documents)


def interval(other: Score, ours: Score, counts: Mapping[str, list[int]]) -> dict[str, float]:
    """The difference of two models' mean losses and its 95 % interval, over documents in pairs; above 0 where ours is better."""
    return dict(
        zip(
            ("mean", "low", "high"),
            difference(other.documents, ours.documents, counts, list(counts), SEED),
            strict=True,
        )
    )


def forward_tokens(
    kind: Kind,
    result: SearchResult,
    validation: Mapping[str, list[Window]],
    test: Mapping[str, list[Window]],
    models: int,
) -> dict[str, int]:
    """Tokens that were run through a model to search, held-out ones included, to find the common coefficient, and to report."""
    size = size_of(kind)
    parts = [split(windows, HELD_OUT, SEED) for windows in validation.values()]  # as the search does
    searched_on, held_out = (sum(size(window) for part in parts for window in part[side]) for side in (0, 1))
    search = round(result.num_forward * searched_on + result.num_forward_held_out * held_out)
    tested = sum(size(window) for windows in test.values() for window in windows)
    common = len(COMMON_VALUES) * (searched_on + held_out)
    return {"search": search, COMMON: common, "test": models * tested}


def main() -> None:
    """Run one study and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("texts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a model with the tokenizer")
    parser.add_argument("--smoke", action="store_true", help="a quick look whether everything works")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    budget = (SMOKE if options.smoke else FULL)[options.kind]
    found = study(options.kind, options.texts, options.folder, tokenizer_folder=options.tokenizer, budget=budget)
    write_text(options.folder / "result.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "documents"}, indent=1))


if __name__ == "__main__":
    main()
