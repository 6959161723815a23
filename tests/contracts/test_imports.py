"""The shape of the package: who may import whom, how large a module may be, and what importing it loads."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dem_hub"
LONGEST = 400  # lines of a module, at 120 columns

# A folder imports only from those before it in this list, also inside functions. `docs/architecture.md` says what is in
# each.
FOLDERS = [
    "_version", "errors", "defaults", "numerics", "files", "evaluation", "hub", "checkpoints", "input_statistics", "codecs", "plotting", "vectors", "merging",
    "models", "training", "transformations", "mergekit", "search", "planning", "serving", "mixer", "demo", "cli", "__init__",
]  # fmt: skip

# Roads to and from other programs. Who does not take one loads neither its folder nor its packages.
ROADS = ["mergekit", "mixer", "planning", "serving"]

# Of the roads and of other extras. Nobody has to install them.
OPTIONAL = ["gguf", "gradio", "lm_eval", "matplotlib", "mergekit", "mlx", "optuna", "trl", "vllm", "xllamacpp"]

# Loaded when first needed, or never.
HEAVY = [
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "gradio",
    "lm_eval",
    "matplotlib",
    "mlx",
    "numba",
    "optuna",
    "pandas",
    "peft",
    "scipy",
    "torch",
    "transformers",
    "vllm",
]

MODULES = [pytest.param(path, id=path.relative_to(PACKAGE).as_posix()) for path in sorted(PACKAGE.rglob("*.py"))]


def folder_of(name: str) -> str:
    """Return the folder of a dotted name: `dem_hub.codecs.dense` is in `codecs`, `dem_hub` itself in `__init__`."""
    return [*name.split("."), "__init__"][1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Everything below an `if TYPE_CHECKING:`, which no interpreter runs."""
    guards = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    return {node for guard in guards for statement in guard.body for node in ast.walk(statement)}


def imports(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """The dotted names of the package that a module imports, each with its statement, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [_home(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        yield from ((node, name) for name in found if name.split(".")[0] == "dem_hub")


def _home(module: str, name: str) -> str:
    """`from dem_hub import config` imports a module, `from dem_hub import DEMConfig` the package."""
    path = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if path.with_suffix(".py").is_file() or path.is_dir() else module


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@pytest.mark.parametrize("path", MODULES)
def test_module(path: Path) -> None:
    """It says what it is, is short, has no relative imports, and imports upwards only."""
    tree = parse(path)
    assert ast.get_docstring(tree), "A module opens with what it holds and the one decision behind it."
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    own = folder_of(module_name(path))
    assert own in FOLDERS, f"'{own}' has no place yet: add it to FOLDERS, after all that it imports."
    allowed = {*FOLDERS[: FOLDERS.index(own)], own}
    wrong = sorted(f"line {node.lineno}: {name}" for node, name in imports(tree) if folder_of(name) not in allowed)  # type: ignore[attr-defined]
    assert not wrong, f"{own} may import only what stands before it in FOLDERS."


def test_no_cycles() -> None:
    """Within a package, too, modules import one another in one direction."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        tree = parse(path)
        unrun = for_types_only(tree)
        graph[module_name(path)] = {name for node, name in imports(tree) if node not in unrun}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_map_has_the_folders_in_order() -> None:
    """The table of docs/architecture.md names every folder, in the order of the imports."""
    lines = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8").splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)/?`", row) if name in FOLDERS]
    assert named == [name for name in FOLDERS if not name.startswith("_")]


def loaded(start: str, names: list[str]) -> list[str]:
    """Which of these modules are loaded after a statement, in an interpreter of its own: this one has loaded everything."""
    code = f"{start}\nimport sys\nprint(*(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return done.stdout.split()


# vLLM imports the plug-in in each of its processes, also where no recipe is served.
@pytest.mark.parametrize(
    "start", ["import dem_hub", "from dem_hub.cli.app import main", "import dem_hub.serving.vllm_plugin"]
)
def test_starting_is_light(start: str) -> None:
    assert loaded(start, HEAVY) == []


def test_no_road_is_loaded_by_who_does_not_take_it() -> None:
    """Extracting, merging, loading, searching and training need no other program."""
    start = "from dem_hub import DEMCallback, DEMModel, DistributionVector, search_coefficients\nimport dem_hub.models.export"
    assert loaded(start, [f"dem_hub.{road}" for road in ROADS] + OPTIONAL) == []


def test_no_road_is_a_dependency() -> None:
    """What a plain `pip install dem-hub` brings."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    required = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in project["dependencies"]}
    assert "torch" in required and required.isdisjoint(OPTIONAL)
