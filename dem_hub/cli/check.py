"""`dem-hub check`: what a merge has kept of a fine-tune, by the predictions of both on data."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dem_hub.cli.arguments import (
    MODEL,
    base_quantized_option,
    batch_size_option,
    columns_option,
    data_option,
    device_map_option,
    json_option,
    max_length_option,
    split_columns,
    split_pairs,
    verify_option,
)
from dem_hub.cli.command import PATH, argument, command, option
from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from dem_hub.models.verdict import DataCheck, Mean

_QUANTIZATIONS = ("nf4", "fp4", "int8")


@command(
    "check",
    examples=[
        "dem-hub check me/my-dem --against me/base-maths --data maths=maths.jsonl",
        "dem-hub check me/my-dem --against other/chat-lora --data chat=chat.jsonl --dtype bfloat16 --quantize nf4",
    ],
)
@argument("model", type=PATH, help="Hub id or folder of a merged model or a recipe.")
@option(
    "--against",
    type=PATH,
    required=True,
    group=MODEL,
    metavar="ID",
    help="The fine-tune: a model, or a LoRA adapter, which PEFT runs unmerged on the base.",
)
@option("--base", type=PATH, group=MODEL, metavar="ID", help="The base. Default: the recipe's, or the adapter's.")
@data_option(
    required=True,
    help="Data of what the fine-tune is for: a text file, rows in a .jsonl, .json, .csv or .parquet file, or a data "
    "set's Hub id or folder with its split (openai/gsm8k:main:test). Can be repeated.",
)
@columns_option
@option("--dtype", default="auto", group=MODEL, help="Dtype in which the merge is served; auto is its own.")
@option(
    "--quantize",
    type=click.Choice(_QUANTIZATIONS),
    group=MODEL,
    help="Quantization by bitsandbytes in which the merge is served. Default: none.",
)
@base_quantized_option
@device_map_option
@verify_option
@batch_size_option
@max_length_option
@json_option
def check(
    *,
    model: str,
    against: str,
    data: Sequence[str],
    columns: Sequence[str],
    dtype: str,
    quantize: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Check that a merge still has what a fine-tune learnt.

    The base, the fine-tune and the merge are run on the data, one after the other. The cost is printed on stderr before.
    """
    import torch

    from dem_hub.models.check import PlannedCheck
    from dem_hub.models.verdict import RULE

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"dtype is '{dtype}'; give auto, or a dtype of torch such as bfloat16.")
    planned = PlannedCheck.of(
        model,
        against,
        split_pairs(data, "--data", "maths=maths.jsonl"),
        columns=split_columns(columns),
        dtype=dtype,
        quantization_config=_quantization(quantize, dtype),
        **options,
    )
    print(planned.cost, file=sys.stderr)
    checks = planned.run()
    print(json.dumps(_data(checks)) if as_json else printable(f"{_text(checks)}\n\n{RULE}", keep="\n"))


def _quantization(name: str | None, dtype: str) -> Any:
    """Return the config of transformers for a quantization by bitsandbytes."""
    if name is None:
        return None
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = {} if dtype == "auto" else {"bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=name, **compute)


def _data(checks: "Mapping[str, DataCheck]") -> dict[str, Any]:
    """Return everything as JSON data. What is not known is null."""
    return {name: _without_nan(asdict(check)) for name, check in checks.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(checks: "Mapping[str, DataCheck]") -> str:
    """Return a table of the losses, and one of the divergences with the verdicts."""
    from dem_hub.cli.output import table

    losses = []
    verdicts = []
    for name, found in checks.items():
        losses.append(
            (name, str(found.tokens), _pair(found.base), _pair(found.finetuned), _pair(found.merged)),
        )
        share = f"{found.kept.value:.1%} ± {found.kept.error:.1%}"
        verdicts.append((name, _pair(found.base_divergence), _pair(found.divergence), share, found.verdict))
    return "\n\n".join(
        [
            table(("loss (nats per token)", "tokens", "base", "fine-tune", "merge"), losses),
            table(("KL from the fine-tune", "base", "merge", "share kept", "verdict"), verdicts),
        ]
    )


def _pair(mean: "Mean") -> str:
    return f"{mean.value:.4f} ± {mean.error:.4f}"
