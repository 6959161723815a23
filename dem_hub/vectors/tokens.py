"""The tokens that a vector's fine-tune has and its base lacks.

An extracted vector has them in its config. An adapter that PEFT wrote has none there, so they are read from the
`tokenizer.json` beside it, and only if the adapter changes an embedding: then the file comes along into each copy of the
adapter, as `vector_tokenizer.json`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tokenizer import Token, Vocabulary, new_tokens
from dem_hub.files.links import check_link
from dem_hub.files.names import TOKENIZER, VECTOR_TOKENIZER
from dem_hub.hub.download import resolve
from dem_hub.vectors.lora.embeddings import has_embedding, vocabulary_rows

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector

# The tokens of adapters that are open, by the folder of the base. A search asks at each of its points, and a tokenizer
# is a large file.
_FOUND: "WeakKeyDictionary[DistributionVector, dict[Path, Mapping[str, Token] | None]]" = WeakKeyDictionary()


def tokens_of(vector: "DistributionVector", base: Base) -> Mapping[str, Token] | None:
    """Return the tokens that a vector's fine-tune has and the base lacks, by their texts.

    Args:
        vector ([`DistributionVector`]): The vector.
        base ([`Base`]): The base it is put on.

    Returns:
        `Mapping[str, Token]` or `None`: The tokens; `None` if it is not known what the vector's rows stand for.
    """
    if vector.config is not None:
        return vector.config.tokens
    found = _FOUND.setdefault(vector, {})
    if base.folder not in found:
        found[base.folder] = _tokens_of_adapter(vector, base)
    return found[base.folder]


def _tokens_of_adapter(vector: "DistributionVector", base: Base) -> Mapping[str, Token] | None:
    rows = vocabulary_rows(vector.folder, base)
    if not rows:
        return {}
    for file in adapter_tokenizer(vector).values():
        finetuned = Vocabulary.read_file(file)
        return new_tokens(finetuned, base.vocabulary, rows=rows, base_rows=base.vocabulary_rows)
    return None


def adapter_tokenizer(vector: "DistributionVector") -> dict[str, Path]:
    """Return the tokenizer of an adapter that PEFT wrote, by the name of its copies.

    It is empty if there is none, and for an adapter that changes no embedding. The file of an adapter from the Hub is
    downloaded.
    """
    if vector.config is not None:
        return {}
    found = tokenizer_beside(vector.folder)
    if found or vector.commit is None or not has_embedding(vector.folder):
        return found
    source = replace(vector.source, revision=vector.commit)
    folder = resolve(source, (TOKENIZER,), replace(vector.options, force_download=False)).folder
    return {VECTOR_TOKENIZER: folder / TOKENIZER} if (folder / TOKENIZER).is_file() else {}


def tokenizer_beside(folder: Path) -> dict[str, Path]:
    """Return the tokenizer in the folder of an adapter, by the name of its copies.

    It is empty if there is none, and for an adapter that changes no embedding.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the file is a link that leads out of the folder.
    """
    if not has_embedding(folder):
        return {}
    for name in (VECTOR_TOKENIZER, TOKENIZER):
        path = folder / name
        if path.is_file():
            check_link(path)
            return {VECTOR_TOKENIZER: path}
    return {}
