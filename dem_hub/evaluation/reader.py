"""The reader: a dataset of any form as windows of token ids.

A dataset is read in two steps. Its rows become documents, whole; then documents are cut into windows, or packed
first. The steps are separate because packed documents must be split before they are packed: afterwards, two of them
share a window.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import MAX_LENGTH
from dem_hub.errors import ConfigError, refuse
from dem_hub.evaluation.documents import tokenize_row
from dem_hub.evaluation.rows import rows_of
from dem_hub.evaluation.scorable import positions, refuse_not_scorable
from dem_hub.evaluation.split import split
from dem_hub.evaluation.windows import Window, count_scored

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """The rules by which the rows of a dataset become windows.

    Args:
        tokenizer (`Callable`): Returns the tokenizer. It is called only for rows with text.
        max_length (`int`): Tokens in a window. A longer document is cut into several windows.
        is_seq2seq (`bool`): Whether the model's labels are another sequence than its input.
        packing (`bool`): Whether documents are joined, each with the end-of-text token after it, and cut into full
            windows, as many trainings do.
        positions (`int`, *optional*): The positions that the model has. A window is never longer.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `max_length` is below 2. Nothing is predicted in a window of one token.
    """

    tokenizer: Callable[[], Any]
    max_length: int = MAX_LENGTH
    is_seq2seq: bool = False
    packing: bool = False
    positions: int | None = None

    @classmethod
    def of_model(
        cls, config: "PretrainedConfig", tokenizer: Callable[[], Any], max_length: int, *, packing: bool = False
    ) -> "Reader":
        """Return a reader for the model of a config.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the model has no likelihood of a text; see `scorable`.
        """
        refuse_not_scorable(config)
        return cls(tokenizer, max_length, bool(config.is_encoder_decoder), packing, positions(config))

    @property
    def length(self) -> int:
        """Tokens in a window: `max_length`, or as many as the model has positions."""
        return min(self.max_length, self.positions or self.max_length)

    def __post_init__(self) -> None:
        """Check `max_length`."""
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}; it must be 2 or more.")

    def windows(self, data: Any) -> list[Window]:
        """Return the windows of a dataset in which something is scored.

        Args:
            data: Rows, in a list, a `datasets.Dataset`, a mapping of columns, or a data frame; the path of a file (a
                text, `.jsonl`, `.json`, `.csv`, `.parquet`); or a Hub id or folder with a split,
                `openai/gsm8k:main:test`. A row is a text, a list of token ids, or a mapping as TRL has them: with
                `text`, `messages` (the answers are scored), `prompt` and `completion` (the completion is scored), or
                `input_ids` and, if not all of them are scored, `labels`, `completion_mask` or `assistant_masks`.
                `tools` and `chat_template_kwargs` go to the chat template.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If rows have another form. Lists them.
        """
        return self.cut(self.documents(data))

    def documents(self, data: Any) -> list[Window]:
        """Return the rows of a dataset, each as one window of its full length; see [`Reader.windows`]."""
        rows = rows_of(data)
        documents = []
        faults = []
        for number, row in enumerate(rows):
            try:
                documents.append(tokenize_row(row, number, self.tokenizer, is_seq2seq=self.is_seq2seq))
            except (ConfigError, TypeError, ValueError) as error:
                faults.append(f"row {number + 1}: {error}")
        if faults:
            refuse(ConfigError, f"{len(faults)} of {len(rows)} rows cannot be read.", faults)
        self._tell_of_long_ones(documents)
        return documents

    def cut(self, documents: Sequence[Window]) -> list[Window]:
        """Return documents as windows of at most `length` tokens, packed if the reader packs."""
        if self.packing and not self.is_seq2seq:
            documents = self._pack(documents)
        windows: list[Window] = []
        for document in documents:
            windows += self._cut_document(document)
        return [window for window in windows if count_scored(window, is_seq2seq=self.is_seq2seq)]

    def split(self, documents: Sequence[Window], share: float, seed: int) -> tuple[list[Window], list[Window]]:
        """Return the windows of two disjoint parts of some documents; `share` is the fraction of the second part.

        Documents that are packed are split before they are packed, because packed documents share windows. A single
        document can only be split by its windows.
        """
        if self.packing and len(documents) > 1:
            first, second = split(documents, share, seed)
            return self.cut(first), self.cut(second)
        return split(self.cut(documents), share, seed)

    def _pack(self, documents: Sequence[Window]) -> list[Window]:
        """Join documents to one stream and cut it. A window counts to the document that its first token is from."""
        end = self.tokenizer().eos_token_id
        if end is None:
            raise ConfigError(
                "packing needs a tokenizer with an end-of-text token, and this one has none. Leave packing out."
            )
        ids: list[int] = []
        labels: list[int] = []
        owners: list[int] = []
        for document in documents:
            ids += [*document.input_ids, end]
            labels += [*document.labels, end]
            owners += [document.document] * (len(document) + 1)
        windows = []
        for start in range(0, len(ids), self.length):
            stop = start + self.length
            windows.append(Window(tuple(ids[start:stop]), tuple(labels[start:stop]), owners[start]))
        return windows

    def _tell_of_long_ones(self, documents: Sequence[Window]) -> None:
        count = sum(len(document) > self.length for document in documents)
        if count and self.length < self.max_length:
            logger.warning(
                "The model has %d positions, so that windows have %d tokens and not max_length's %d; "
                "%d of %d documents are longer.",
                self.length,
                self.length,
                self.max_length,
                count,
                len(documents),
            )

    def _cut_document(self, document: Window) -> list[Window]:
        """Cut a document into windows. Of a sequence-to-sequence row only the beginning is kept, as in training."""
        starts = range(1) if self.is_seq2seq else range(0, len(document), self.length)
        windows = []
        for start in starts:
            part = slice(start, start + self.length)
            windows.append(Window(document.input_ids[part], document.labels[part], document.document))
        return windows


def read_and_split(
    reader: Reader, datasets: Mapping[str, Any], held_out: float | Mapping[str, Any], seed: int
) -> tuple[dict[str, list[Window]], dict[str, list[Window]]]:
    """Read several datasets, and split each into windows to search on and windows that are held out.

    Args:
        reader ([`Reader`]): How rows become windows.
        datasets (`Mapping[str, Any]`): Data by distribution, in any form that [`Reader.windows`] takes.
        held_out (`float` or `Mapping[str, Any]`): The fraction of the documents that is held out, or other data for
            that by distribution.
        seed (`int`): Decides which documents are held out.

    Returns:
        `tuple[dict[str, list[Window]], dict[str, list[Window]]]`: By distribution, the windows to search on and those
            held out.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a dataset cannot be read or has nothing to score. Lists everything that is
            wrong.
    """
    searched: dict[str, list[Window]] = {}
    held: dict[str, list[Window]] = {}
    faults = []
    if isinstance(held_out, Mapping):
        faults = [f"'{name}': held out, and not searched on" for name in held_out if name not in datasets]
    for name, rows in datasets.items():
        try:
            documents = reader.documents(rows)
            windows = reader.cut(documents)
            if not windows:
                faults.append(
                    f"'{name}': there is nothing to score. "
                    "It is empty, or no row has a token that is predicted from others before it"
                )
            elif isinstance(held_out, Mapping):
                searched[name] = windows
                held[name] = reader.windows(held_out.get(name, []))
            else:
                searched[name], held[name] = reader.split(documents, held_out, seed)
        except ConfigError as error:
            faults.append(f"'{name}': {error}")
    if faults:
        refuse(ConfigError, f"{len(faults)} of {len(datasets)} distributions cannot be used.", faults)
    return searched, held
