"""The page: a table for each setting that was run, and a picture of quality against cost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dem_hub.files.atomic import write_text
from studies.beyond_sums.results import GOAL, REFERENCE, Interval, Results, read_results
from studies.beyond_sums.settings import SETTINGS
from studies.data_mixing.report import to_table

# In the picture: what only trains on the mixture, what sums fine-tunes of one round, what trains in rounds, and what
# was made when one source came late.
_COLORS = {"mixture": "#e8590c", "sum": "#0b7285", "rounds": "#5f3dc4", "late": "#2b8a3e"}
_DISCUSSION = Path(__file__).parent / "discussion.md"


def write_report(folder: Path, target: Path) -> Path:
    """Write `report.md`, its picture, and the documents' losses it is computed from; returns the page."""
    found: dict[str, Results] = {}
    for setting in SETTINGS.values():
        found |= read_results(folder, setting)
    if not found:
        raise SystemExit(f"No row lies in '{folder}'. Run a setting first.")
    target.mkdir(parents=True, exist_ok=True)
    data = {name: to_data(results) for name, results in found.items()}
    write_text(target / "report.json", json.dumps(data) + "\n")
    # The page is that of the file, whose losses are rounded.
    found = {name: from_data(of_setting) for name, of_setting in data.items()}
    for name, results in found.items():
        write_picture(results, target / _picture(name))
    page = target / "report.md"
    write_text(page, to_markdown(found))
    return page


def to_data(results: Results) -> dict[str, Any]:
    """Return results as JSON data; [`from_data`] reads them."""
    return {
        "sources": results.sources,
        "tokens": results.tokens,
        "rows": {
            label: {
                "losses": [
                    {name: [round(value, 5) for value in of_name] for name, of_name in losses.items()}
                    for losses in results.losses[label]
                ],
                "training_tokens": cost.training,
                "evaluation_tokens": cost.evaluation,
            }
            for label, cost in results.costs.items()
        },
    }


def from_data(data: dict[str, Any]) -> Results:
    """Return the results that `report.json` has of one setting."""
    seeds = range(len(next(iter(data["rows"].values()))["losses"]))
    runs = [
        {
            **data,
            "rows": {label: {**row, "losses": row["losses"][seed]} for label, row in data["rows"].items()},
        }
        for seed in seeds
    ]
    return Results.of(runs)


def to_markdown(found: dict[str, Results]) -> str:
    """Return the page."""
    parts = [_HEAD]
    for name, results in found.items():
        parts += _section(name, results)
    if _DISCUSSION.is_file():
        parts.append(_DISCUSSION.read_text("utf-8").strip())
    return "\n\n".join(parts) + "\n"


_HEAD = """# Beyond a weighted sum

Written by `python -m studies.beyond_sums report`; every number is computed from `report.json`. The base is
SmolLM2-135M-Instruct. Every row but the base and the single sources has seen the same number of training tokens, and
everything is scored on test text of each source, from documents on which nothing was trained or chosen. Losses are in
nats a token, in float32, the mean over seeds. A seed decides the training documents and their order.

"Better than DEM by" is the DEM's mean loss minus the row's, with a 95 % interval over documents. "Of the gap" is the
share of the distance between DEM and the uniform mixture that a row closes. A round begins without a warm-up, from each
source's own optimizer's state, except for LoRAs, which are new in every round. Forward tokens are those of searches and
of input statistics. What it took to tune the tuned mixture, four more trainings, is not in its cost.

Where a source is "late", the others were mixed before it came. "Trained last" goes on from that mixture on the late
source alone, and "searched" gives this step a coefficient. The two others merge that mixture with a fine-tune of the
base on the late source: nothing of the others' data is trained on again."""


def _picture(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-") + ".png"


def _section(name: str, results: Results) -> Iterator[str]:
    setting = SETTINGS[name.partition(",")[0]]
    seeds = len(results.losses[REFERENCE])
    kind = "LoRAs of rank 16" if setting.lora else "Full fine-tunes"
    yield f"## {name.capitalize()}: {len(setting.sources)} sources, {setting.steps} steps of 512 tokens each"
    yield f"{kind}; {seeds} {'seed' if seeds == 1 else 'seeds'}. In the order of the mean loss:"
    head = [
        "row",
        *results.sources,
        "mean",
        "by seed",
        "better than DEM by",
        "of the gap",
        "training tokens",
        "forward tokens",
    ]
    labels = sorted(results.losses, key=results.mean, reverse=True)
    yield to_table(head, [_row(results, label) for label in labels])
    yield f"![Quality against cost, {name}]({_picture(name)})"
    rivals = [
        label
        for label in (
            "RegMean",
            "RegMean, searched",
            "2 rounds, RegMean, searched",
            "4 rounds, RegMean, searched",
            GOAL,
        )
        if label in results.losses
    ]
    yield "Better than DEM by distribution:"
    rows = [[label, *(_interval(results.gain(label, [name])) for name in results.sources)] for label in rivals]
    yield to_table(["row", *results.sources], rows)


def _row(results: Results, label: str) -> list[str]:
    cost = results.costs[label]
    gain = "" if label == REFERENCE else _interval(results.gain(label))
    return [
        f"**{label}**" if label in (REFERENCE, "RegMean", GOAL) else label,
        *(f"{results.loss(label, name):.4f}" for name in results.sources),
        f"{results.mean(label):.4f}",
        ", ".join(f"{value:.4f}" for value in results.by_seed(label)),
        gain,
        f"{results.closed(label):.0%}",
        f"{cost.training:,.0f}",
        f"{cost.evaluation:,.0f}",
    ]


def _interval(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


# Where a label may lie: on the right of its point, there higher or lower, or on the left.
_PLACES: tuple[dict[str, Any], ...] = (
    {"xytext": (6, 0), "ha": "left", "va": "center"},
    {"xytext": (6, 2), "ha": "left", "va": "bottom"},
    {"xytext": (6, -2), "ha": "left", "va": "top"},
    {"xytext": (-6, 0), "ha": "right", "va": "center"},
    {"xytext": (2, 6), "ha": "left", "va": "bottom"},
    {"xytext": (2, -6), "ha": "left", "va": "top"},
)


def write_picture(results: Results, path: Path) -> None:
    """Draw the mean loss of each row over what it cost, relative to one training on the mixture."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
    unit = results.costs[GOAL].flops(1)
    points = {}
    for label in results.losses:
        if label == "base" or label in results.sources:
            continue
        points[label] = results.costs[label].flops(1) / unit, results.mean(label)
        kind = next((kind for kind in _COLORS if kind in label), "sum")
        axes.plot(*points[label], "o", color=_COLORS[kind])
    axes.axhline(results.mean(GOAL), color=_COLORS["mixture"], linewidth=1, linestyle="--")
    axes.set_xlabel("cost, in trainings on the mixture (operations)")
    axes.set_ylabel("mean loss on test text, nats a token")
    axes.set_xlim(right=axes.get_xlim()[1] + 0.35 * (axes.get_xlim()[1] - axes.get_xlim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.tight_layout()
    _label(axes, points)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write a label at each point, where nothing else is as far as that is possible."""
    taken = [line.get_window_extent().padded(1) for line in axes.get_lines()]
    left = axes.get_window_extent().x0
    for label, point in points.items():
        for place in _PLACES:
            text = axes.annotate(label, point, textcoords="offset points", fontsize=8, **place)
            box = text.get_window_extent()
            if box.x0 >= left and not any(box.overlaps(other) for other in taken):
                break
            if place is not _PLACES[-1]:
                text.remove()
        taken.append(box)
