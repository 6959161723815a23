"""What a user calls a dataset, as windows of token ids with labels.

Everything that is scored is a [`Window`]: rows are told apart once, here, and a window remembers the document it was cut from, so that
a split never puts two pieces of one document on two sides.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dem_hub.defaults import MAX_LENGTH
from dem_hub.errors import ConfigError, refuse

NOT_SCORED = -100  # the label of a token that is context only, as everywhere in transformers
_SHOWN = 5  # faulty rows in a message


@dataclass(frozen=True)
class Window:
    """Token ids, and a label for each (`NOT_SCORED`: context only); a sequence-to-sequence model's labels have a length of their own."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    document: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def of(cls, row: "Window | Sequence[int]") -> "Window":
        """Plain ids are scored all."""
        return row if isinstance(row, Window) else cls(tuple(row), tuple(row))


@dataclass(frozen=True)
class Reader:
    """How rows become windows.

    `tokenizer` gives the tokenizer and is called for text only; `is_seq2seq` says that labels are another sequence than the input;
    `packing` joins documents, each with the end-of-text token after it, and cuts full windows, as training does.
    """

    tokenizer: Callable[[], Any]
    max_length: int = MAX_LENGTH
    is_seq2seq: bool = False
    packing: bool = False

    def __post_init__(self) -> None:
        """Refuse windows in which nothing is predicted."""
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}; it must be 2 or more.")

    def windows(self, data: Any) -> list[Window]:
        """The windows of a dataset in which something is scored.

        Args:
            data: texts; the path of a text file, or of a JSONL file of rows; or rows (a list, or a `datasets.Dataset`) with `text`,
                `messages` (the answers are scored), `prompt` and `completion` (the completion is), or `input_ids` and, if not all of
                them are scored, `labels`; or lists of token ids.

        Raises:
            `ConfigError`: rows of another kind; names them.
        """
        return self.cut(self.documents(data))

    def documents(self, data: Any) -> list[Window]:
        """The rows of a dataset, whole; see [`Reader.windows`]."""
        rows = read_rows(data) if isinstance(data, (str, Path)) else list(data)
        documents, faults = [], []
        for number, row in enumerate(rows):
            try:
                documents.append(self._document(row, number))
            except (ConfigError, TypeError, ValueError) as error:
                faults.append(f"row {number + 1}: {error}")
        if faults:
            more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
            refuse(ConfigError, f"{len(faults)} of {len(rows)} rows cannot be read.", [*faults[:_SHOWN], *more])
        return documents

    def cut(self, documents: Sequence[Window]) -> list[Window]:
        """Documents as windows, packed where that is asked for."""
        if self.packing and not self.is_seq2seq:
            documents = self._packed(documents)
        return [
            window
            for document in documents
            for window in self._cut(document)
            if is_scored(window, is_seq2seq=self.is_seq2seq)
        ]

    def split(self, documents: Sequence[Window], share: float, seed: int) -> tuple[list[Window], list[Window]]:
        """Documents as the windows of two parts; several are told apart before they are packed, which lets them share windows."""
        if self.packing and len(documents) > 1:
            first, second = split(documents, share, seed)
            return self.cut(first), self.cut(second)
        return split(self.cut(documents), share, seed)

    def _document(self, row: Any, number: int) -> Window:
        """A row, whole."""
        if isinstance(row, Window):
            return row
        if isinstance(row, str):
            row = {"text": row}
        elif not isinstance(row, Mapping):
            row = {"input_ids": row}
        if "input_ids" in row:
            ids, labels = self._given(row)
        elif "messages" in row:
            ids, labels = _scored_answers(self.tokenizer(), row["messages"])
        elif "prompt" in row and "completion" in row:
            ids, labels = self._completion(row["prompt"], row["completion"])
        elif "text" in row and not self.is_seq2seq:
            ids = labels = _ids(self.tokenizer()(row["text"])["input_ids"])
        else:
            kinds = (
                "'prompt' and 'completion', or 'input_ids' and 'labels'"
                if self.is_seq2seq
                else "'text', 'messages' or 'input_ids'"
            )
            raise ConfigError(f"Rows have the columns {', '.join(map(str, row))}; give {kinds}.")
        return Window(ids, labels, number)

    def _given(self, row: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids as they are, without what the attention mask hides."""
        ids = _ids(row["input_ids"])
        if self.is_seq2seq:
            if "labels" not in row:
                raise ConfigError("it has input_ids and no labels, and a sequence-to-sequence model scores its labels.")
            return ids, _ids(row["labels"])
        labels = _ids(row["labels"]) if row.get("labels") is not None else ids
        seen = _ids(row["attention_mask"]) if row.get("attention_mask") is not None else (1,) * len(ids)
        if not len(ids) == len(labels) == len(seen):
            raise ConfigError(
                f"it has {len(ids)} input_ids, {len(labels)} labels and {len(seen)} in the mask; they must be as many."
            )
        return tuple(i for i, m in zip(ids, seen, strict=True) if m), tuple(
            i for i, m in zip(labels, seen, strict=True) if m
        )

    def _completion(self, prompt: Any, completion: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The completion is scored, given the prompt."""
        tokenizer = self.tokenizer()
        if self.is_seq2seq:
            return _ids(tokenizer(prompt)["input_ids"]), _ids(tokenizer(text_target=completion)["input_ids"])
        if not isinstance(prompt, str):  # messages, in both
            return _scored_answers(tokenizer, [*prompt, *completion])
        before = _ids(tokenizer(prompt)["input_ids"])
        after = _ids(tokenizer(completion, add_special_tokens=False)["input_ids"])
        return before + after, (NOT_SCORED,) * len(before) + after

    def _packed(self, documents: Sequence[Window]) -> list[Window]:
        """One stream, cut so that a window begins with the document that it is counted to."""
        end = self.tokenizer().eos_token_id
        if end is None:
            raise ConfigError(
                "packing needs a tokenizer with an end-of-text token, and this one has none. Leave packing out."
            )
        ids = [token for document in documents for token in (*document.input_ids, end)]
        labels = [label for document in documents for label in (*document.labels, end)]
        owners = [document.document for document in documents for _ in (*document.input_ids, end)]
        starts = range(0, len(ids), self.max_length)
        parts = [slice(start, start + self.max_length) for start in starts]
        return [Window(tuple(ids[part]), tuple(labels[part]), owners[part.start]) for part in parts]

    def _cut(self, document: Window) -> list[Window]:
        if self.is_seq2seq:
            return [
                Window(document.input_ids[: self.max_length], document.labels[: self.max_length], document.document)
            ]
        parts = [slice(start, start + self.max_length) for start in range(0, len(document.input_ids), self.max_length)]
        return [Window(document.input_ids[part], document.labels[part], document.document) for part in parts]


def check_files(datasets: Mapping[str, Any]) -> None:
    """Refuse distributions whose file is not there, before anything is loaded for them.

    Raises:
        `ConfigError`: lists each, by its name.
    """
    # not Path's own, which raise where a text was taken for a path and is too long for one
    is_file, is_dir = os.path.isfile, os.path.isdir
    lost = {name: data for name, data in datasets.items() if isinstance(data, str | os.PathLike) and not is_file(data)}
    if lost:
        faults = [
            f"'{name}': '{str(file)[:200]}' is {'a folder' if is_dir(file) else 'not there'}"
            for name, file in lost.items()
        ]
        remedy = "Give the path of a text or of JSONL rows; in Python a text itself goes into a list."
        refuse(ConfigError, f"{len(lost)} of {len(datasets)} distributions have no file.", faults, remedy)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file: the JSON objects of a `.jsonl`, or any other file as one text.

    Raises:
        `ConfigError`: a line that is not a JSON object, or an empty file; names the line.
    """
    file = Path(path)
    try:
        content = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 ({error}). Convert it.") from error
    if file.suffix != ".jsonl":
        rows: list[dict[str, Any]] = [{"text": content}]
    else:
        rows = []
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                rows.append(_json_object(line, f"{file}, line {number}"))
    rows = [row for row in rows if not isinstance(row.get("text"), str) or row["text"].strip()]
    if not rows:
        raise ConfigError(f"{file} has no text in it.")
    return rows


def is_scored(window: Window, *, is_seq2seq: bool = False) -> bool:
    """Whether any token of it is predicted; the first of a window is not."""
    return any(label != NOT_SCORED for label in (window.labels if is_seq2seq else window.labels[1:]))


def split(windows: Sequence[Window], share: float, seed: int = 0) -> tuple[list[Window], list[Window]]:
    """Two disjoint parts, by documents; of a single document, its beginning and its end.

    Args:
        windows (`Sequence[Window]`): of one distribution.
        share (`float`): of the documents for the second part, 0 to 1; at least one where there are two.
        seed (`int`): which ones.

    Returns:
        `tuple[list[Window], list[Window]]`: the second is empty where there is a single window.

    Example:

    ```python
    >>> from dem_hub.evaluation.data import Window, split
    >>> first, second = split([Window((1, 2), (1, 2), document) for document in range(8)], 0.25)
    >>> len(first), len(second)
    (6, 2)

    ```
    """
    documents = sorted({window.document for window in windows})
    if len(documents) < 2:
        count = min(max(1, round(share * len(windows))), len(windows) - 1) if share else 0
        return list(windows[: len(windows) - count]), list(windows[len(windows) - count :])
    count = min(max(1, round(share * len(documents))), len(documents) - 1) if share else 0
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {documents[place] for place in order[:count]}
    return [w for w in windows if w.document not in held], [w for w in windows if w.document in held]


def read_and_split(
    reader: Reader, datasets: Mapping[str, Any], held_out: float | Mapping[str, Any], seed: int
) -> tuple[dict[str, list[Window]], dict[str, list[Window]]]:
    """Windows to search on and to accept on, by distribution; everything wrong with the data in one error."""
    data, held = {}, {}
    faults = [
        f"'{name}': held out, and not searched on"
        for name in (held_out if isinstance(held_out, Mapping) else ())
        if name not in datasets
    ]
    for name, rows in datasets.items():
        try:
            documents = reader.documents(rows)
            windows = reader.cut(documents)
            if not windows:
                faults.append(
                    f"'{name}': there is nothing to score: it is empty, or no row has a token that is predicted from others"
                )
            elif isinstance(held_out, Mapping):
                data[name], held[name] = windows, reader.windows(held_out.get(name, []))
            else:
                data[name], held[name] = reader.split(documents, held_out, seed)
        except ConfigError as error:
            faults.append(f"'{name}': {error}")
    if faults:
        refuse(ConfigError, f"{len(faults)} of {len(datasets)} distributions cannot be used.", faults)
    return data, held


def digest(windows: Iterable[Window]) -> str:
    """Which data this is: a hash of ids and labels, 16 hex digits."""
    content = json.dumps([[window.input_ids, window.labels] for window in windows], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not a JSON object ({error}).") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: not a JSON object, but {type(row).__name__}.")
    return row


def _ids(values: Any) -> tuple[int, ...]:
    ids = torch.as_tensor(values)
    if ids.dim() != 1 or (ids.numel() and (ids.is_floating_point() or ids.is_complex())):
        raise ConfigError(f"{type(values).__name__} of shape {list(ids.shape)} is no list of token ids.")
    return tuple(ids.tolist())


def _scored_answers(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A conversation through the chat template; what the assistant says is scored."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "it has messages, and the tokenizer has no chat template. Give 'text', or a tokenizer with a template."
        )

    def render(turns: Sequence[Mapping[str, str]], *, prompt: bool = False) -> tuple[int, ...]:
        return _ids(
            tokenizer.apply_chat_template(list(turns), tokenize=True, return_dict=False, add_generation_prompt=prompt)
        )

    ids = render(messages)
    labels = [NOT_SCORED] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before, until = render(messages[:number], prompt=True) if number else (), render(messages[: number + 1])
            if ids[: len(before)] != before or ids[: len(until)] != until:
                raise ConfigError(
                    f"the chat template writes the turns before message {number} differently than in the whole, so that the answer cannot "
                    "be told from its context. Give 'prompt' and 'completion', or 'input_ids' and 'labels'."
                )
            labels[len(before) : len(until)] = ids[len(before) : len(until)]
    return ids, tuple(labels)
