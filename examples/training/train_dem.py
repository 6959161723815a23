"""The whole method from one config: train one model per distribution, save its vector, and search for a recipe.

    python examples/training/train_dem.py config.json
    accelerate launch examples/training/train_dem.py config.json        # several devices, the same config

A second run skips finished distributions and resumes an interrupted one at its last checkpoint. To add a distribution,
add an entry to the config and run again: it is trained, and the coefficients are searched again. A config:

    {"base": "org/base", "output_dir": "my-dem",
     "training": {"max_steps": 200, "save_steps": 50, "learning_rate": 1e-5, "lr_scheduler_type": "constant"},
     "distributions": {
        "maths": {"train": "org/maths", "template": "Q: {question}\\nA: {answer}", "validation": "maths.validation.jsonl"},
        "code": {"train": "code.train.jsonl", "validation": "code.validation.jsonl", "lora": {"r": 16, "target_modules": "all-linear"},
                 "training": {"max_steps": 100, "learning_rate": 2e-4}}},
     "callback": {"push_to_hub": false}, "search": {"max_forward": 20}, "max_length": 512}

`train` and `validation` are Hub ids of datasets (with `split` for training and `validation_split`), or JSONL or text
files. `template` makes a text from a row; without it, the text is the row's `text`. `training` are TrainingArguments,
for all distributions or for one. docs/training.md gives the reasons for a constant learning rate and few steps.

With `"rounds": 2`, each distribution is trained a second time, from the recipe of the first round. The vectors and the
recipe of each round are in a folder of their own, `my-dem/round-1` and so on, and the last recipe is the result. Divide
the steps among the rounds. A round is trained from the recipe of the round before it. So if that is searched again,
because a distribution was added, the later rounds must be trained again, and the script says which folders are to go.

With `"heal": {"training": {"max_steps": 20, "learning_rate": 1e-5}}`, the last recipe is trained on for a few steps at a
low rate, on the texts of all distributions together. That is one more vector, in `my-dem/heal/vectors`, on a recipe of
its own, `my-dem/heal/recipe`. Its coefficient is searched and compared on held-out data as any other: where healing gains
nothing, it is 0.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from dem_hub import DEMCallback, DistributionVector, search_coefficients
from dem_hub.evaluation.rows import read_rows
from dem_hub.files.atomic import write_text

logger = logging.getLogger("train_dem")


def texts_of(name: str, split: str, template: str) -> list[str]:
    """The texts of a file, or of a dataset on the Hub through a template."""
    if Path(name).is_file() and template == "{text}":
        return [row["text"] for row in read_rows(name)]
    rows = (
        load_dataset("json", data_files=name, split="train")
        if Path(name).is_file()
        else load_dataset(name, split=split)
    )
    return [template.format(**row) for row in rows]


def train(
    name: str, entry: dict[str, Any], sources: list[dict[str, Any]], config: dict[str, Any], base: str, folder: Path
) -> Path:
    """Train the texts of some distributions into one vector on a base, which may be a recipe, or find that it is done."""
    target, done = (
        folder / "vectors" / name,
        folder / "vectors" / f"{name}.done",
    )  # when="save" leaves a vector before that
    if target.is_dir() and done.is_file():
        logger.info("%s: done already", name)
        return target
    settings = {
        "report_to": "none",
        "lr_scheduler_type": "constant",
        "save_total_limit": 1,
        "include_num_input_tokens_seen": "non_padding",
    }
    settings |= config.get("training", {})
    settings |= entry.get("training", {})
    if base != config["base"]:  # in later rounds, a warm-up would be a large part of few steps
        settings["warmup_steps"] = 0
    arguments = TrainingArguments(str(folder / "runs" / name), **settings)
    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # In float32 only once it is loaded: a recipe is rounded to its own dtype, as its export would be.
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").float()
    if "lora" in entry:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **entry["lora"]))
    texts = []
    for source in sources:
        texts += texts_of(source["train"], source.get("split", "train"), source.get("template", "{text}"))
    ids = tokenizer(texts, truncation=True, max_length=config.get("max_length", 512))["input_ids"]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"input_ids": [row for row in ids if len(row) > 1]}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    options = (
        {"datasets": [source["train"] for source in sources]} | config.get("callback", {}) | entry.get("callback", {})
    )
    callback = DEMCallback(base, output_dir=target, **options).attach(trainer)
    last = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        logger.info("%s: %s", name, callback.vector.sha256)  # which raises where there is no vector
        done.touch()
    trainer.accelerator.wait_for_everyone()
    return target


def find_recipe(vectors: dict[str, Path], config: dict[str, Any], base: str, folder: Path, later: Path) -> Path:
    """Look for the coefficients, unless the recipe is of just these vectors."""
    recipe, made_of = folder / "recipe", folder / "recipe.vectors.json"
    names = sorted(vectors)
    contents = {name: DistributionVector.from_pretrained(vectors[name]).sha256 for name in names}

    def is_done() -> bool:
        return recipe.is_dir() and made_of.is_file() and json.loads(made_of.read_text()) == contents

    if is_done():
        logger.info("%s: done already", recipe)
        return recipe
    if later.is_dir():
        sys.exit(
            f"'{later}' was trained from an earlier '{recipe}'. Move it away, with all later rounds, and run again."
        )
    validation = {}
    for name, entry in config["distributions"].items():
        split, template = entry.get("validation_split", "validation"), entry.get("template", "{text}")
        validation[name] = texts_of(entry["validation"], split, template)
    # Each process runs its part of the texts, so all of them search, and find the same.
    result = search_coefficients(base, [str(vectors[name]) for name in names], validation, **config.get("search", {}))
    if PartialState().is_main_process:
        result.config.save_pretrained(recipe)
        write_text(made_of, json.dumps(contents))
        for vector, coefficient in result.config.coefficients.items():
            print(f"{coefficient:.3f}  {vector}")
        if result.held_out_loss is not None:
            print(f"held-out loss {result.held_out_loss:.4f}, without these vectors {result.baselines['base']:.4f}")
    PartialState().wait_for_everyone()
    return recipe


def main() -> None:
    """Train what is not trained, and search, in each round; then heal."""
    logging.basicConfig(format="%(message)s")
    for name in ("train_dem", "dem_hub"):
        logging.getLogger(name).setLevel(logging.INFO)
    config = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    base, root = config["base"], Path(config["output_dir"])
    rounds, heal, healed = config.get("rounds", 1), config.get("heal"), root / "heal"
    if heal is not None and "training" not in heal:
        sys.exit("'heal' has no 'training' of its own. Give it few steps (max_steps) at a low rate (learning_rate).")
    entries = config["distributions"]
    for number in range(1, rounds + 1):
        folder = root / f"round-{number}" if "rounds" in config else root
        vectors = {name: train(name, entry, [entry], config, base, folder) for name, entry in entries.items()}
        later = healed if number == rounds else root / f"round-{number + 1}"
        base = str(find_recipe(vectors, config, base, folder, later))
    if heal is not None:
        vector = train("heal", heal, list(entries.values()), config, base, healed)
        find_recipe({"heal": vector}, config, base, healed, later=root / "nothing")


if __name__ == "__main__":
    main()
