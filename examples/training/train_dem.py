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
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
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


def train(name: str, entry: dict[str, Any], config: dict[str, Any], folder: Path) -> Path:
    """Train one distribution into its vector, or find that it is done."""
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
    arguments = TrainingArguments(str(folder / "runs" / name), **{**settings, **entry.get("training", {})})
    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(config["base"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(config["base"], dtype=torch.float32)
    if "lora" in entry:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **entry["lora"]))
    texts = texts_of(entry["train"], entry.get("split", "train"), entry.get("template", "{text}"))
    ids = tokenizer(texts, truncation=True, max_length=config.get("max_length", 512))["input_ids"]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"input_ids": [row for row in ids if len(row) > 1]}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    options = {"datasets": [entry["train"]]} | config.get("callback", {}) | entry.get("callback", {})
    callback = DEMCallback(config["base"], output_dir=target, **options).attach(trainer)
    last = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        logger.info("%s: %s", name, callback.vector.sha256)  # which raises where there is no vector
        done.touch()
    trainer.accelerator.wait_for_everyone()
    return target


def find_recipe(vectors: dict[str, Path], config: dict[str, Any], folder: Path) -> None:
    """Look for the coefficients, unless the recipe is of just these vectors."""
    recipe, made_of = folder / "recipe", folder / "recipe.vectors.json"
    names = sorted(vectors)
    contents = {name: DistributionVector.from_pretrained(vectors[name]).sha256 for name in names}
    if recipe.is_dir() and made_of.is_file() and json.loads(made_of.read_text()) == contents:
        logger.info("recipe: done already")
        return
    validation = {}
    for name, entry in config["distributions"].items():
        split, template = entry.get("validation_split", "validation"), entry.get("template", "{text}")
        validation[name] = texts_of(entry["validation"], split, template)
    result = search_coefficients(
        config["base"], [str(vectors[name]) for name in names], validation, **config.get("search", {})
    )
    result.config.save_pretrained(recipe)
    made_of.write_text(json.dumps(contents))
    for vector, coefficient in result.config.coefficients.items():
        print(f"{coefficient:.3f}  {vector}")


def main() -> None:
    """Train what is not trained, and search."""
    logging.basicConfig(format="%(message)s")
    for name in ("train_dem", "dem_hub"):
        logging.getLogger(name).setLevel(logging.INFO)
    config = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    folder = Path(config["output_dir"])
    vectors = {name: train(name, entry, config, folder) for name, entry in config["distributions"].items()}
    if PartialState().is_main_process:  # the others do not wait: a search may take longer than a barrier's timeout
        find_recipe(vectors, config, folder)


if __name__ == "__main__":
    main()
