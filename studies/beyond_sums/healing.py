"""A few more steps on a finished DEM: what it gains by each, where the steps are left as one more vector.

OMP_NUM_THREADS=1 python -m studies.beyond_sums.healing study heal --rate 1e-5

`study` is the folder in which `python -m studies.beyond_sums run study four` has trained the sources and searched. The
steps are on blocks of all sources, which the fine-tunes have seen as well, and the loss is on the study's test text.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from random import Random

from transformers import PrinterCallback, Trainer

from dem_hub import DEMCallback, DEMModel
from studies.beyond_sums.merges import Merge
from studies.beyond_sums.rows import Model, Run
from studies.beyond_sums.settings import SETTINGS
from studies.beyond_sums.training import STEP, arguments

STEPS = (5, 10, 20)
RATE = 1e-5  # a fifth of that of the fine-tunes


def heal(run: Run, recipe: Path, steps: int, rate: float) -> Path:
    """Train on from a recipe, and return the folder of the vector that this leaves."""
    vector = run.folder / f"vector-{steps}"
    blocks = [block for name in run.names for block in run.blocks[name]]
    Random(run.seed).shuffle(blocks)
    model = DEMModel.from_pretrained(recipe)
    callback = DEMCallback(base_model=str(recipe), output_dir=vector, codec="dense")
    settings = arguments(run.folder, steps, rate, 0, run.seed)
    trainer = Trainer(model, settings, train_dataset=blocks, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return vector


def main() -> None:
    """Print the mean loss on test text after each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="the folder of the study")
    parser.add_argument("folder", type=Path, help="for the recipe, the vectors and the losses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate, constant")
    options = parser.parse_args()
    study = options.study.resolve()
    finished = study / "four" / str(options.seed)
    folder = options.folder.resolve() / str(options.seed) / f"{options.rate:g}"
    run = Run(SETTINGS["four"], options.seed, study / "base", study / "texts", folder)
    found = json.loads((finished / "dem.json").read_text("utf-8"))["coefficients"]
    vectors = [str(finished / "vectors" / name) for name in run.names]
    merge = Merge(run.base, dict(zip(vectors, found, strict=True)))
    recipe = folder / "recipe"
    if not recipe.is_dir():
        merge.model().dem.save_pretrained(recipe)
    run.row("0", lambda: Model(merge.model, run.training_tokens))
    for steps in STEPS:

        def healed(steps: int = steps) -> Model:
            vector = heal(run, recipe, steps, options.rate)
            return Model(partial(_load, recipe, vector), run.training_tokens + steps * STEP)

        run.row(str(steps), healed)
    print(json.dumps({steps: run.mean(steps) for steps in run.rows}, indent=1))


def _load(recipe: Path, vector: Path) -> object:
    return DEMModel.from_pretrained(recipe, vectors={str(vector): 1.0}, dtype="float32").eval()


if __name__ == "__main__":
    main()
