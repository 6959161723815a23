"""The report: one JSON file with everything, and a page that is written from it alone, with its pictures."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dem_hub.plotting import draw_perplexities
from studies.data_mixing.costs import Cost, cheaper, total
from studies.data_mixing.settings import LATER, NAMES

_COLORS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#868e96")


def write_pictures(data: dict[str, Any], folder: Path) -> None:
    """Perplexities of the models, norms by layer, and what each strategy found for what it cost."""
    from matplotlib import pyplot

    shown = ["base", "1/N", data["tuned"], "DEM"]
    table = {
        label: {name: math.exp(loss) for name, loss in data["test"][label]["by_distribution"].items() if name != LATER}
        for label in shown
    }
    draw_perplexities(table, "Perplexity on test text").savefig(folder / "perplexity.png")

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2))
    for (name, norms), color in zip(data["vectors"]["by_layer"].items(), _COLORS, strict=False):
        axes.plot(norms, label=name, color=color, linewidth=1.6)
    axes.set_xlabel("layer")
    axes.set_ylabel("norm of the vector's part")
    axes.set_ylim(0)
    _finish(pyplot, figure, axes, folder / "layers.png")

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2))
    for label, entry in data["searches"].items():
        axes.plot(entry["num_forward"], entry["test"], "o", color=_COLORS[0] if label == "gauss_newton" else _COLORS[4])
        axes.annotate(f" {label}", (entry["num_forward"], entry["test"]), fontsize=8)
    axes.axhline(data["test"]["1/N"]["mean"], color=_COLORS[1], linewidth=1, linestyle="--", label="1/N")
    axes.set_xscale("log")
    axes.set_xlim(right=3 * max(entry["num_forward"] for entry in data["searches"].values()))
    axes.set_xlabel("forward passes over the validation text")
    axes.set_ylabel("mean loss on test text")
    _finish(pyplot, figure, axes, folder / "strategies.png")


def costs_of(data: dict[str, Any]) -> dict[str, Cost]:
    """What each way of getting a model has cost."""
    settings, step = data["settings"], data["tokens_per_step"]
    one = settings["steps"] * step
    validation = sum(data["searches"]["gauss_newton"]["tokens"].values())
    later = sum(data["grown"]["tokens"].values())
    mixing = [Cost(len(NAMES) * one, validation) for _ in settings["mixtures"]]
    return {
        "fine-tunes": Cost(len(NAMES) * one),
        "search": Cost(0, data["searches"]["gauss_newton"]["num_forward"] * validation),
        "search, as many candidates as mixtures": Cost(0, len(mixing) * validation),
        "one mixture": Cost(len(NAMES) * one),
        "tuned mixture": total(mixing),
        "one more distribution, DEM": Cost(one, data["grown"]["num_forward"] * later),
        "one more distribution, one mixture": Cost((len(NAMES) + 1) * one),
    }


def _model(settings: dict[str, Any]) -> str:
    layers = settings.get("layers")  # a report of before there was a choice has none
    return (
        "SmolLM2-135M"
        if layers is None
        else f"the first {layers} layers of SmolLM2-135M: a quick look, whose numbers mean nothing"
    )


def to_markdown(data: dict[str, Any]) -> str:
    """The page."""
    parts = [
        _head(data),
        _main_table(data),
        _strategies(data),
        _costs(data),
        _incremental(data),
        _compact(data),
        _vectors(data),
    ]
    parts += [_downstream(data), _architectures(data), _reading(data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(data: dict[str, Any]) -> str:
    settings, machine = data["settings"], data["machine"]
    gain, low, high = data["intervals"]["1/N"]
    verdict = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
    return (
        f"# DEM against data mixing, on {_model(settings)}\n\n"
        "Written by `python -m studies.data_mixing`; every number is computed from `report.json`. Seed "
        f"{settings['seed']}, {machine}.\n\nFour distributions ({', '.join(NAMES)}), {settings['steps']} steps of "
        f"{data['tokens_per_step']} tokens each; a mixture of the four has as many tokens as the four fine-tunes "
        "together, and the uniform one sees the same documents. Coefficients are chosen on "
        f"{settings['validation_tokens']} tokens of validation text of each, everything is reported on "
        f"{settings['test_tokens']} tokens of test text of each, from other documents. Losses are in nats a token, "
        f"evaluated in float32.\n\n**In a line:** DEM with searched coefficients is {verdict} uniform averaging (by "
        f"{gain:.4f}, {low:.4f} to {high:.4f})."
    )


def _main_table(data: dict[str, Any]) -> str:
    rows = []
    for label in data["main"]:
        entry = data["test"][label]
        losses = [f"{math.exp(entry['by_distribution'][name]):.2f}" for name in NAMES]
        rows.append(
            [f"**{label}**" if label == "DEM" else label, *losses, f"{entry['mean']:.4f}", _against(data, label)]
        )
    head = ["model", *NAMES, "mean loss", "its mean loss minus DEM's"]
    return (
        "## 1. Models on test text\n\nPerplexity by distribution; the mean over distributions of the loss. The last "
        "column has a 95 % interval over documents, paired: it is above 0 where DEM is better.\n\n"
        + to_table(head, rows)
        + "\n\n![Perplexity](perplexity.png)"
    )


def _against(data: dict[str, Any], label: str) -> str:
    if label not in data["intervals"]:
        return ""
    mean, low, high = data["intervals"][label]
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _strategies(data: dict[str, Any]) -> str:
    rows = []
    for label, entry in data["searches"].items():
        point = ", ".join(f"{value:.2f}" for value in entry["coefficients"].values())
        count = f"{entry['num_forward']:.0f}"
        rows.append([label, point, count, f"{entry['loss']:.4f}", f"{entry['test']:.4f}"])
    scored = data["settings"]["grid_scored"]
    return (
        "## 2. Coefficients by every strategy\n\n"
        + to_table(
            ["strategy", f"coefficients ({', '.join(NAMES)})", "forward passes", "validation loss", "test loss"], rows
        )
        + f"\n\n(Of the grid the {scored} points were scored that rank first by the statistics of `gauss_newton`; its cost is that of all.)"
        + "\n\n![Strategies](strategies.png)"
    )


def _costs(data: dict[str, Any]) -> str:
    costs, parameters = costs_of(data), data["parameters"]
    rows = [
        [label, f"{cost.training:,.0f}", f"{cost.evaluation:,.0f}", f"{cost.flops(parameters):.2e}"]
        for label, cost in costs.items()
        if not label.startswith("one more")
    ]
    dem = costs["fine-tunes"] + costs["search"]
    rows.append(
        [
            "**DEM in all: fine-tunes and search**",
            f"{dem.training:,.0f}",
            f"{dem.evaluation:,.0f}",
            f"{dem.flops(parameters):.2e}",
        ]
    )
    share = 1 - cheaper(costs["search, as many candidates as mixtures"], costs["tuned mixture"])
    whole = 1 - cheaper(costs["search"], costs["tuned mixture"])
    count = len(data["settings"]["mixtures"])
    return (
        "## 3. Costs\n\nTraining costs 6, a forward pass 2 operations a parameter and token.\n\n"
        + to_table(["what", "training tokens", "evaluation tokens", "FLOPs"], rows)
        + f"\n\nTrying {count} sets of coefficients costs **{share:.1%}** of trying {count} mixtures; the whole search of `gauss_newton` costs "
        f"{whole:.1%} of that. With the fine-tunes, DEM is **{cheaper(dem, costs['tuned mixture']):.0%} cheaper** than "
        f"tuning the mixture over {count} candidates, and costs {dem.flops(1) / costs['one mixture'].flops(1):.2f} "
        f"times one training on one mixture. The grid of {count} is small; the saving grows with every mixture that "
        "would have been tried."
    )


def _incremental(data: dict[str, Any]) -> str:
    costs = costs_of(data)
    rows = []
    for label in data["with_later"]:
        entry = data["test"][label]
        losses = [f"{math.exp(entry['by_distribution'][name]):.2f}" for name in (*NAMES, LATER)]
        rows.append([label, *losses, f"{entry['mean_with_later']:.4f}"])
    point = ", ".join(f"{name} {value:.2f}" for name, value in data["grown"]["coefficients"].items())
    mean, low, high = data["later_interval"]
    saved = cheaper(costs["one more distribution, DEM"], costs["one more distribution, one mixture"])
    return (
        f"## 4. A fifth distribution arrives: {LATER}\n\nDEM trains one more fine-tune and adds its vector to the "
        f"search that was made ({data['grown']['num_forward']:.1f} forward passes more): {point}. Mixing trains on all "
        "five again.\n\n"
        + to_table(["model", *NAMES, LATER, "mean loss of five"], rows)
        + f"\n\nThe mixture's mean loss minus the grown DEM's: {mean:+.4f} ({low:+.4f} to {high:+.4f}). The fifth distribution cost DEM "
        f"**{saved:.0%} less** than training a single mixture again."
    )


def _compact(data: dict[str, Any]) -> str:
    vectors = data["vectors"]
    compact, whole = sum(vectors["bytes"][: len(NAMES)]), sum(vectors["whole_bytes"][: len(NAMES)])
    mean, low, high = data["intervals"]["DEM, whole vectors"]
    return (
        "## 5. Vectors stored compactly and whole\n\n"
        f'Four vectors: {compact / 1e6:.1f} MB by `codec="auto"`, {whole / 1e6:.1f} MB as float32 differences, '
        f"{compact / whole:.1%} of the bytes. "
        f"At the same coefficients the whole vectors' test loss minus the compact ones' is {mean:+.4f} ({low:+.4f} to "
        f"{high:+.4f})."
    )


def _vectors(data: dict[str, Any]) -> str:
    vectors = data["vectors"]
    rows = [
        [name, f"{norm:.3f}", *(f"{value:.2f}" for value in row)]
        for name, norm, row in zip(vectors["names"], vectors["norms"], vectors["cosines"], strict=True)
    ]
    return (
        "## 6. How the vectors relate\n\n"
        + to_table(["vector", "norm", *vectors["names"]], rows)
        + "\n\n![Norms by layer](layers.png)"
    )


def _downstream(data: dict[str, Any]) -> str:
    found = data.get("downstream")
    if not found:
        return ""
    tasks = list(next(iter(found.values())))
    rows = [
        [label, *(f"{scores[task]['accuracy']:.1%} ± {scores[task]['error']:.1%}" for task in tasks)]
        for label, scores in found.items()
    ]
    return (
        "## 7. Downstream accuracy\n\nMultiple choice of four made from test text, scored by lm-evaluation-harness; ± "
        "is the standard error.\n\n" + to_table(["model", *tasks], rows)
    )


def _architectures(data: dict[str, Any]) -> str:
    parts = []
    for kind, found in data["architectures"].items():
        names = [name for name in found["losses"]["DEM"] if name != "mean"]
        rows = [[label, *(f"{value:.4f}" for value in losses.values())] for label, losses in found["losses"].items()]
        notes = [
            f"{label}: {one['mean']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
            for label, one in found["intervals"].items()
        ]
        point = ", ".join(f"{name} {value:.2f}" for name, value in found["coefficients"]["DEM"].items())
        about = (
            f"{found['parameters'] / 1e6:.1f} million parameters, random at first, pretrained on "
            f"{found['training_tokens']['pretraining']:,} tokens of all texts, then fine-tuned on "
            f"{found['training_tokens'][names[0]]:,} of each. DEM: {point}, in {found['num_forward']['search']:.0f} "
            "forward passes. Test losses in nats a token:"
        )
        parts.append(
            f"### {kind.capitalize()}\n\n{about}\n\n"
            + to_table(["model", *names, "mean"], rows)
            + f"\n\n{'; '.join(notes)}."
        )
    return "## 8. Encoder-decoder and mixture of experts\n\n" + "\n\n".join(parts)


def _reading(data: dict[str, Any]) -> str:
    path = Path(__file__).with_name("discussion.md")
    return path.read_text("utf-8").strip() if path.is_file() and data["settings"]["steps"] >= 10 else ""


def to_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _finish(pyplot: Any, figure: Any, axes: Any, path: str | os.PathLike[str]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
