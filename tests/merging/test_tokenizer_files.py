"""Tokens that are added to the files of a tokenizer: transformers then reads all old tokens and the new ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from dem_hub.checkpoints.tokenizer import Token, Vocabulary
from dem_hub.errors import CheckpointError
from dem_hub.files.side_files import side_files_of
from dem_hub.merging.tokenizer_files import base_vocabulary, with_tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld", "new"]


def trained(kind: str) -> Any:
    """A small tokenizer of each model of the tokenizers library."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model, trainer = {
        "bpe": (models.BPE(), trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"])),
        "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=30, special_tokens=["<s>"], unk_token="<s>")),
        "word piece": (models.WordPiece(unk_token="<s>"), trainers.WordPieceTrainer(special_tokens=["<s>"])),
        "word level": (models.WordLevel(unk_token="<s>"), trainers.WordLevelTrainer(special_tokens=["<s>"])),
    }[kind]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if kind == "bpe" else pre_tokenizers.Whitespace()
    if kind == "bpe":
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["hello world of new words", "world hello, hello"] * 3, trainer)
    return tokenizer


def save(kind: str, folder: Path, *, decoder: bool = False) -> None:
    """Save a tokenizer: of the tokenizers library, or one that is made of a list of words."""
    import transformers

    if kind == "words":
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        (folder / "config.json").write_text('{"model_type": "bert"}')
        return
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained(kind), unk_token="<s>")
    tokenizer.save_pretrained(folder)
    if decoder:  # transformers 4 lists the added tokens once more
        path = folder / "tokenizer_config.json"
        entry = {
            "content": "<s>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": {"0": entry}}))
        (folder / "added_tokens.json").write_text('{"<s>": 0}')


def add(folder: Path, tokens: dict[str, Token]) -> None:
    files = side_files_of(folder)
    for name, text in with_tokens(files, base_vocabulary(files), tokens).items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("decoder", [False, True], ids=["", "of transformers 4"])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "word piece", "word level", "words"])
def test_every_kind_of_tokenizer(tmp_path: Path, kind: str, decoder: bool) -> None:
    from transformers import AddedToken, AutoTokenizer

    save(kind, tmp_path, decoder=decoder)
    before = AutoTokenizer.from_pretrained(tmp_path)
    text = "hello world new <tool> hello <|call|>world"
    plain = "hello world new"
    size = len(before)
    add(tmp_path, {"<tool>": Token(size, special=True, normalized=False), "<|call|>": Token(size + 1, rstrip=True)})
    after = AutoTokenizer.from_pretrained(tmp_path)
    # the reference: transformers adds the same tokens
    before.add_tokens([AddedToken("<tool>", special=True, normalized=False), AddedToken("<|call|>", rstrip=True)])
    assert after.get_vocab() == before.get_vocab()
    assert len(after) == size + 2
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after(plain)["input_ids"] == before(plain)["input_ids"]
    ids = after(text)["input_ids"]
    assert after.decode(ids, skip_special_tokens=True) == before.decode(ids, skip_special_tokens=True)
    vocabulary = Vocabulary.read(tmp_path)
    assert vocabulary is not None
    assert vocabulary.added["<|call|>"] == Token(size + 1, rstrip=True)


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    save("bpe", tmp_path)
    before = json.loads((tmp_path / "tokenizer.json").read_text())
    add(tmp_path, {"<tool>": Token(len(before["model"]["vocab"]))})
    after = json.loads((tmp_path / "tokenizer.json").read_text())
    assert after["added_tokens"][:-1] == before["added_tokens"]
    assert {**after, "added_tokens": []} == {**before, "added_tokens": []}


def test_a_token_at_an_id_that_no_tokenizer_gives_it(tmp_path: Path) -> None:
    save("word level", tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)'<tool>' would have the id \d+, and its row is 999"):
        add(tmp_path, {"<tool>": Token(999)})


def test_no_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, {"<tool>": Token(5)})
    assert not list(tmp_path.iterdir())
    assert "the base has no tokenizer" in caplog.text
