"""The tokens of a model's tokenizer: what each row of an embedding stands for.

Two fine-tunes of one base may give the same row to different tokens. So a row that the base's tokenizer has no token for
is known by its token, and the tokens of both sides are compared here. The `tokenizers` library reads the file; where
there is none, transformers reads what there is, without code of strangers.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dem_hub.files.names import TOKENIZER, TOKENIZER_MODELS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Token:
    """A token that was added to a tokenizer: its row, and how texts are searched for it, as in `tokenizer.json`."""

    id: int
    special: bool = False
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer: the id of each, and the records of those that were added to its model's own pieces."""

    ids: Mapping[str, int]
    added: Mapping[str, Token]

    @property
    def size(self) -> int:
        """The id that the next added token gets."""
        return 1 + max(self.ids.values(), default=-1)

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Return the tokens of a tokenizer of transformers."""
        decoder = tokenizer.added_tokens_decoder
        return cls(dict(tokenizer.get_vocab()), {str(token): _token(id, token) for id, token in decoder.items()})

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary | None":
        """Read the tokenizer of a model's folder; `None` if it has none that can be read."""
        if (folder / TOKENIZER).is_file():
            return cls.read_file(folder / TOKENIZER)
        if not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_MODELS):
            return None
        from transformers import AutoTokenizer

        try:
            return cls.of(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        except Exception as error:  # noqa: BLE001  each kind of tokenizer raises its own, also for missing libraries
            _warn_unread(folder, error)
            return None

    @classmethod
    def read_file(cls, path: Path) -> "Vocabulary | None":
        """Read a `tokenizer.json`; `None` if it cannot be read."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001  the library raises nothing more exact
            _warn_unread(path, error)
            return None
        decoder = tokenizer.get_added_tokens_decoder()
        added = {token.content: _token(id, token) for id, token in decoder.items()}
        return cls(tokenizer.get_vocab(with_added_tokens=True), added)


def new_tokens(
    finetuned: Vocabulary | None, base: Vocabulary | None, *, rows: int, base_rows: int
) -> dict[str, Token] | None:
    """Return the tokens of a fine-tune that its base lacks, or has at another id.

    Args:
        finetuned ([`Vocabulary`], *optional*): The fine-tune's tokens; `None` if they are not known.
        base ([`Vocabulary`], *optional*): Those of the base. Where they are not known, rows that the base lacks are new.
        rows (`int`): Number of rows of the fine-tune's embedding. A token without a row is left out.
        base_rows (`int`): Number of rows of the base's.

    Returns:
        `dict[str, Token]` or `None`: The new tokens. `None` if it is not known what all rows stand for: the tokenizer
            is not known, or it has new pieces that nobody added, which only a tokenizer of its own can have.
    """
    if finetuned is None:
        return None
    known: Mapping[str, int] = {} if base is None else base.ids
    first = base_rows if base is None else 0
    new = [text for text, id in finetuned.ids.items() if first <= id < rows and known.get(text) != id]
    pieces = [text for text in new if text not in finetuned.added]
    if pieces:
        logger.warning(
            "The fine-tune's tokenizer has %d pieces of its own that the base's lacks (%r). Its rows are taken by "
            "their numbers, and the merged model needs the fine-tune's tokenizer.",
            len(pieces),
            pieces[0],
        )
        return None
    return {text: finetuned.added[text] for text in sorted(new)}


def _token(id: int, token: Any) -> Token:
    flags = {name: bool(getattr(token, name)) for name in ("special", "normalized", "single_word", "lstrip", "rstrip")}
    return Token(int(id), **flags)


def _warn_unread(path: Path, error: Exception) -> None:
    reason = (str(error).splitlines() or [""])[0]
    logger.warning("The tokenizer '%s' cannot be read (%s: %s).", path, type(error).__name__, reason)
