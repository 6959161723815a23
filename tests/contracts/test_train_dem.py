"""The script of `examples/training`: N distributions into vectors and a recipe, and only what is missing when it is run again."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dem_hub import DEMConfig, DEMModel, DistributionVector
from tests.support.processes import run, run_ranks
from tests.support.tiny_models import Models

Program = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = Path(__file__).parents[2] / "examples" / "training" / "train_dem.py"


def train(config: dict[str, Any], folder: Path, program: Program = run, fails: bool = False) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = program(SCRIPT, folder / "config.json", environment=environment, folder=folder)
    assert bool(done.returncode) == fails, done.stderr[-3000:]
    return done.stderr


def write_data(llama: Models, tmp_path: Path) -> dict[str, Any]:
    """Write texts of two distributions, and return a config for them."""
    texts = {"up": [" ".join(f"w{(i + j) % 60}" for j in range(12)) for i in range(60)]}
    texts["down"] = [" ".join(reversed(text.split())) for text in texts["up"]]
    for name, lines in texts.items():
        for side, part in (("train", lines[:48]), ("validation", lines[48:])):
            (tmp_path / f"{name}.{side}.jsonl").write_text(
                "\n".join(json.dumps({"question": text, "text": text}) for text in part)
            )
    entries = {name: {"train": f"{name}.train.jsonl", "validation": f"{name}.validation.jsonl"} for name in texts}
    entries["down"] |= {"lora": {"r": 2, "target_modules": "all-linear"}, "template": "{question}"}  # type: ignore[dict-item]
    training = {
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return {
        "base": str(llama.base), "output_dir": "dem", "training": training, "search": {"max_forward": 7}, "distributions": entries,
    }  # fmt: skip


@pytest.mark.slow
def test_the_script(llama: Models, tmp_path: Path) -> None:
    config = write_data(llama, tmp_path)
    entries = config["distributions"]
    config["distributions"] = {"up": entries["up"]}
    DistributionVector.extract(llama.base, llama.low).save_pretrained(
        tmp_path / "dem" / "vectors" / "up"
    )  # of a save, before it was killed
    train(config, tmp_path)
    first = DistributionVector.from_pretrained(tmp_path / "dem" / "vectors" / "up")
    assert first.config is not None and first.config.training["steps"] == 4
    assert first.config.training["tokens"] == 4 * 8 * 12
    config["distributions"] = entries
    again = train(config, tmp_path, run_ranks)
    assert "up: done already" in again and "down: done already" not in again
    assert DistributionVector.from_pretrained(tmp_path / "dem" / "vectors" / "up").sha256 == first.sha256
    recipe = DEMConfig.from_pretrained(tmp_path / "dem" / "recipe")
    assert {Path(name).name for name in recipe.coefficients} == {"up", "down"}
    assert recipe.search is not None
    before, after = (sum(recipe.search[key].values()) for key in ("base_losses", "losses"))
    assert after < before


@pytest.mark.slow
def test_rounds(llama: Models, tmp_path: Path) -> None:
    """A second round is trained from the recipe of the first, which is not made again; then the result is healed."""
    config = write_data(llama, tmp_path) | {"rounds": 1}
    config["training"] |= {"max_steps": 2, "warmup_steps": 1}
    train(config, tmp_path)
    assert DEMConfig.from_pretrained(tmp_path / "dem" / "round-1" / "recipe").base.repo_id == str(llama.base)
    log = train(config | {"rounds": 2, "heal": {"training": {"learning_rate": 1e-4}}}, tmp_path)
    for name in ("up", "down", "dem/round-1/recipe"):
        assert f"{name}: done already" in log
    assert "is not the base" not in log  # it is trained from just what its vector is taken from
    rounds = [tmp_path / "dem" / f"round-{number}" for number in (1, 2)]
    recipe = DEMConfig.from_pretrained(rounds[1] / "recipe")
    assert recipe.base.repo_id == str(rounds[0] / "recipe")
    assert {Path(name) for name in recipe.coefficients} == {rounds[1] / "vectors" / name for name in ("up", "down")}
    vector = DistributionVector.from_pretrained(rounds[1] / "vectors" / "up")
    assert vector.base.fingerprint == recipe.base.fingerprint
    # A LoRA says which base it is for, too.
    lora = DistributionVector.from_pretrained(rounds[1] / "vectors" / "down")
    assert lora.base.repo_id == str(rounds[0] / "recipe")
    assert DEMModel.from_pretrained(rounds[1] / "recipe").dem.config.base == recipe.base
    # What heals is trained on all texts, from the last recipe.
    healed = DEMConfig.from_pretrained(tmp_path / "dem" / "heal" / "recipe")
    assert healed.base.repo_id == str(rounds[1] / "recipe")
    (vector,) = (DistributionVector.from_pretrained(name) for name in healed.coefficients)
    assert vector.config is not None
    assert vector.config.training["datasets"] == ["up.train.jsonl", "down.train.jsonl"]
    (rounds[0] / "recipe.vectors.json").unlink()
    assert "Move it away" in train(config | {"rounds": 2}, tmp_path, fails=True)
