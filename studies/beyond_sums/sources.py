"""The texts of the sources: five of `studies/data_mixing`, and three more for the setting with eight.

| name      | what                                             | from                            | a group is      |
|-----------|--------------------------------------------------|---------------------------------|-----------------|
| `headers` | C++ headers                                      | the installed `torch`           | a header        |
| `configs` | task descriptions in YAML                        | `lm_eval`                       | a folder        |
| `logic`   | puzzles about knights and knaves, with solutions | the PyPI package `reasoning-gym` | a puzzle        |
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from dem_hub.demo.texts import split_by_group, write_distributions
from studies.beyond_sums.settings import WINDOW
from studies.data_mixing.texts import prepare_texts, read_texts, take, windows

# Characters of a piece of a long file, and files that are read: more than enough for the steps of the study.
_PIECE = 1_500
_FILES = 600
_PUZZLES = 1_500


def prepare_sources(folder: Path) -> Path:
    """Write `<folder>/<name>.<side>.jsonl` of all eight, once."""
    prepare_texts(folder)
    if not (folder / "logic.test.jsonl").is_file():
        more = {"headers": _headers(), "configs": _configs(), "logic": _logic()}
        write_distributions([split_by_group(name, texts, seed=0) for name, texts in more.items()], folder)
    return folder


def training_texts(folder: Path, name: str, tokens: int, tokenizer: Any, seed: int) -> list[str]:
    """Return as many training documents as hold so many tokens: other ones for another seed."""
    texts = read_texts(folder, name, "train")
    Random(f"{name}/{seed}").shuffle(texts)
    return take(texts, tokens, tokenizer)


def statistics_rows(folder: Path, name: str, tokens: int, tokenizer: Any, seed: int) -> list[list[int]]:
    """Return what the input statistics are of: the beginnings of training documents, as long as those of test text.

    What a vector gains differs along a document, and is to be that of the text that models are scored on.
    """
    texts = read_texts(folder, name, "train")
    Random(f"{name}/{seed}").shuffle(texts)
    return [list(window.input_ids) for window in windows(texts, tokens, WINDOW, tokenizer)]


def _headers() -> Iterator[tuple[str, str]]:
    import torch

    for path in sorted((Path(torch.__file__).parent / "include" / "ATen").rglob("*.h"))[:_FILES]:
        yield from _pieces(path)


def _configs() -> Iterator[tuple[str, str]]:
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks"
    for path in sorted(folder.rglob("*.yaml")):
        yield path.relative_to(folder).parts[0], path.read_text("utf-8")


def _logic() -> Iterator[tuple[str, str]]:
    import reasoning_gym  # type: ignore[import-untyped]

    puzzles = reasoning_gym.create_dataset("knights_knaves", seed=0, size=_PUZZLES)
    for number, puzzle in enumerate(puzzles):
        yield str(number), f"{puzzle['question']}\n{puzzle['answer']}"


def _pieces(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text("utf-8", errors="replace")
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        if len(piece) > _PIECE // 4:
            yield path.name, piece
