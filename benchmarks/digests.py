"""Digests of dem_hub's results on fixed inputs. They stay the same if a change leaves every result as it is.

    python benchmarks/digests.py > before.txt
    # change something
    python benchmarks/digests.py > after.txt
    diff before.txt after.txt

Each line is a name and the sha256 of a file, of a tensor's bytes or of a text. A search's coefficients and losses are
written out as hexadecimal floats, which are exact. The lines are the same in every run on one machine with the same
versions of torch, transformers and PEFT. Names that begin with `input` are digests of the inputs. If these differ, no
other line can be compared.

Only public names are used: those of `dem_hub.__all__`, and the command line. (One line has the compiled passes used for
small models, too.) Everything is made in one folder that always has the same name, because configs name the base by its
path, and hashes are taken of configs. The folder is deleted at the end. The seconds that a search took differ from run
to run and are left out. Words (the notes of a search) have lines of their own, so that a changed wording is not taken
for a changed number.

    python benchmarks/digests.py --only 'vector/gpt2|search/grid'      # cases by their names, which --list prints
    PYTHONPATH=other/checkout python benchmarks/digests.py             # of another tree than the one that is installed
"""

import argparse
import hashlib
import inspect
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

# Before anything of Hugging Face is imported, which reads these once.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tiny
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

import dem_hub
from dem_hub import DEMCallback, DEMConfig, DEMModel, DistributionVector, SearchResult, VectorStore, search_coefficients
from dem_hub.cli import main as dem_hub_command
from dem_hub.numerics import passes

# The compiled passes are loaded from the start: these small models alone would be merged by torch.
passes.BY_TORCH = -1

FOLDER = Path(tempfile.gettempdir()).resolve() / "dem_hub-digests"
THREADS = 2
SEARCH_THREADS = 1  # on which passes through tiny models are quicker
ROWS = 16  # of validation data, of each distribution
TEXT_FILES = (".json", ".jsonl", ".md")

Lines = dict[str, str]  # what is printed of a case: the end of the name, and a digest or numbers
Case = Callable[[], Lines]

CODECS: dict[str, dict[str, Any]] = {
    "auto": {"codec": "auto"},
    "auto-5-percent": {"codec": "auto", "max_bytes": "5%"},
    "auto-max-error": {"codec": "auto", "max_error": 0.3},
    "lrsign": {"codec": "lrsign"},
    "lrsign-rank-8-group-2": {"codec": "lrsign", "rank": 8, "group": 2},
    "sign": {"codec": "sign"},
    "sign-group-4": {"codec": "sign", "group": 4},
    "random": {"codec": "random"},
    "random-8-bits": {"codec": "random", "density": 0.25, "bits": 8, "seed": 3},
    "int4": {"codec": "int4"},
    "int8": {"codec": "int8"},
    "nf4": {"codec": "nf4"},
    "lowrank": {"codec": "lowrank"},
    "lowrank-energy": {"codec": "lowrank", "energy": 0.5},
    "lowrank-4": {"codec": "lowrank", "rank": 4},
    "lowrank-4-bfloat16": {"codec": "lowrank", "rank": 4, "dtype": "bfloat16"},
    "lowrank-4-int8": {"codec": "lowrank", "rank": 4, "dtype": "int8"},
    "lowrank-4-int4": {"codec": "lowrank", "rank": 4, "dtype": "int4"},
    "exact": {"codec": "exact"},
    "dense": {"codec": "dense"},
    "dense-bfloat16": {"codec": "dense", "dtype": "bfloat16"},
}
LOW_CODECS = ("auto", "exact", "lowrank", "lrsign")  # of a fine-tune of low rank
SMALL_CODECS = tuple(codec for codec in CODECS if codec != "auto-5-percent")  # which small models do not fit in
LARGE_CODECS = (
    "auto",
    "auto-5-percent",
    "lrsign",
    "sign",
    "random",
    "int4",
    "int8",
    "nf4",
    "lowrank-4",
    "exact",
    "dense",
)  # the others take long

DTYPES = ("float32", "float16", "bfloat16")
ROUNDINGS = ("stochastic", "nearest")


# Digests


def digest(content: bytes) -> str:
    """Return the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def digest_text(text: str) -> str:
    """Return the sha256 of a text, without what differs from run to run."""
    return digest(plain(text).encode())


def plain(text: str) -> str:
    """Replace what differs from run to run, the seconds that something took, by a word."""
    return re.sub(r'("seconds": )[0-9.e+-]+', r"\1SECONDS", text)


def digest_file(path: Path) -> str:
    """Return the sha256 of a file; of a text, without what differs from run to run."""
    if path.suffix in TEXT_FILES:
        return digest_text(path.read_text(encoding="utf-8"))
    return digest(path.read_bytes())


def digest_folder(folder: Path) -> Lines:
    """Return the digest of every file in a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return one sha256 of the names, dtypes, shapes and bytes of tensors."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def digest_model(model: Any) -> str:
    """Return one sha256 of everything in a model's state dict."""
    return digest_tensors(model.state_dict().items())


def exact(value: Any) -> str:
    """Write a number, or the numbers in a mapping or a sequence, so that every bit is there."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={exact(value[key])}" for key in value)
    if isinstance(value, (list, tuple)):
        return " ".join(map(exact, value))
    return float(value).hex()


# What is made of the inputs, once


@cache
def vector_of(family: str, finetune: str, codec: str) -> Path:
    """Return the folder of a vector."""
    finetuned = {"full": tiny.full_of, "low": tiny.low_of, "grown": tiny.grown_of}[finetune]
    folder = Path("vectors") / family / f"{finetune}-{codec}"
    vector = DistributionVector.extract(tiny.base_of(family), finetuned(family), **CODECS[codec])
    vector.save_pretrained(folder)
    return folder


@cache
def counting_vector(way: str, codec: str = "dense") -> Path:
    """Return the folder of the vector of a model that was taught one way to count."""
    folder = Path("vectors") / "counting" / f"{way}-{codec}"
    vector = DistributionVector.extract(tiny.counting_base(), tiny.counting_model(way), **CODECS[codec])
    vector.save_pretrained(folder)
    return folder


def weighted(family: str) -> dict[str, float]:
    """Return vectors of three kinds, an adapter among them, with coefficients that no dtype has exactly."""
    return {
        str(vector_of(family, "full", "auto")): 0.4,
        str(vector_of(family, "low", "lowrank-4")): -0.3,
        str(tiny.adapter_of(family)): 0.7,
    }


def scratch(name: str) -> Path:
    """Return a path for the results of one case."""
    return Path("made") / name


def command(*words: str | Path) -> str:
    """Run `dem-hub` with these words in this process; return what it printed.

    Raises:
        `RuntimeError`: it failed; has its message.
    """
    printed = io.StringIO()
    complaints = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(complaints):
        status = dem_hub_command(list(map(str, words)))
    if status:
        raise RuntimeError(f"dem-hub {words[0]} ended with {status}: {complaints.getvalue()}")
    return printed.getvalue()


def vector_options(vectors: Mapping[str, float]) -> list[str]:
    """Return the options that name vectors and coefficients to `dem-hub`."""
    return [f"--vector={name}={coefficient}" for name, coefficient in vectors.items()]


# Inputs and vectors


def digest_inputs(family: str) -> Lines:
    """Return the digests of a family's checkpoints."""
    folders = {
        "base": tiny.base_of(family),
        "full": tiny.full_of(family),
        "low": tiny.low_of(family),
        "adapter": tiny.adapter_of(family),
    }
    return {name: digest_tensors(read_tensors(folder)) for name, folder in folders.items()}


def digest_counting_inputs() -> Lines:
    """Return the digests of the models that count."""
    folders = {"base": tiny.counting_base(), **{way: tiny.counting_model(way) for way in tiny.COUNTING}}
    return {name: digest_tensors(read_tensors(folder)) for name, folder in folders.items()}


def read_tensors(folder: Path) -> list[tuple[str, Tensor]]:
    """Return the tensors in a folder's safetensors files, with their names."""
    tensors = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors += [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118  it is no mapping
    return tensors


def digest_vector(family: str, finetune: str, codec: str) -> Lines:
    """Return the digests of a vector's files, of its own sha256, and of all that is decoded from it."""
    base = tiny.base_of(family)
    folder = vector_of(family, finetune, codec)
    vector = DistributionVector.from_pretrained(folder)
    names = [name for name, _ in read_tensors(base)]
    decoded = [(name, vector.decode(name, base)) for name in names]
    return {**digest_folder(folder), "sha256": vector.sha256, "decoded": digest_tensors(decoded)}


def digest_adapter(family: str) -> Lines:
    """Return the digests of what an adapter of PEFT is as a vector."""
    base = tiny.base_of(family)
    vector = DistributionVector.from_pretrained(tiny.adapter_of(family))
    decoded = [(name, vector.decode(name, base)) for name, _ in read_tensors(base)]
    return {"sha256": vector.sha256, "decoded": digest_tensors(decoded)}


def digest_extract_command() -> Lines:
    """Return the digests of a vector that `dem-hub extract` wrote."""
    folder = scratch("extract-command")
    command("extract", tiny.base_of("qwen2"), tiny.full_of("qwen2"), "-o", folder, "--codec", "lrsign", "--rank", "4")
    return digest_folder(folder)


def digest_info(family: str) -> Lines:
    """Return the digest of what `dem-hub info` knows of two vectors and an adapter."""
    printed = command("info", *weighted(family), "--base", tiny.base_of(family), "--json")
    return {"json": digest_text(printed)}


def digest_callback() -> Lines:
    """Return the digests of the vector that the callback leaves of a short training."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(4, 60, (16, 8), generator=generator).tolist()]
    base = tiny.base_of("llama-tied")
    arguments = transformers.TrainingArguments(
        str(scratch("callback-run")),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    callback = DEMCallback(base, codec="exact")
    trainer = transformers.Trainer(tiny.load_model(base), arguments, train_dataset=rows, callbacks=[callback])
    with redirect_stdout(io.StringIO()):
        trainer.train()
    folder = scratch("callback-vector")
    callback.vector.save_pretrained(folder)
    return digest_folder(folder)


# Merged models


def digest_merge(family: str, *options: str) -> Lines:
    """Return the digests of the files of a model that `dem-hub merge` wrote."""
    folder = scratch("-".join(["merge", family, *options]).replace("/", "_"))
    command("merge", tiny.base_of(family), *vector_options(weighted(family)), "-o", folder, *options)
    return digest_folder(folder)


def digest_merge_of_one(family: str, finetune: str, codec: str) -> Lines:
    """Return the digests of the model that is the base and one whole vector."""
    folder = scratch(f"merge-of-one-{family}-{finetune}-{codec}")
    vectors = {str(vector_of(family, finetune, codec)): 1.0}
    command("merge", tiny.base_of(family), *vector_options(vectors), "-o", folder)
    return digest_folder(folder)


def digest_merge_of_recipe() -> Lines:
    """Return the digests of a recipe with coefficients by groups, and of the model that is merged from it."""
    recipe = scratch("recipe-to-merge")
    first, second, _ = weighted("qwen2")
    vectors = {first: {"attention": 0.5, "embedding": 0.2, "rest": 0.3}, second: {"layers 0-0": 0.6, "rest": 0.1}}
    model = DEMModel.from_pretrained(tiny.base_of("qwen2"), vectors=vectors)
    model.dem.save_pretrained(recipe)
    folder = scratch("merge-of-recipe")
    command("merge", recipe, "-o", folder)
    return {**prefixed("recipe/", digest_folder(recipe)), **prefixed("merged/", digest_folder(folder))}


def prefixed(prefix: str, lines: Lines) -> Lines:
    """Put something before the names of lines."""
    return {prefix + name: value for name, value in lines.items()}


def digest_load(family: str, dtype: str, rounding: str) -> Lines:
    """Return the digest of the weights of a model as it is loaded."""
    model = DEMModel.from_pretrained(tiny.base_of(family), vectors=weighted(family), dtype=dtype, rounding=rounding)
    return {"state": digest_model(model)}


def digest_changes(family: str) -> Lines:
    """Return the digests of a model's weights after each of several changes in place."""
    vectors = weighted(family)
    first, second, third = vectors
    model = DEMModel.from_pretrained(tiny.base_of(family), vectors=vectors)
    lines = {"loaded": digest_model(model)}
    other = scratch(f"other-{family}")
    DEMModel.from_pretrained(tiny.base_of(family), vectors={third: 0.6}).dem.save_pretrained(other)

    model.dem.set_coefficients({first: 0.15, second: 1.1})
    lines["set_coefficients"] = digest_model(model)
    model.dem.set_coefficients({third: 0.0}, only_changed=True)
    lines["only_changed"] = digest_model(model)
    model.dem.set_coefficients({first: {"attention": 0.5, "mlp": -0.2, "rest": 0.1}})
    lines["groups"] = digest_model(model)
    model.dem.set_coefficients({second: {"layers 0-0": 0.9, "rest": 0.2}})
    lines["layers"] = digest_model(model)
    model.dem.switch(other)
    lines["switch"] = digest_model(model)
    model.dem.set_coefficients({third: 0.0})
    lines["base"] = digest_model(model)
    return lines


def digest_auto_class() -> Lines:
    """Return the digest of the weights of a recipe that an Auto class of transformers loads."""
    recipe = scratch("recipe-for-auto-class")
    DEMModel.from_pretrained(tiny.base_of("gpt2"), vectors=weighted("gpt2")).dem.save_pretrained(recipe)
    model = transformers.AutoModelForCausalLM.from_pretrained(recipe)
    return {"state": digest_model(model)}


def digest_export(family: str, rank: int | None) -> Lines:
    """Return the digests of the adapter that `dem-hub export` wrote, exactly or cut to a rank."""
    first, second, third = weighted(family)
    vectors = {second: 0.3, third: 0.7} if rank is None else {first: 0.4, second: 0.3, third: 0.7}
    folder = scratch(f"export-{family}-{rank}")
    options = [] if rank is None else ["--rank", str(rank)]
    command("export", "--peft", tiny.base_of(family), *vector_options(vectors), "-o", folder, *options)
    return digest_folder(folder)


# Recipes and stores


def digest_recipe(family: str) -> Lines:
    """Return the digests of a recipe's files, and of what is read back from them."""
    folder = scratch(f"recipe-{family}")
    model = DEMModel.from_pretrained(tiny.base_of(family), vectors=weighted(family), rounding_seed=5)
    model.dem.save_pretrained(folder)
    read = DEMConfig.from_pretrained(folder)
    return {
        **digest_folder(folder),
        "to_dict": digest_text(json.dumps(read.to_dict())),
        "coefficients": exact(list(read.coefficients.values())),
    }


def digest_store(family: str) -> Lines:
    """Return the digests of a store's files, the comparison of its vectors, and a model made from its vectors."""
    folder = scratch(f"store-{family}")
    base = tiny.base_of(family)
    store = VectorStore.create(folder, base)
    store.add("exact", DistributionVector.from_pretrained(vector_of(family, "full", "exact")))
    store.add("gone", DistributionVector.from_pretrained(vector_of(family, "full", "int8")))
    store.add("low", DistributionVector.from_pretrained(vector_of(family, "low", "lowrank-4")))
    store.add("lora", DistributionVector.from_pretrained(tiny.adapter_of(family)))
    store.remove("gone")
    lines = prefixed("files/", digest_folder(folder))

    opened = VectorStore.from_pretrained(folder)
    members = {name: asdict(member) for name, member in opened.members.items()}
    lines["members"] = digest_text(json.dumps(members))
    lines["comparison"] = digest_text(json.dumps(asdict(opened.compare(base))))
    vectors = {opened.member_source(name): 0.25 for name in opened}
    lines["merged"] = digest_model(DEMModel.from_pretrained(base, vectors=vectors))
    return lines


# Searches


def counting_data(seed: int = 2) -> dict[str, list[list[int]]]:
    """Return validation rows by distribution."""
    return {way: tiny.counting_rows(step, ROWS, seed) for way, step in tiny.COUNTING.items()}


def run_search(ways: Iterable[str] = tuple(tiny.COUNTING), codec: str = "dense", **options: Any) -> SearchResult:
    """Search the coefficients of vectors that count, on the data of all ways to count."""
    vectors = [str(counting_vector(way, codec)) for way in ways]
    return search_coefficients(tiny.counting_base(), vectors, counting_data(), **options)


def describe(result: SearchResult, name: str) -> Lines:
    """Return the numbers of a search, and the digests of the files that it is saved as."""
    folder = scratch(f"search-{name}")
    result.save_pretrained(folder)
    trials = [exact([trial.coefficients, trial.losses, trial.value]) for trial in result.trials]
    lines = {
        "coefficients": exact(list(result.coefficients.values())),
        "loss": exact(result.loss),
        "losses": exact(result.chosen.losses),
        "held_out_loss": "none" if result.held_out_loss is None else exact(result.held_out_loss),
        "forward_passes": exact([result.num_forward, result.num_forward_held_out]),
        "trials": f"{len(trials)} {digest_text(json.dumps(trials))}",
        "notes": digest_text(json.dumps(result.notes)),
    }
    return {**lines, **prefixed("files/", digest_saved_search(folder))}


def digest_saved_search(folder: Path) -> Lines:
    """Return the digests of a saved search's files, in which the notes, which are words, are left out."""
    lines = digest_folder(folder)
    path = folder / "search_result.json"
    data = json.loads(path.read_text())
    del data["notes"]
    lines[path.name] = digest_text(json.dumps(data))
    return lines


def digest_search(name: str, **options: Any) -> Lines:
    """Return the lines of one search."""
    return describe(run_search(**options), name)


def digest_reweighted() -> Lines:
    """Return what other wishes find from the statistics of one search."""
    result = run_search()
    before = "resolve"  # the name that it had before
    reweight: Any = getattr(result, "reweight", None) or getattr(result, before)
    wishes = {
        "worst": reweight("worst"),
        "weights": reweight(weights={"up": 2.0, "down": 1.0, "threes": 0.0}),
        "max_sum": reweight(max_sum=0.5),
        "without": reweight(without=[str(counting_vector("down"))]),
    }
    return {name: exact([list(found.coefficients.values()), found.losses]) for name, found in wishes.items()}


def digest_grown_search() -> Lines:
    """Return the lines of a search that goes on from one with a vector fewer, from memory and from a folder."""
    parameters = inspect.signature(search_coefficients).parameters
    argument = "resume_from" if "resume_from" in parameters else "earlier"  # the name that it had before
    two = run_search(("up", "down"))
    grown = run_search(**{argument: two})
    folder = scratch("search-of-two")
    two.save_pretrained(folder, with_logits=True)
    from_folder = run_search(**{argument: SearchResult.from_pretrained(folder)})
    return {
        **prefixed("two/", prefixed("files/", digest_saved_search(folder))),
        **prefixed("memory/", describe(grown, "grown")),
        **prefixed("folder/", describe(from_folder, "grown-from-folder")),
    }


def digest_score_search() -> Lines:
    """Return the lines of a search for the best score, which is a function of the model."""
    rows = torch.tensor(tiny.counting_rows(3, 16, seed=9))

    def likelihood(model: Any) -> float:
        with torch.no_grad():
            return -float(model(input_ids=rows, labels=rows).loss)

    vectors = [str(counting_vector(way)) for way in ("up", "threes")]
    return describe(search_coefficients(tiny.counting_base(), vectors, score=likelihood), "score")


def digest_search_command() -> Lines:
    """Return the digests of what `dem-hub search` wrote, from texts."""
    words = [
        "search",
        tiny.counting_base(),
        "-o",
        scratch("search-command"),
        "--method",
        "uniform",
        "--packing",
        "--max-length",
        "32",
    ]
    for way in ("up", "down"):
        rows = [
            " ".join(f"w{token % 60}" for token in row) for row in tiny.counting_rows(tiny.COUNTING[way], ROWS, seed=2)
        ]
        path = Path(f"{way}.jsonl")
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        words += ["--vector", counting_vector(way), "--data", f"{way}={path}"]
    command(*words)
    return digest_saved_search(scratch("search-command"))


SEARCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "auto-codec": {"codec": "auto"},
    "bfloat16": {"dtype": "bfloat16"},
    "all-data": {"held_out": 0},
    "held-out-data": {"held_out": counting_data(seed=3)},
    "worst": {"objective": "worst"},
    "improvement": {"objective": "improvement", "weights": {"up": 2.0, "down": 1.0, "threes": 0.5}},
    "max-sum": {"max_sum": 0.8},
    "bounds": {"bounds": [(-0.5, 0.5), (0.0, 2.0), (0.1, 0.4)], "seed": 4},
    "gradient": {"method": "gradient"},
    "grid": {"method": "grid", "ways": ("up", "threes")},
    "uniform": {"method": "uniform"},
    "quadratic": {"method": "quadratic"},
    "group": {"granularity": "group"},
    "group-kept": {"granularity": "group", "held_out": counting_data(seed=3)},
    "block": {"granularity": "block"},
    "quadratic-block": {"method": "quadratic", "granularity": "block"},
}


# All cases


def all_cases() -> dict[str, Case]:
    """Return every case by its name."""
    return {**vector_cases(), **merge_cases(), **record_cases(), **search_cases()}


def vector_cases() -> dict[str, Case]:
    """Return the cases of inputs and of vectors."""
    cases: dict[str, Case] = {}
    for family in tiny.FAMILIES:
        cases[f"input/{family}"] = partial(digest_inputs, family)
    cases["input/counting"] = digest_counting_inputs
    for family in tiny.FAMILIES:
        for codec in codecs_of(family):
            cases[f"vector/{family}/full/{codec}"] = partial(digest_vector, family, "full", codec)
        for codec in LOW_CODECS:
            cases[f"vector/{family}/low/{codec}"] = partial(digest_vector, family, "low", codec)
        cases[f"vector/{family}/adapter"] = partial(digest_adapter, family)
    for codec in SMALL_CODECS:
        cases[f"vector/llama-tied/grown/{codec}"] = partial(digest_vector, "llama-tied", "grown", codec)
    cases["vector/command"] = digest_extract_command
    cases["vector/callback"] = digest_callback
    return cases


def codecs_of(family: str) -> Iterable[str]:
    """Return the codecs that the full fine-tune of a family is stored with."""
    if family == "llama-large":
        return LARGE_CODECS
    return SMALL_CODECS


def merge_cases() -> dict[str, Case]:
    """Return the cases of merged models: as folders, in memory, and as adapters."""
    cases: dict[str, Case] = {}
    for family in tiny.FAMILIES:
        for dtype in DTYPES:
            for rounding in ROUNDINGS:
                options = ("--dtype", dtype, "--rounding", rounding)
                cases[f"merge/{family}/{dtype}-{rounding}"] = partial(digest_merge, family, *options)
                cases[f"load/{family}/{dtype}-{rounding}"] = partial(digest_load, family, dtype, rounding)
        cases[f"merge/{family}/default"] = partial(digest_merge, family)
        cases[f"merge/{family}/one-exact"] = partial(digest_merge_of_one, family, "full", "exact")
        cases[f"load/{family}/changes"] = partial(digest_changes, family)
        cases[f"export/{family}/rank-4"] = partial(digest_export, family, 4)
        if family != "mixtral":  # whose adapter changes experts, which no exported adapter can
            cases[f"export/{family}/exact"] = partial(digest_export, family, None)
    cases["merge/qwen2/seed"] = partial(digest_merge, "qwen2", "--rounding-seed", "7")
    cases["merge/qwen2/shards"] = partial(digest_merge, "qwen2", "--max-shard-size", "200KB")
    cases["merge/qwen2/recipe"] = digest_merge_of_recipe
    cases["merge/llama-tied/grown"] = partial(digest_merge_of_one, "llama-tied", "grown", "dense")
    cases["load/gpt2/auto-class"] = digest_auto_class
    return cases


def record_cases() -> dict[str, Case]:
    """Return the cases of recipes, stores and what is told of vectors."""
    cases: dict[str, Case] = {}
    for family in tiny.FAMILIES:
        cases[f"recipe/{family}"] = partial(digest_recipe, family)
        cases[f"store/{family}"] = partial(digest_store, family)
        cases[f"info/{family}"] = partial(digest_info, family)
    return cases


def search_cases() -> dict[str, Case]:
    """Return the cases of searches."""
    cases: dict[str, Case] = {}
    for name, options in SEARCHES.items():
        cases[f"search/{name}"] = partial(digest_search, name, **options)
    cases["search/reweighted"] = digest_reweighted
    cases["search/grown"] = digest_grown_search
    cases["search/score"] = digest_score_search
    cases["search/command"] = digest_search_command
    return cases


def run_cases(cases: Mapping[str, Case]) -> list[str]:
    """Run cases and print their lines; return the names of those that failed."""
    failed = []
    for name, case in cases.items():
        torch.set_num_threads(SEARCH_THREADS if name.startswith("search/") else THREADS)
        began = time.perf_counter()
        try:
            lines = case()
        except Exception:  # noqa: BLE001  the other cases are still worth something
            traceback.print_exc()
            failed.append(name)
            lines = {"": "FAILED"}
        for ending, value in lines.items():
            print(f"{name}/{ending}  {value}" if ending else f"{name}  {value}", flush=True)
        print(f"{time.perf_counter() - began:6.2f} s  {name}", file=sys.stderr)
    return failed


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a folder, work in it, and take it away."""
    home = Path.cwd()
    try:
        folder.mkdir()
    except FileExistsError:
        sys.exit(
            f"'{folder}' is there already: another run is making it, or one was killed. In the second case, remove it."
        )
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)
        shutil.rmtree(folder)


def main() -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="cases with this in their names"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and stop")
    options = parser.parse_args()
    cases = {name: case for name, case in all_cases().items() if options.only.search(name)}
    if options.list:
        print("\n".join(cases))
        return

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(f"dem_hub of {Path(dem_hub.__file__).parent}", file=sys.stderr)
    began = time.perf_counter()
    with working_in(FOLDER):
        failed = run_cases(cases)
    print(f"{len(cases)} cases in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
