"""What a search loses by keeping the logits of a shortlist of tokens: slopes and curvature, against the whole vocabulary.

    python benchmarks/shortlist.py dem-hub-demo      # the folder of a finished `dem-hub demo`; 3 GB of memory

The demo's base and its vectors run over some validation text, and all logits are kept. From these, shortlists of
several sizes are made, and statistics are computed at the base, from moves by 1 (the start of a search), and at a
mixture, from moves by 0.1 (its step). Errors are relative: of the gradient to its largest entry at the base, and of the
curvature in the Frobenius norm. "step" is the largest error of a coefficient after a Newton step.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from regmean import load_distributions, windows_of
from torch import Tensor
from transformers import AutoTokenizer

from dem_hub import DEMModel
from dem_hub.evaluation.windows import Window
from dem_hub.search.measure import shortlist
from dem_hub.search.measure.logits import Block, keep_logits
from dem_hub.search.solve.local_model import Quadratic

WHOLE = 1 << 20  # more likely tokens than there are
SIZES = ((256, 256), (256, 768), (512, 512), (1024, 1024))  # likely tokens, and drawn ones
POINTS = (("base", 0.0, 1.0), ("mixture", 0.55, 0.1))  # name, coefficient of all vectors, and step
ROWS = 200  # places whose whole logits are in memory at a time
CPU = torch.device("cpu")


@contextmanager
def sizes(likely: int, drawn: int):  # type: ignore[no-untyped-def]
    """Keep other numbers of tokens in this context."""
    before = shortlist.LIKELY, shortlist.DRAWN
    shortlist.LIKELY, shortlist.DRAWN = likely, drawn
    try:
        yield
    finally:
        shortlist.LIKELY, shortlist.DRAWN = before


def whole_block(model: Any, names: Sequence[str], data: list[Window], level: float, step: float) -> Block:
    """Return all logits at a mixture, and what a step of each vector adds."""
    point = dict.fromkeys(names, level)
    with sizes(WHOLE, 0):
        model.dem.set_coefficients(point)
        _, block = keep_logits(model, data, range(len(data)), 8)
        for name in names:
            model.dem.set_coefficients(point | {name: level + step})
            _, block.moves[name] = block.move(model, data, 8)
    return block


def shortened(block: Block) -> Block:
    """Return the block that a search would have kept."""
    places, vocabulary = block.center.shape
    short = Block.empty(places, vocabulary)
    short.moves = {name: torch.empty_like(short.center, dtype=torch.float16) for name in block.moves}
    for start in range(0, places, ROWS):
        rows = slice(start, start + ROWS)
        tokens = block.tokens[rows].long()

        def in_order(values: Tensor, tokens: Tensor = tokens) -> Tensor:
            return torch.empty(values.shape).scatter_(1, tokens, values.float())

        center = in_order(block.center[rows])
        short.tokens[rows] = shortlist.shortlist(center, tokens[:, 0])
        short.center[rows], short.rest[rows] = shortlist.logits_of(center, short.tokens[rows])
        for name, move in block.moves.items():
            short.moves[name][rows] = short.difference(center + in_order(move[rows]), rows).half()
    return short


def statistics(block: Block, step: float) -> tuple[Quadratic, float]:
    """Return loss, gradient and curvature of a mean token, and the seconds that they took."""
    names = list(block.moves)
    start = time.perf_counter()
    found = block.sums(names, dict.fromkeys(names, 0.0), 1 / step, CPU).mean()
    return found, time.perf_counter() - start


def newton_step(part: Quadratic) -> Tensor:
    """Return the step to the minimum of a quadratic."""
    return -torch.linalg.solve(part.curvature, part.gradient)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a finished dem-hub demo")
    parser.add_argument("--tokens", type=int, default=500, help="of each distribution")
    arguments = parser.parse_args()
    vectors = sorted((arguments.folder / "vectors").iterdir())
    names = list(map(str, vectors))
    texts = {item.name: item.validation for item in load_distributions()}
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder / "base")
    data = []
    for vector in vectors:
        data += windows_of(tokenizer, texts[vector.name], arguments.tokens)
    model = DEMModel.from_pretrained(arguments.folder / "base", vectors=dict.fromkeys(names, 0.0), dtype="float32")
    print("| at | likely + drawn | gradient | curvature | step | seconds |\n|---|---|---|---|---|---|")
    scale = 0.0
    for label, level, step in POINTS:
        block = whole_block(model, names, data, level, step)
        whole, seconds = statistics(block, step)
        scale = scale or float(whole.gradient.abs().max())
        print(f"| {label} | all {block.center.shape[1]:,} | | | | {seconds:.2f} |")
        for likely, drawn in SIZES:
            with sizes(likely, drawn):
                part, seconds = statistics(shortened(block), step)
            gradient = float((part.gradient - whole.gradient).abs().max()) / scale
            curvature = float((part.curvature - whole.curvature).norm() / whole.curvature.norm())
            coefficient = float((newton_step(part) - newton_step(whole)).abs().max())
            errors = f"{gradient:.2%} | {curvature:.2%} | {coefficient:.4f}"
            print(f"| {label} | {likely:,} + {drawn:,} | {errors} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
