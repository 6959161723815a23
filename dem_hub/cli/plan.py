"""`dem-hub plan`: what loading, searching, merging and serving will take, from headers alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dem_hub.cli.arguments import (
    METHOD_GROUP,
    MODEL,
    OUTPUT,
    batch_size_option,
    json_option,
    max_length_option,
    split_pairs,
)
from dem_hub.cli.command import PATH, command, option
from dem_hub.cli.opening import model_argument, open_named
from dem_hub.cli.output import table
from dem_hub.cli.startup import heavy_imports
from dem_hub.defaults import METHOD
from dem_hub.errors import ConfigError
from dem_hub.files.sizes import format_size
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from dem_hub.planning.facts import Facts
    from dem_hub.planning.step import Step

STEP_GROUP = "Steps (default: all)"


@command(
    "plan",
    examples=[
        "dem-hub plan org/base --vector me/maths-vector --vector other/cot-lora",
        "dem-hub plan org/base --vector me/maths-vector --load --memory 0=24GB --memory cpu=64GB",
        "dem-hub plan me/my-dem --serve --memory 0=24GB --memory 1=24GB",
    ],
)
@model_argument
@option(
    "--vector",
    "vectors",
    type=PATH,
    multiple=True,
    group=MODEL,
    metavar="ID[@REVISION][//SUBFOLDER][=COEFFICIENT]",
    help="Vector or LoRA adapter. Its coefficient can be left out. Can be repeated.",
)
@option("--load", is_flag=True, group=STEP_GROUP, help="Load the merged model with transformers.")
@option("--search", is_flag=True, group=STEP_GROUP, help="Search for coefficients. Needs --vector.")
@option("--merge", is_flag=True, group=STEP_GROUP, help="Write the merged model.")
@option("--serve", is_flag=True, group=STEP_GROUP, help="Serve the merged model with vLLM.")
@option(
    "--memory",
    multiple=True,
    group=MODEL,
    metavar="DEVICE=SIZE",
    help="Memory of a device, such as 0=24GB or cpu=64GiB. Can be repeated. Default: what is free on this machine.",
)
@option(
    "--dtype", group=MODEL, help="Dtype of all steps. Default: that of the recipe or the base; float32 for a search."
)
@option(
    "--quantize", type=click.Choice(["4bit", "8bit"]), group=MODEL, help="Quantise with bitsandbytes while loading."
)
@option(
    "--device-map",
    default="auto",
    group=MODEL,
    metavar="MAP",
    help="Where to load the model: auto, balanced, balanced_low_0, sequential, or one device.",
)
@option("--method", default=METHOD, group=METHOD_GROUP, metavar="NAME", help="Method of the search.")
@option("--max-forward", type=float, group=METHOD_GROUP, help="Maximum number of forward passes of the search.")
@batch_size_option
@max_length_option
@option(
    "-o", "--output", type=PATH, default=".", group=OUTPUT, metavar="FOLDER", help="Where the model would be written."
)
@json_option
def plan(
    *,
    model: str,
    vectors: Sequence[str],
    load: bool,
    search: bool,
    merge: bool,
    serve: bool,
    memory: Sequence[str],
    output: str,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Say what each step will take, and whether it fits: memory, disk, download and forward passes.

    Only the headers and configs of the base and the vectors are read.
    """
    if search and not vectors:
        raise ConfigError("A search needs vectors: dem-hub plan BASE --vector ID --search.")
    with heavy_imports():
        from dem_hub.models.planned import PlannedModel
        from dem_hub.planning.placement import capacities
        from dem_hub.planning.planner import Planner
        from dem_hub.planning.step import STEPS, Wishes
        from dem_hub.planning.ways_out import with_ways_out

    opened = open_named(model, [_with_coefficient(vector) for vector in vectors], headers_only=True)
    planner = Planner(PlannedModel.of(opened))
    asked = {"load": load, "search": search, "merge": merge, "serve": serve}
    names = [name for name in STEPS if asked[name]]
    if not names:
        names = [name for name in STEPS if vectors or name != "search"]
    wanted = Wishes(capacities(split_pairs(memory, "--memory", "cpu=64GB")), folder=Path(output), **wishes)
    steps = [with_ways_out(planner, name, wanted) for name in names]
    if as_json:
        print(json.dumps(_data(planner.facts, steps)))
    else:
        print(printable(_text(planner.facts, steps), keep="\n"))


def _with_coefficient(vector: str) -> str:
    """Return a vector with a coefficient: whatever it is, what the vector takes is the same."""
    name, _, text = vector.rpartition("=")
    try:
        float(text)
    except ValueError:
        return f"{vector}=1"
    return vector if name else f"{vector}=1"


def _text(facts: "Facts", steps: Sequence["Step"]) -> str:
    """Return the plan for people: the sizes, a table of all steps, and a paragraph for each step."""
    sizes = (
        f"base: {facts.tensors} tensors, {format_size(facts.base_bytes)}; the largest takes "
        f"{format_size(facts.largest)} in float32\n"
        f"merged: {facts.parameters:,} parameters\n"
        f"vectors: {format_size(facts.vector_bytes)}\n"
        f"to download: {format_size(facts.downloads)}"
    )
    rows = []
    for step in steps:
        for need in step.needs:
            figures = [format_size(number) for number in (need.keeps, need.most, need.there)]
            rows.append((step.name, need.place, *figures, need.verdict))
    return "\n\n".join(
        [sizes, table(("step", "place", "keeps", "at most", "there is", ""), rows), *map(_step_text, steps)]
    )


def _step_text(step: "Step") -> str:
    lines = [f"{step.name}: {step.verdict}"]
    if step.refused:
        lines.append(f"  {step.refused}")
    if step.num_forward is not None:
        lines.append(
            f"  At most {step.num_forward:g} forward passes over the search data, the last only for a baseline that is "
            f"better, and {step.num_forward_held_out:g} over the held-out data."
        )
    lines += [f"  {note}" for note in step.notes]
    lines += [f"  way out: {way}" for way in step.ways_out]
    return "\n".join(lines)


def _data(facts: "Facts", steps: Sequence["Step"]) -> dict[str, Any]:
    """Return the plan as JSON data."""
    planned = {}
    for step in steps:
        data = asdict(step)
        del data["name"]
        for need, shown in zip(step.needs, data["needs"], strict=True):
            shown["verdict"] = need.verdict
        planned[step.name] = {**data, "verdict": step.verdict}
    return {**asdict(facts), "steps": planned}
