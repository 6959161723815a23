"""Rows of every kind of file, frame and dataset: those that `datasets` reads."""

import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.evaluation.columns import select_columns
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.rows import check_files, rows_of
from dem_hub.evaluation.tables import Reference
from tests.fake_hub.server import Hub
from tests.support.windows import ids, labels

TEXTS = [{"text": "w1 w2 w3"}, {"text": 'w4, "w5"\nw6'}, {"text": "w7"}]
PAIRS = [{"prompt": "w1 w2", "completion": " w3"}, {"prompt": "w4", "completion": " w5 w6"}]
TALKS = [
    {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}], "tools": None},
    {
        "messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4 w5"}],
        "tools": [{"name": "w6", "parameters": {"a": 1}}],
    },
]
IDS = [{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, {"input_ids": [8, 9], "completion_mask": [0, 1]}]
KINDS = {"texts": TEXTS, "pairs": PAIRS, "conversations": TALKS, "ids": IDS}
FLAT = ("texts", "pairs")


def lines(rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


def write_table(method: str, **options: Any) -> Callable[[Path, Any], object]:
    def write(file: Path, rows: Any) -> None:
        from datasets import Dataset

        getattr(Dataset.from_list(rows), method)(str(file), **options)

    return write


WRITERS: dict[str, Callable[[Path, Any], object]] = {
    "a.jsonl": lambda file, rows: file.write_text(lines(rows)),
    "a.JSONL": lambda file, rows: file.write_text(lines(rows)),
    "a.json": lambda file, rows: file.write_text(lines(rows)),
    "b.json": lambda file, rows: file.write_text(json.dumps(rows)),
    "a.ndjson": lambda file, rows: file.write_text(lines(rows)),
    "a.jsonl.gz": lambda file, rows: file.write_bytes(gzip.compress(lines(rows).encode())),
    "a.csv": write_table("to_csv"),
    "a.TSV": write_table("to_csv", sep="\t"),
    "a.Parquet": write_table("to_parquet"),
}


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool['name'] }} {{ tool | tojson | length }} {% endfor %}"
        "{% for m in messages %}{{ 'w50 ' if m['role'] == 'user' else 'w51 ' }}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}{{ 'w51 ' }}{% endif %}"
    )
    return tokenizer


FILES = [(name, kind) for name in WRITERS for kind in KINDS if kind in FLAT or name[-3:].lower() not in ("csv", "tsv")]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_files_are_read_as_datasets_reads_them(name: str, kind: str, chat: Any, tmp_path: Path) -> None:
    """Three ways to one answer: the rows themselves, the file, and what `load_dataset` makes of it."""
    from datasets import load_dataset

    file = tmp_path / name
    WRITERS[name](file, KINDS[kind])
    reader = Reader(lambda: chat)
    expected = reader.windows(KINDS[kind])
    check_files({"a": file})
    assert reader.windows(file) == reader.windows(str(file)) == expected
    builder = "csv" if name[-3:].lower() in ("csv", "tsv") else name.split(".")[1].lower().replace("jsonl", "json")
    options = {"sep": "\t"} if name == "a.TSV" else {}
    loaded = load_dataset(builder.replace("ndjson", "json"), data_files=str(file), split="train", **options)
    assert reader.windows(loaded) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["slice", "columns", "frame", "arrow", "iterable", "pandas format", "arrow format"])
def test_forms_of_datasets(form: str, kind: str, chat: Any) -> None:
    from datasets import Dataset

    data = Dataset.from_list(KINDS[kind])
    forms: dict[str, Callable[[], Any]] = {
        "slice": lambda: data[:8],
        "columns": lambda: {name: data[name] for name in data.column_names},
        "frame": data.to_pandas,
        "arrow": lambda: data.data.table,
        "iterable": data.to_iterable_dataset,
        "pandas format": lambda: data.with_format("pandas"),
        "arrow format": lambda: data.with_format("arrow"),
    }
    reader = Reader(lambda: chat)
    assert reader.windows(forms[form]()) == reader.windows(data) == reader.windows(KINDS[kind])


def test_what_a_tokenizer_returns(tokenizer: Any) -> None:
    texts = ["w1 w2 w3", "w4"]
    for options in ({}, {"padding": True}, {"padding": True, "return_tensors": "pt"}):
        assert ids(Reader(lambda: None).documents(tokenizer(texts, **options))) == [[5, 6, 7], [8]]


def test_a_frame_has_nothing_where_something_is_missing(tokenizer: Any) -> None:
    from pandas import DataFrame

    frame = DataFrame([{"text": "w1 w2"}, {"prompt": "w3", "completion": " w4"}])
    assert ids(Reader(lambda: tokenizer).windows(frame)) == [[5, 6], [7, 8]]


def splits() -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict(train=Dataset.from_list(TEXTS), test=Dataset.from_list(PAIRS))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "splits": (
        splits,
        r"it has the parts 'train', 'test', each a dataset of its own. Give one of them: data\['train'\]",
    ),
    "splits of slices": (lambda: {"train": {"text": ["w1"]}}, "it has the parts 'train'"),
    "a row": (lambda: {"prompt": "w1", "completion": "w2"}, r"it is one row, with 'prompt', 'completion'.*\[row\]"),
    "a row of ids": (lambda: {"input_ids": [1, 2], "labels": [1, 2]}, "2 of 2 rows cannot be read"),
    "columns of several lengths": (lambda: {"a": ["w1"], "b": []}, "differ in length: 'a' 1, 'b' 0"),
    "no rows": (lambda: 7, "it is a int, and no list of rows"),
    "a function": (lambda: print, "it is a builtin_function_or_method, and no list of rows"),
    "bytes": (lambda: b"w1", "it is a bytes, and no list of rows"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_holds_no_rows_is_refused(make: Callable[[], Any], message: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        Reader(lambda: tokenizer).windows(make())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "a.json' cannot be read"),
        ("a.json", '{"text": "w1"}\n{', "a.json' cannot be read .*JSON"),
        ("a.csv", "", "a.csv' cannot be read"),
        ("a.csv", "text\nw1,w2\n", "rows with 1 values more than its header has names"),
        ("a.csv", "question,answer\nw1,2\n", "columns question, answer; give 'text'.*--columns NAME=PROMPT,COMPLETION"),
        ("a.csv", "prompt,completion\nw1,2\n", "row 1: its 'completion' is a int, 2, and no text"),
        ("a.parquet", "PAR", "a.parquet' cannot be read"),
    ],
)
def test_tables_that_are_refused(name: str, content: str, message: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        Reader(lambda: tokenizer).windows(tmp_path / name)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, tmp_path: Path) -> None:
    """Texts and JSONL are read all the same, and of anything else it is said at once what to install."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find_spec(name))
    (tmp_path / "a.txt").write_text("w1 w2")
    (tmp_path / "a.jsonl").write_text(lines(TEXTS))
    (tmp_path / "a.csv").write_text("text\nw1 w2\n")
    check_files({"a": "a.txt", "b": "a.jsonl"})
    for name in ("a.txt", "a.jsonl"):
        assert Reader(lambda: tokenizer).windows(tmp_path / name)
    for data in ("a.csv", "org/data:test"):
        for read in (lambda data=data: check_files({"a": data}), lambda data=data: rows_of(data)):
            with pytest.raises(
                MissingDependencyError, match=r"needs the library datasets: pip install 'dem-hub\[data\]'"
            ):
                read()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("openai/gsm8k:test", Reference("openai/gsm8k", "test")),
        ("openai/gsm8k:main:test", Reference("openai/gsm8k", "test", "main")),
        ("openai/gsm8k@v1:main:test[:200]", Reference("openai/gsm8k", "test[:200]", "main", "v1")),
        ("squad:train[10%:20%]", Reference("squad", "train[10%:20%]")),
        ("openai/gsm8k", None),
        ("a.jsonl", None),
        ("What is it: a text?", None),
        ("C:\\texts\\a.txt", None),
    ],
)
def test_names_of_datasets(text: str, expected: Reference | None) -> None:
    assert Reference.parse(text) == expected


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder as a dataset's repository is: two splits, columns of names of their own."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [{"question": f"w{number}", "answer": f" w{number + 1}", "id": number} for number in range(6)]
    (folder / "train.jsonl").write_text(lines(rows[:2]))
    (folder / "test.jsonl").write_text(lines(rows[2:]))
    return folder


def test_a_folder_with_a_split_and_columns(questions: Path, tokenizer: Any) -> None:
    data = select_columns({"a": f"{questions}:test[:3]"}, {"a": ["question", "answer"]})
    check_files(data)
    windows = Reader(lambda: tokenizer).windows(data["a"])
    assert ids(windows) == [[6, 7], [7, 8], [8, 9]]
    assert labels(windows) == [[-100, 7], [-100, 8], [-100, 9]]
    one = select_columns({"a": f"{questions}:train"}, {"a": "question"})["a"]
    assert rows_of(one) == [{"text": "w0"}, {"text": "w1"}]
    with pytest.raises(ConfigError, match="no column 'reply'. Its columns are question, answer, id"):
        rows_of(select_columns({"a": f"{questions}:train"}, {"a": "reply"})["a"])
    with pytest.raises(ConfigError, match="questions' cannot be read .*validation"):
        rows_of(f"{questions}:validation")


def test_what_save_to_disk_wrote(tokenizer: Any, tmp_path: Path) -> None:
    splits().save_to_disk(tmp_path / "both")
    splits()["test"].save_to_disk(tmp_path / "one")
    reader = Reader(lambda: tokenizer)
    check_files({"a": tmp_path / "one", "b": f"{tmp_path / 'both'}:test"})
    assert reader.windows(tmp_path / "one") == reader.windows(f"{tmp_path / 'both'}:test") == reader.windows(PAIRS)
    with pytest.raises(ConfigError, match="has no split 'dev'. Its splits are train, test"):
        reader.windows(f"{tmp_path / 'both'}:dev")
    with pytest.raises(ConfigError, match="'a': '.*both' is a folder\n.*Hub id or folder with a split"):
        check_files({"a": tmp_path / "both"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"b": ["x"]}, "There are columns of 'b', and the data are 'a'"),
        (
            {"a": ["x", "y", "z"]},
            "The columns of 'a' are 'x', 'y', 'z'; give those of the prompt and of the completion",
        ),
        ({"a": ["x", ""]}, "The columns of 'a' are 'x', ''"),
    ],
)
def test_columns_that_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_columns({"a": TEXTS}, columns)


def test_a_dataset_on_the_hub(hub: Hub, questions: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import HfApi

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    api = HfApi()
    api.create_repo("ann/questions", repo_type="dataset")
    api.upload_folder(folder_path=questions, repo_id="ann/questions", repo_type="dataset")
    data = select_columns({"a": "ann/questions:test"}, {"a": ["question", "answer"]})
    assert ids(Reader(lambda: tokenizer).windows(data["a"])) == [[6, 7], [7, 8], [8, 9], [9, 10]]
    with pytest.raises(ConfigError, match="The data set 'ann/absent' cannot be read"):
        rows_of("ann/absent:test")
