"""Fine-tunes that bring tokens, and what a merge of them must be, computed token by token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.tiny_models import add_tokens, edit_json, load_tensors, reshard

INPUT = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"

# Rows of the base's embeddings.
ROWS = 64


def save_words(folder: Path, count: int, reserved: Sequence[str] = ()) -> None:
    """Save a tokenizer of the words w0, w1, ...; the last of its `count` tokens are special and reserved."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(count - len(reserved))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
    fast.add_tokens(list(reserved), special_tokens=True)
    fast.save_pretrained(folder)


def make_base(source: Path, folder: Path, count: int, reserved: Sequence[str] = ()) -> Path:
    """Copy a tiny model, with a tokenizer of `count` tokens. Rows after these are padding."""
    reshard(source, folder)
    save_words(folder, count, reserved)
    return folder


def finetune(base: Path, folder: Path, tokens: Sequence[str], seed: int, **flags: bool) -> Path:
    """Change all weights of a model, and add tokens with rows of their own."""
    generator = torch.Generator().manual_seed(seed)
    add_tokens(base, folder, tokens, **flags)
    rows = max(ROWS, *ids_of(folder).values()) + 1 if max(ids_of(folder).values()) >= ROWS else ROWS

    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name in (INPUT, OUTPUT):
                new = torch.zeros(rows - len(tensor), tensor.shape[1], dtype=tensor.dtype)
                tensors[name] = torch.cat([tensor, new])
            tensors[name] = tensors[name] + torch.randn(tensors[name].shape, generator=generator).to(tensor.dtype) / 10

    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    reshard(base, folder, change=change)
    for name, content in written.items():
        (folder / name).write_bytes(content)
    edit_json(folder / "config.json", vocab_size=rows)
    return folder


def ids_of(folder: Path) -> dict[str, int]:
    """The id of each token of a folder's tokenizer, as transformers reads it."""
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(folder).get_vocab())


def by_token(name: str, base: Path, finetunes: Mapping[Path, float], ids: Mapping[str, int]) -> dict[str, Tensor]:
    """What each token's row of a merged tensor must be, in float64.

    Args:
        name (`str`): The tensor.
        base (`Path`): The base.
        finetunes (`Mapping[Path, float]`): The coefficient of each fine-tune.
        ids (`Mapping[str, int]`): The tokens of the merged tokenizer.
    """
    of_base = load_tensors(base)[name].double()
    known = ids_of(base)
    sides: list[tuple[float, Tensor, dict[str, int]]] = []
    for folder, coefficient in finetunes.items():
        sides.append((coefficient, load_tensors(folder)[name].double(), ids_of(folder)))
    rows = {}
    for token, row in ids.items():
        having = [(c, tensor[its[token]]) for c, tensor, its in sides if c and token in its]
        if token in known or row < len(of_base):
            rows[token] = of_base[row] + sum((c * (values - of_base[row]) for c, values in having), torch.zeros(32))
        else:
            rows[token] = sum((abs(c) * values for c, values in having), torch.zeros(32)) / sum(
                abs(c) for c, _ in having
            )
    return rows


def assert_by_token(name: str, merged: Tensor, base: Path, finetunes: Mapping[Path, float], ids: Any) -> None:
    """Compare a merged tensor with [`by_token`], row by row."""
    expected = by_token(name, base, finetunes, ids)
    for token, row in ids.items():
        torch.testing.assert_close(merged[row].double(), expected[token], rtol=1e-5, atol=1e-6, msg=f"{name}: {token}")
