"""What stands beside a model's weights comes along: against what the libraries write and read, and nothing else of a user's."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dem_hub import VectorSource
from dem_hub.errors import ConfigError
from dem_hub.files.side_files import is_module_file, is_side_file, side_files_of
from dem_hub.hub.download import copy_side_files, side_files

TEXTS = ["the quick brown fox jumps over the lazy dog", "hello world of tools and kings"] * 5


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of each kind."""
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick"]))
    words = ["<unk>", "</s>", "<pad>", "\u2581the", "\u2581quick"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    options = {"sentence_iterator": iter(TEXTS), "vocab_size": 33, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(folder / "spm"), **options)
    return folder


def bpe(**options: Any) -> Any:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", **options
    )


def marian(folder: Path) -> Any:
    spm = str(folder / "spm.model")
    return transformers.MarianTokenizer(source_spm=spm, target_spm=spm, vocab=str(folder / "vocab.json"))


def m2m(folder: Path) -> Any:
    return transformers.M2M100Tokenizer(vocab_file=str(folder / "vocab.json"), spm_file=str(folder / "spm.model"))


TEMPLATES = {"default": "{{ messages }}", "tool_use": "{{ tools }}", "rag": "{{ documents }}"}
KINDS: dict[str, Callable[[Path], Any]] = {
    "fast BPE": lambda _: bpe(),
    "named chat templates": lambda _: bpe(chat_template=TEMPLATES),
    "WordPiece": lambda folder: transformers.BertTokenizer(vocab=str(folder / "vocab.txt")),
    "SentencePiece, fast": lambda folder: transformers.T5Tokenizer(vocab_file=str(folder / "spm.model")),
    "SentencePiece, slow": lambda folder: transformers.SpeechT5Tokenizer(vocab_file=str(folder / "spm.model")),
    "two SentencePieces": marian,
    "SentencePiece and words": m2m,
    "letters": lambda folder: transformers.Wav2Vec2CTCTokenizer(vocab_file=str(folder / "vocab.json")),
    "bytes": lambda _: transformers.ByT5Tokenizer(),
}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "sound": lambda: transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), bpe()),
    "images": lambda: transformers.LlavaProcessor(transformers.CLIPImageProcessorPil(), bpe(), chat_template=TEMPLATES),
    "images alone": lambda: transformers.ViTImageProcessorPil(),
}


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_each_kind_comes_along(vocabularies: Path, tmp_path: Path, kind: str) -> None:
    tokenizer = KINDS[kind](vocabularies)
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")
    copy_side_files(side_files(VectorSource(str(tmp_path / "base"))), tmp_path / "copy")
    assert written(tmp_path / "copy") == written(tmp_path / "base") - {"config.json"}
    again = type(tokenizer).from_pretrained(tmp_path / "copy")
    assert again("the quick king").input_ids == tokenizer("the quick king").input_ids
    assert again.chat_template == tokenizer.chat_template


# transformers leaves the files of named templates open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processor_of_each_kind_comes_along(tmp_path: Path, kind: str) -> None:
    processor = PROCESSORS[kind]()
    processor.save_pretrained(tmp_path / "base")
    copy_side_files(side_files(VectorSource(str(tmp_path / "base"))), tmp_path / "copy")
    assert written(tmp_path / "copy") == written(tmp_path / "base")
    again = type(processor).from_pretrained(tmp_path / "copy")
    assert getattr(again, "chat_template", None) == getattr(processor, "chat_template", None)


def test_every_vocabulary_that_transformers_names_is_known() -> None:
    """The tables of names in transformers' own sources: a tokenizer with another name would lose its vocabulary."""
    sources = Path(transformers.__file__).parent.rglob("tokenization_*.py")
    table = re.compile(r"VOCAB_FILES_NAMES = \{(.*?)\}", re.DOTALL)
    name = re.compile(r"[\"']([\w.-]+\.\w+)[\"']")
    names = {
        file for path in sources for entry in table.findall(path.read_text("utf-8")) for file in name.findall(entry)
    }
    assert len(names) > 15
    assert [file for file in sorted(names) if not is_side_file(file)] == []


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model.v3", "qwen.tiktoken", "sentencepiece.bpe.model"])
def test_vocabularies_of_other_programs_are_known(name: str) -> None:
    assert is_side_file(name)


SECRETS = {".env", "id_rsa", "notes.txt", "secrets.json", "credentials.json", "notes/vocab.txt", "data/train.jsonl",
           "runs/events.out", "additional_chat_templates/notes.md", "1_Pooling/config.json", "my_script.py"}  # fmt: skip


def test_nothing_else_of_a_users_folder_comes_along(tmp_path: Path) -> None:
    for name in (*SECRETS, "tokenizer.json", "additional_chat_templates/rag.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(side_files_of(tmp_path)) == {"tokenizer.json", "additional_chat_templates/rag.jinja"}


def modules(folder: Path, *entries: tuple[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    names = [{"idx": 0, "name": "0", "path": path, "type": kind} for path, kind in entries]
    (folder / "modules.json").write_text(json.dumps(names))


def test_modules_come_along_as_modules_json_names_them(tmp_path: Path) -> None:
    modules(
        tmp_path,
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("odd", "sentence_transformers.models.Dense"),
        ("query", "sentence_transformers.models.Transformer"),
    )
    names = {"1_Pooling/config.json", "odd/config.json", "odd/model.safetensors"}
    for name in (*names, "1_Pooling/.env", "1_Pooling/notes.md", "query/model.safetensors", "2_Dense/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(side_files_of(tmp_path)) == {"modules.json", *names}
    assert [name for name in sorted(names) if is_module_file(name)] == ["1_Pooling/config.json"]


@pytest.mark.parametrize("path", ["..", "../keys", "/etc", "a/../../keys"])
def test_a_module_outside_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    modules(tmp_path / "base", (path, "sentence_transformers.models.Pooling"))
    with pytest.raises(ConfigError, match="names must be relative"):
        side_files_of(tmp_path / "base")


@pytest.mark.parametrize("path", [".", "./", "./."])
def test_the_folder_itself_is_no_module(tmp_path: Path, path: str) -> None:
    modules(tmp_path, (path, "sentence_transformers.models.Pooling"))
    (tmp_path / "idf.json").write_text("{}")
    assert set(side_files_of(tmp_path)) == {"modules.json"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[1]", '[{"path": 1}]', "null", '[{"path": "a"}]'])
def test_a_damaged_list_of_modules_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    assert set(side_files_of(tmp_path)) == {"modules.json"}


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/a.jinja", "1_Pooling/config.json"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    modules(tmp_path / "base", ("1_Pooling", "sentence_transformers.models.Pooling"))
    link = tmp_path / "base" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(secret)
    with pytest.raises(ConfigError, match=f"'{name}' leads to '{secret}'"):
        side_files_of(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
