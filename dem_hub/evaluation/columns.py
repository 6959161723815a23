"""The choice of columns: which of a dataset's columns are the prompt and the completion, or the text.

Datasets on the Hub have columns of all names (`question`, `answer`), and a guess would score the wrong ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dem_hub.errors import ConfigError

# Columns that go to the chat template, whatever else is chosen.
_KEPT = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Selected:
    """A dataset of any form with the names of its columns that count.

    Args:
        data: What [`Reader.windows`] takes.
        columns (`tuple[str, ...]`): The columns of the prompt and of the completion, or one column that has a text or
            a conversation.
    """

    data: Any
    columns: tuple[str, ...]

    def select(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Return rows with the columns that count, under the names that [`Reader.windows`] knows.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a row has no such column.
        """
        selected = []
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise ConfigError(f"row {number} is a {type(row).__name__} and has no columns; leave columns out.")
            missing = [f"'{name}'" for name in self.columns if name not in row]
            if missing:
                raise ConfigError(
                    f"row {number} has no column {', '.join(missing)}. Its columns are {', '.join(map(str, row))}."
                )
            named = dict(zip(self._meanings(row), (row[name] for name in self.columns), strict=True))
            selected.append({name: row[name] for name in _KEPT if name in row} | named)
        return selected

    def _meanings(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if len(self.columns) == 2:
            return ("prompt", "completion")
        value = row[self.columns[0]]
        return ("text" if value is None or isinstance(value, str) else "messages",)


def select_columns(datasets: Mapping[str, Any], columns: Mapping[str, str | Sequence[str]] | None) -> dict[str, Any]:
    """Return datasets by name, those of them whose columns are given with their columns.

    Args:
        datasets (`Mapping[str, Any]`): Data by distribution.
        columns (`Mapping[str, Sequence[str]]`, *optional*): One column or two by distribution; see [`Selected`].

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there is no such distribution, or there are not one or two columns.

    Example:

    ```python
    >>> from dem_hub.evaluation.columns import select_columns
    >>> from dem_hub.evaluation.rows import rows_of
    >>> rows = [{"question": "1 + 1", "answer": "2", "id": 7}]
    >>> rows_of(select_columns({"maths": rows}, {"maths": ("question", "answer")})["maths"])
    [{'prompt': '1 + 1', 'completion': '2'}]

    ```
    """
    selected = dict(datasets)
    for name, given in (columns or {}).items():
        chosen = (given,) if isinstance(given, str) else tuple(given)
        if name not in datasets:
            raise ConfigError(f"There are columns of '{name}', and the data are {', '.join(map(repr, datasets))}.")
        if not 1 <= len(chosen) <= 2 or not all(chosen):
            raise ConfigError(
                f"The columns of '{name}' are {', '.join(map(repr, chosen))}; give those of the prompt and of the "
                "completion, or one of a text or a conversation."
            )
        selected[name] = Selected(datasets[name], chosen)
    return selected


def with_columns(
    datasets: Mapping[str, Any] | None,
    held_out: float | Mapping[str, Any],
    columns: Mapping[str, str | Sequence[str]] | None,
) -> tuple[Mapping[str, Any] | None, float | Mapping[str, Any]]:
    """Return the data to search on and what is held out, those of them whose columns are given with their columns."""
    if not columns:
        return datasets, held_out
    selected = select_columns(datasets or {}, columns)
    if isinstance(held_out, Mapping):
        held_out = select_columns(held_out, {name: given for name, given in columns.items() if name in held_out})
    return selected, held_out
