"""Kinds of real text, split so that no group of documents lies on two sides: maths, Python source, technical prose
and problems.

| name        | what                                                    | from                                    | a group is         |
|-------------|---------------------------------------------------------|-----------------------------------------|--------------------|
| `gsm`       | grade-school word problems with worked answers          | the PyPI package `reasoning-gym`        | a problem template |
| `code`      | Python source                                           | the running interpreter's library       | a top-level module |
| `reference` | the Python language reference, as `help("with")` has it | `pydoc_data` of the running interpreter | a section title    |
| `tasks`     | small problems in words with a Python solution each     | the PyPI package `reasoning-gym`        | a problem          |

The split is by group and not by document: two problems from one template, or two pieces of one module, share most of
their words, and a fine-tune would look good on a validation set that it has all but seen. Same interpreter and
package versions, same texts.
"""

import gzip
import importlib.util
import json
import logging
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dem_hub.errors import DemHubError, MissingDependencyError
from dem_hub.files.atomic import write_text

logger = logging.getLogger(__name__)

INSTALL_GSM = "pip install reasoning-gym==0.1.25"
SIDES = ("train", "validation", "test")

# All figures below were chosen by hand, not measured.

# Fraction of the groups for validation, and again for test.
_HELD_OUT = 0.2

# Documents of a group at most, so that no large module or template makes up a whole side.
_PER_GROUP = 12

# Characters of a piece of source or prose, about 400 tokens.
_PIECE = 1_500

# Characters; a shorter remainder is a heading or a stub.
_SHORTEST = 200

# Problems that are generated for `gsm`, and read for `tasks`: more than enough for the steps of a demo or a study.
_PROBLEMS = 3_000
_TASKS = 1_500

# What a group of each distribution is.
_GROUPS = {
    "gsm": "problem template",
    "code": "module of Python's library",
    "reference": "section of Python's reference",
    "tasks": "problem",
}

# Every generated question ends with this instruction, which is no part of the problem.
_GSM_SUFFIX = " Give the result as your final answer. Do not include units."

# Modules of the library that hold tests, tables, or the text of `reference`.
_NOT_SOURCE = {
    "antigravity", "encodings", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo",
}  # fmt: skip


@dataclass(frozen=True)
class Distribution:
    """One kind of text, in three parts that share no group and no document.

    Args:
        name (`str`): Its name, which is also the stem of its files.
        train (`list[str]`): Documents to fine-tune on.
        validation (`list[str]`): Documents to choose coefficients on.
        test (`list[str]`): Documents to report on.
    """

    name: str
    train: list[str]
    validation: list[str]
    test: list[str]


def load_distributions(names: Sequence[str] = ("gsm", "code", "reference"), seed: int = 0) -> list[Distribution]:
    """Read some of the distributions `gsm`, `code`, `reference` and `tasks`.

    Args:
        names (`Sequence[str]`): Which of them, in this order.
        seed (`int`, *optional*, defaults to 0):
            Decides which groups are held out and the order of the documents.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If `reasoning-gym` is not installed.
        [`~dem_hub.errors.DemHubError`]: If the interpreter came without the source of its library.
    """
    sources: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "gsm": _gsm,
        "code": _code,
        "reference": _reference,
        "tasks": _tasks,
    }
    return [split_by_group(name, sources[name](), seed=seed) for name in names]


def write_distributions(distributions: Iterable[Distribution], folder: Path) -> list[Path]:
    """Write `<folder>/<name>.<side>.jsonl` for each side, one `{"text": ...}` a line, as `dem-hub eval --data` reads
    them.

    Args:
        distributions (`Iterable[Distribution]`): What to write.
        folder (`Path`): Made if it does not exist; files of the same names are replaced.

    Returns:
        `list[Path]`: The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for distribution in distributions:
        for side in SIDES:
            path = folder / f"{distribution.name}.{side}.jsonl"
            lines = (json.dumps({"text": text}) + "\n" for text in getattr(distribution, side))
            write_text(path, "".join(lines), shared=True)
            paths.append(path)
    return paths


def split_by_group(name: str, documents: Iterable[tuple[str, str]], *, seed: int) -> Distribution:
    """Split documents into train, validation and test so that no group, and no text, is on two sides.

    Args:
        name (`str`): The distribution's name; it enters the seed, so that two distributions are shuffled independently.
        documents (`Iterable[tuple[str, str]]`): (group, text) pairs, in an order that does not depend on the machine.
        seed (`int`): Decides which groups are held out and the order of the documents.

    Example:

    ```python
    >>> from dem_hub.demo.texts import split_by_group
    >>> maths = split_by_group("maths", [(str(i % 10), f"problem {i}") for i in range(100)], seed=0)
    >>> len(maths.train), len(maths.validation), len(maths.test)
    (60, 20, 20)
    ```
    """
    groups: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for group, text in documents:
        key = " ".join(text.split()).casefold()
        if key not in seen:
            seen.add(key)
            groups[group].append(text.strip())
    random = Random(f"{name}/{seed}")
    names = sorted(groups)
    random.shuffle(names)
    held_out = round(_HELD_OUT * len(names))
    parts = (names[2 * held_out :], names[:held_out], names[held_out : 2 * held_out])
    sides = []
    for part in parts:
        texts: list[str] = []
        for group in part:
            texts += random.sample(groups[group], min(_PER_GROUP, len(groups[group])))
        random.shuffle(texts)
        sides.append(texts)
    logger.info(
        "%s: %d documents to train on, %d for validation, %d for test; no %s is in two of these",
        name,
        *map(len, sides),
        _GROUPS.get(name, "group"),
    )
    return Distribution(name, *sides)


def find_reasoning_gym() -> Path:
    """Find the folder of the installed package `reasoning_gym`.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If it is not installed.
    """
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"The problems come from the package 'reasoning-gym', which is not installed. Run `{INSTALL_GSM}`."
        )
    return Path(spec.origin).parent


def _tasks() -> Iterator[tuple[str, str]]:
    with gzip.open(find_reasoning_gym() / "data" / "codeio-hq.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = json.load(file)
    for number, problem in enumerate(problems[:_TASKS]):
        yield str(number), f"{problem['task_description']}\n\n{problem['code_sample']}"


def _gsm() -> Iterator[tuple[str, str]]:
    find_reasoning_gym()
    with warnings.catch_warnings():
        # A package that it imports compares texts by `is`; the user can do nothing about it.
        warnings.simplefilter("ignore", SyntaxWarning)
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (  # type: ignore[import-untyped]
            GSMSymbolicDataset,
            GSMSymbolicDatasetConfig,
        )

    problems = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=_PROBLEMS))
    for index, template in enumerate(problems.task_indices):
        problem = problems[index]
        question = problem["question"].removesuffix(_GSM_SUFFIX)
        yield str(template), f"{question}\n{problem['metadata']['answer_cot']}"


def _code() -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    has_source = False
    for module in sorted(sys.stdlib_module_names - _NOT_SOURCE):
        for path in sorted({library / f"{module}.py", *(library / module).rglob("*.py")}):
            if path.is_file():
                has_source = True
                for piece in pieces(path.read_text(encoding="utf-8", errors="replace")):
                    yield module, piece
    if not has_source:
        raise DemHubError(
            f"The interpreter {sys.executable} came without the source of its library: there is no .py file in "
            f"'{library}'. Run the demo with another Python."
        )


def _reference() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        for title, body in sections(topic):
            for piece in pieces(body):
                yield title, piece


def sections(topic: str) -> Iterator[tuple[str, str]]:
    """Cut a reStructuredText topic at its underlined headings, into (title, body) pairs.

    The reference prints one section under several topics ("with" and "compound"), at different depths. Its title
    stays the same.
    """
    parts = re.split(r"^(\S.*)\n([*=\-~^])\2{2,}\n", topic, flags=re.MULTILINE)
    yield from zip(parts[1::3], parts[3::3], strict=True)


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """Cut a text between paragraphs into pieces of `size` to twice `size` characters.

    Longer pieces are dropped, as they are tables and not text, and so is a short remainder at the end.
    """
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if piece:
            piece += "\n\n"
        piece += paragraph
        if len(piece) >= size:
            if len(piece) <= 2 * size:
                yield piece
            piece = ""
    if len(piece) >= _SHORTEST:
        yield piece
