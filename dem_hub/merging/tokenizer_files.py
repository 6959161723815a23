"""The files of a tokenizer with more tokens in them, so that a merged model's tokenizer has what its vocabulary has.

The files stay those of the base but for the tokens: a tokenizer that a newer library has written again might not load in
an older one. Chat templates and the roles of special tokens stay the base's, too.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.tokenizer import Token, Vocabulary
from dem_hub.errors import CheckpointError, refuse
from dem_hub.files.names import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MODELS
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import as_mapping, read_json

logger = logging.getLogger(__name__)

# Each text of a file that is the old name of a renamed token, and its new name.
_Names = Mapping[str, str]


def base_vocabulary(files: Mapping[str, Path]) -> Vocabulary | None:
    """Return the tokens of the tokenizer among a model's side files; `None` if there is none that can be read."""
    for name, path in files.items():
        if "/" not in name and any(fnmatch(name, pattern) for pattern in (TOKENIZER, *TOKENIZER_MODELS)):
            return Vocabulary.read(path.parent)
    return None


def with_tokens(files: Mapping[str, Path], base: Vocabulary | None, tokens: Mapping[str, Token]) -> dict[str, str]:
    """Return the text of each file of a tokenizer that changes if tokens are added.

    Args:
        files (`Mapping[str, Path]`): The side files of the base, by their paths; see
            [`dem_hub.files.side_files.side_files_of`].
        base ([`Vocabulary`], *optional*): The tokens of the base's tokenizer.
        tokens (`Mapping[str, Token]`): The new tokens by their texts. One at the id of a token that the base has takes its
            place.

    Returns:
        `dict[str, str]`: The texts, by path.
    """
    if not tokens:
        return {}
    if base is None:
        logger.warning(
            "The merged model has %d tokens that its base lacks (%r), and the base has no tokenizer to add them to.",
            len(tokens),
            next(iter(tokens)),
        )
        return {}
    at = {token.id: text for text, token in tokens.items()}
    names = {text: at[id] for text, id in base.ids.items() if id in at}
    texts = {}
    has_tokenizer = TOKENIZER in files
    for path, file in files.items():
        if fnmatch(path, TOKENIZER) or fnmatch(path, "tokenizer.*.json"):
            texts[path] = _tokenizer(_read(file, names), tokens)
            _check(texts[path], file, tokens)
        elif path == TOKENIZER_CONFIG:
            texts[path] = _tokenizer_config(_read(file, names), tokens, str(file), is_needed=not has_tokenizer)
        elif path == ADDED_TOKENS:
            texts[path] = _dump(_read(file, names) | {text: token.id for text, token in tokens.items()})
        elif path == SPECIAL_TOKENS and names:
            texts[path] = _dump(_read(file, names))
    if not has_tokenizer and TOKENIZER_CONFIG not in files:
        texts[TOKENIZER_CONFIG] = _tokenizer_config({}, tokens, TOKENIZER_CONFIG, is_needed=True)
    return texts


def _tokenizer(data: dict[str, Any], tokens: Mapping[str, Token]) -> str:
    """Return the text of a `tokenizer.json` with tokens added."""
    new = [_entry(text, token) for text, token in tokens.items()]
    ids = {entry["id"] for entry in new}
    old = [entry for entry in data.get("added_tokens") or () if entry["id"] not in ids]
    data["added_tokens"] = sorted([*old, *new], key=lambda entry: int(entry["id"]))
    return _dump(data)


def _check(text: str, file: Path, tokens: Mapping[str, Token]) -> None:
    """Refuse a tokenizer that reads as something else than what was meant: each token at its id."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    faults = []
    for token, record in tokens.items():
        if tokenizer.token_to_id(token) != record.id:
            faults.append(
                f"{shown(token)} would have the id {tokenizer.token_to_id(token)}, and its row is {record.id}"
            )
    if faults:
        refuse(
            CheckpointError,
            f"The tokens that vectors bring cannot be added to '{file}'.",
            faults,
            "Use a base with the tokenizer that the fine-tunes began with.",
        )


def _tokenizer_config(data: dict[str, Any], tokens: Mapping[str, Token], where: str, *, is_needed: bool) -> str:
    """Return the text of a `tokenizer_config.json` with tokens added, where it lists tokens or must."""
    if is_needed or "added_tokens_decoder" in data:
        decoder = as_mapping(data.setdefault("added_tokens_decoder", {}), f"{where}: added_tokens_decoder")
        for text, token in tokens.items():
            entry = _entry(text, token)
            decoder[str(entry.pop("id"))] = entry
    return _dump(data)


def _entry(text: str, token: Token) -> dict[str, Any]:
    return {**asdict(token), "content": text}


def _read(file: Path, names: _Names) -> dict[str, Any]:
    """Return the data of a file, with the new names of renamed tokens."""
    data = read_json(file, foreign=True)
    return {str(key): value for key, value in _renamed(data, names).items()} if names else data


def _renamed(value: Any, names: _Names) -> Any:
    """Return JSON data in which each text that is a renamed token has its new name, also as a key."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_renamed(entry, names) for entry in value]
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(entry, names) for key, entry in value.items()}
    return value


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"
