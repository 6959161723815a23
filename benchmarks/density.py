"""The density of a package's code: how much a reader must hold in mind in a line, a function, a docstring.

It is a thermometer, not a judge: nothing fails, whatever it prints. It shows whether a change made the code easier or
harder to read, by these few measures.

    python benchmarks/density.py
    python benchmarks/density.py path/to/a/package

It reads the source only and imports nothing of it, so that it runs on any Python package.
"""

import argparse
import ast
import math
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 120
COMMONEST = 12  # first words that are shown
ARTICLES = ("A", "An", "By", "How", "Of", "One", "The", "This", "What", "Where", "Whether", "Which", "Who")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PRAGMA = re.compile(r"#\s*(noqa|fmt:|type:|pragma:)")


@dataclass
class Counts:
    """What was counted in a package."""

    files: int = 0
    lines: int = 0
    long_lines: int = 0
    comments: int = 0
    pragmas: int = 0
    conditionals: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    tuple_assignments: int = 0
    functions: int = 0
    body_lengths: list[int] = field(default_factory=list)
    first_words: Counter[str] = field(default_factory=Counter)


def count_package(folder: Path) -> Counts:
    """Count in every Python file below a folder."""
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        count_file(path, counts)
    return counts


def count_file(path: Path, counts: Counts) -> None:
    """Add one file's numbers to the counts."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    counts.files += 1
    counts.lines += len(lines)
    counts.long_lines += sum(len(line) > COLUMNS for line in lines)
    for comment in comments_of(path):
        counts.comments += 1
        counts.pragmas += PRAGMA.match(comment) is not None
    for node in ast.walk(ast.parse(text, str(path))):
        count_node(node, counts)


def comments_of(path: Path) -> Iterator[str]:
    """Yield the comments of a file, those after code included."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.string


def count_node(node: ast.AST, counts: Counts) -> None:
    """Add what one node of the syntax tree is to the counts."""
    if isinstance(node, ast.IfExp):
        counts.conditionals += 1
    elif isinstance(node, COMPREHENSIONS):
        counts.comprehensions += 1
        counts.nested_comprehensions += is_nested(node)
    elif isinstance(node, ast.Assign):
        counts.tuple_assignments += is_tuple_assignment(node)
    elif isinstance(node, FUNCTIONS):
        count_function(node, counts)


def is_nested(comprehension: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> bool:
    """Tell whether a comprehension has two `for`, or another comprehension anywhere inside it."""
    if len(comprehension.generators) > 1:
        return True
    return any(isinstance(node, COMPREHENSIONS) for node in ast.walk(comprehension) if node is not comprehension)


def is_tuple_assignment(assignment: ast.Assign) -> bool:
    """Tell whether several names get several values in one statement, as in `a, b = x, y`."""
    has_tuple_target = any(isinstance(target, ast.Tuple) for target in assignment.targets)
    return has_tuple_target and isinstance(assignment.value, ast.Tuple)


def count_function(function: ast.FunctionDef | ast.AsyncFunctionDef, counts: Counts) -> None:
    """Add a function's length, without its signature and docstring, and the first word of its docstring."""
    counts.functions += 1
    docstring = ast.get_docstring(function)
    body = function.body
    if docstring is not None:
        words = docstring.split()
        counts.first_words[words[0].strip("`,.:;") if words else ""] += 1
        body = body[1:]
    length = function.end_lineno - body[0].lineno + 1 if body else 0
    counts.body_lengths.append(length)


def report(counts: Counts) -> Iterator[str]:
    """Yield the lines of the table."""
    thousands = counts.lines / 1000
    yield "| a package | |"
    yield "|---|---|"
    yield f"| files | {counts.files} |"
    yield f"| lines | {counts.lines} |"
    yield f"| lines over {COLUMNS} columns | {counts.long_lines} |"
    yield ""
    yield "| in 1,000 lines | | number |"
    yield "|---|---|---|"
    for label, number in (
        ("conditional expressions", counts.conditionals),
        ("comprehensions", counts.comprehensions),
        ("nested comprehensions", counts.nested_comprehensions),
        ("tuple assignments", counts.tuple_assignments),
        ("comments", counts.comments),
        ("comments for people (not `noqa`, `fmt:`, `type:`)", counts.comments - counts.pragmas),
    ):
        yield f"| {label} | {number / thousands:.1f} | {number} |"
    yield from report_functions(counts)


def report_functions(counts: Counts) -> Iterator[str]:
    """Yield the part of the table that is about functions."""
    lengths = sorted(counts.body_lengths)
    documented = counts.first_words.total()
    yield ""
    yield "| functions | |"
    yield "|---|---|"
    yield f"| functions and methods | {counts.functions} |"
    if not lengths:
        return
    yield f"| median body, lines | {statistics.median(lengths):g} |"
    yield f"| 90 % of bodies have at most | {lengths[math.ceil(0.9 * len(lengths)) - 1]} |"
    yield f"| longest body | {lengths[-1]} |"
    yield f"| with a docstring | {documented} ({percent(documented, counts.functions)}) |"
    begun = sum(counts.first_words[word] for word in ARTICLES)
    yield f"| docstrings that begin with one of {', '.join(ARTICLES)} | {begun} ({percent(begun, documented)}) |"
    yield ""
    yield "| commonest first word of a function's docstring | number | share |"
    yield "|---|---|---|"
    for word, number in counts.first_words.most_common(COMMONEST):
        yield f"| {word} | {number} | {percent(number, documented)} |"


def percent(part: int, whole: int) -> str:
    """Format a share for display."""
    return f"{part / whole:.0%}" if whole else "none"


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dem_hub"), help="a package (default dem_hub)")
    options = parser.parse_args()
    counts = count_package(options.folder)
    if not counts.lines:
        parser.error(f"there is no Python file in '{options.folder}'")
    for line in report(counts):
        print(line)


if __name__ == "__main__":
    main()
