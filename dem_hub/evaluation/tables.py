"""Rows that the library `datasets` reads: tables in files, data frames, datasets on the Hub and in folders.

It is an extra (`data`), and is imported when it is needed. It decides what a file's columns and types are, so that a
file means here what it means in a training with it.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, MissingDependencyError

# The builder of `datasets` by the end of a file's name, with its options. JSONL is read without it, unless it is
# compressed.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")

# ID[@REVISION][:CONFIGURATION]:SPLIT, where the id is that of the Hub or a folder, and a split can have a slice:
# `test[:200]`.
_REFERENCE = re.compile(
    r"(?P<name>[^:@\s]+(?: [^:@\s]+)*)(@(?P<revision>[\w.\-/]+))?(:(?P<configuration>[\w.\-]+))?"
    r":(?P<split>\w[\w.\-]*(\[[\d:%\-]*\])?)"
)
_HUB_ID = re.compile(r"[\w.\-]+(/[\w.\-]+)?")

# What `Dataset.save_to_disk` writes.
_SAVED = "state.json"
_SAVED_SPLITS = "dataset_dict.json"

# Column names of what pandas takes for an index: values of a row beyond the header's columns.
_BEYOND_HEADER = "__index_level_"


def require(what: str) -> Any:
    """Return the module `datasets`.

    Args:
        what (`str`): What needs it, for the message.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If it is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependencyError(
            f"{what} needs the library datasets: pip install 'dem-hub[data]'. Texts and .jsonl files need nothing."
        )
    import datasets

    return datasets


def is_table(path: str | os.PathLike[str]) -> bool:
    """Return whether the library `datasets` is to read a file, by its name."""
    return _builder(Path(path)) is not None


def rows_of_file(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table in a file.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `datasets` cannot read it, or rows have more values than the header.
    """
    builder = _builder(file)
    assert builder is not None, "is_table comes first"
    name, options = builder
    loaded = _load(f"The file '{file}'", name, data_files=str(file.absolute()), split="train", **options)
    extra = [column for column in loaded.column_names if str(column).startswith(_BEYOND_HEADER)]
    if extra:
        raise ConfigError(f"{file} has rows with {len(extra)} values more than its header has names.")
    return list(loaded)


@dataclass(frozen=True)
class Reference:
    """A dataset by name: a Hub id or a folder, and a split.

    Its text is `ID[@REVISION][:CONFIGURATION]:SPLIT`. A folder that `Dataset.save_to_disk` wrote needs no split.
    """

    name: str
    split: str | None
    configuration: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "Reference | None":
        """Return the reference that a text is, or `None` if it is none."""
        whole = os.fspath(text)
        if os.path.isdir(whole):  # noqa: PTH112  it answers no to a text that is too long for a path
            return cls(whole, None) if (Path(whole) / _SAVED).is_file() else None
        match = _REFERENCE.fullmatch(whole)
        if match is None:
            return None
        reference = cls(match["name"], match["split"], match["configuration"], match["revision"])
        if reference.is_local or _HUB_ID.fullmatch(reference.name):
            return reference
        return None

    @property
    def is_local(self) -> bool:
        """True if it is a folder of this machine."""
        return Path(self.name).is_dir()

    def rows(self) -> list[dict[str, Any]]:
        """Load the rows.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If there is no such dataset, configuration or split.
        """
        folder = Path(self.name)
        if self.is_local and ((folder / _SAVED).is_file() or (folder / _SAVED_SPLITS).is_file()):
            return list(self._saved())
        what = f"The data set '{self.name}'"
        return list(_load(what, self.name, self.configuration, split=self.split, revision=self.revision))

    def _saved(self) -> Any:
        """Return what `save_to_disk` wrote: a dataset, or that of a split."""
        datasets = require(f"'{self.name}'")
        saved = datasets.load_from_disk(self.name)
        if not isinstance(saved, dict):
            return saved
        if self.split not in saved:
            raise ConfigError(f"'{self.name}' has no split '{self.split}'. Its splits are {', '.join(saved)}.")
        return saved[self.split]


def is_frame(data: Any) -> bool:
    """Return whether data is a data frame of pandas or polars, or a table of Arrow."""
    module = type(data).__module__.partition(".")[0]
    return module in ("pandas", "polars", "pyarrow") and type(data).__name__ in ("DataFrame", "Table")


def rows_of_frame(data: Any) -> list[dict[str, Any]]:
    """Return the rows of a data frame, in which what is missing is `None`.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a column has values of several kinds.
    """
    module = type(data).__module__.partition(".")[0]
    what = f"A {module}.{type(data).__name__}"
    datasets = require(what)
    if module == "pandas":
        return list(_refusing(what, partial(datasets.Dataset.from_pandas, data, preserve_index=False)))
    if module == "polars":
        return list(_refusing(what, partial(datasets.Dataset.from_polars, data)))
    return list(_refusing(what, partial(datasets.Dataset, data)))


def as_python(data: Any) -> Iterable[Any]:
    """Return a `datasets.Dataset` whose rows are mappings, whatever its format is, and anything else as it is."""
    datasets = sys.modules.get("datasets")
    if (
        datasets is not None
        and isinstance(data, datasets.Dataset)
        and data.format["type"] in ("pandas", "polars", "arrow")
    ):
        return data.with_format(None)  # type: ignore[no-any-return]
    return data  # type: ignore[no-any-return]


def _builder(file: Path) -> tuple[str, dict[str, Any]] | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    is_compressed = bool(suffixes) and suffixes[-1] in _COMPRESSED
    if is_compressed:
        suffixes.pop()
    if not suffixes or (suffixes[-1] == ".jsonl" and not is_compressed):
        return None
    return _BUILDERS.get(suffixes[-1])


def _load(what: str, *arguments: Any, **options: Any) -> Any:
    return _refusing(what, partial(require(what).load_dataset, *arguments, **options))


def _refusing(what: str, load: Callable[[], Any]) -> Any:
    """Call a function of `datasets`, and refuse what it cannot read in its own words."""
    datasets = require(what)
    try:
        return load()
    except (datasets.exceptions.DatasetsError, OSError, LookupError, TypeError, ValueError, StopIteration) as error:
        # It wraps what a parser says into an error that says less.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or "it has no rows"  # of which nothing is left but a StopIteration
        raise ConfigError(f"{what} cannot be read ({reason}).{_advice(reason)}") from error


def _advice(reason: str) -> str:
    if "onfig name is missing" in reason:
        return " Name the configuration before the split: ID:CONFIGURATION:SPLIT."
    return ""
