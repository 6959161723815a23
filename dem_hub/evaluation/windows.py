"""Windows: the token ids of one forward pass with a label for each, and the number of the document they were cut from.

Everything that is scored is a [`Window`]. A window keeps the number of its document, so that a split never puts two
windows of one document on two sides, and standard errors can treat documents, not windows, as independent.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The label of a token that is context only. PyTorch's cross-entropy ignores it by default, and transformers uses it
# everywhere.
NOT_SCORED = -100


@dataclass(frozen=True)
class Window:
    """Token ids, and a label for each: the token itself, or `NOT_SCORED` for context.

    The labels of a sequence-to-sequence model are another sequence, with a length of its own.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    document: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def of(cls, row: "Window | Sequence[int]") -> "Window":
        """Return a window as it is, or a window of plain token ids, all of which are scored."""
        if isinstance(row, Window):
            return row
        return cls(tuple(row), tuple(row))


def count_scored(window: Window, *, is_seq2seq: bool = False) -> int:
    """Return how many tokens of a window are predicted. A causal model does not predict the first one."""
    labels = window.labels if is_seq2seq else window.labels[1:]
    return sum(label != NOT_SCORED for label in labels)


def hash_windows(windows: Iterable[Window]) -> str:
    """Return 16 hex digits that identify the ids and labels of some windows.

    The numbers of the documents do not count.
    """
    content = json.dumps([[window.input_ids, window.labels] for window in windows], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
