"""The models that the study trains: one for each distribution, and for each mixture one on as many tokens as those together.

A fine-tune sees the first documents of its distribution once. The uniform mixture sees, up to a document of each, what the single
fine-tunes see between them, in one shuffled run; another mixture takes more of one and less of the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from dem_hub.demo.training import BATCH_SIZE, BLOCK_SIZE, train
from studies.data_mixing.settings import LATER, NAMES, Settings
from studies.data_mixing.texts import read_texts, take

STEP = BATCH_SIZE * BLOCK_SIZE  # tokens
RETRAINED = "mixture of five"


@dataclass(frozen=True)
class Job:
    """A model to train: on which share of each distribution, for how many steps."""

    name: str
    shares: Mapping[str, float]
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens that it is trained on."""
        return self.steps * STEP


def jobs(settings: Settings) -> list[Job]:
    """All models, in the order in which they are trained."""
    singles = [Job(name, {name: 1.0}, settings.steps) for name in (*NAMES, LATER)]
    count = len(NAMES) * settings.steps
    mixtures = [Job(mixture_name(shares), dict(zip(NAMES, shares, strict=True)), count) for shares in settings.mixtures]
    five = (*NAMES, LATER)
    return [*singles, *mixtures, Job(RETRAINED, dict.fromkeys(five, 1 / len(five)), len(five) * settings.steps)]


def mixture_name(shares: tuple[float, ...]) -> str:
    """What a mixture is called: its shares in per cent."""
    return "mixture " + "-".join(f"{100 * share:.0f}" for share in shares)


def train_all(base: Path, texts: Path, folder: Path, settings: Settings) -> dict[str, Path]:
    """Train what is not there yet; returns the folder of each model."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs(settings):
        target = folder / job.name
        if not target.is_dir():
            train(base, _documents(job, texts, tokenizer), target, steps=job.steps, seed=settings.seed)
    return {job.name: folder / job.name for job in jobs(settings)}


def _documents(job: Job, texts: Path, tokenizer: Any) -> list[str]:
    documents = []
    for name, share in job.shares.items():
        tokens = round(share * job.tokens)
        documents += take(read_texts(texts, name, "train"), tokens, tokenizer)
    return documents
