"""Options that several commands have, and the reading of texts that click has no type for: `NAME=VALUE` pairs and
numbers in them.
"""

from collections.abc import Iterable
from functools import partial
from typing import get_args

import click

from dem_hub.cli.command import option
from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH, VERIFY, Verify
from dem_hub.errors import ConfigError

# The headings that more than one command has in its `--help`.
DATA = "Data"
MODEL = "Model"
METHOD_GROUP = "Method"
OUTPUT = "Output"
HUB = "Hub"

json_option = option("--json", "as_json", is_flag=True, group=OUTPUT, help="Print JSON.")
overwrite_option = option(
    "--overwrite",
    is_flag=True,
    group=OUTPUT,
    help="Replace an earlier result in the folder. Files that no earlier run wrote stay.",
)
private_option = option(
    "--private", is_flag=True, group=HUB, help="Create the repository as private. Ignored if it exists."
)
device_map_option = option(
    "--device-map", group=MODEL, metavar="MAP", help="Where to load the model, as in transformers, for instance auto."
)
base_quantized_option = option(
    "--base-quantized",
    group=MODEL,
    metavar="TYPE[,SETTING]...",
    help="Quantization in which adapters were trained on the base (QLoRA): nf4 or fp4, and after commas double_quant, "
    "compute_dtype=DTYPE and dtype=DTYPE. The base is dequantized from it. Default: that of the recipe, or none.",
)
batch_size_option = option(
    "--batch-size",
    type=int,
    default=BATCH_SIZE,
    group=MODEL,
    help="Windows per forward pass. Does not change the result.",
)
data_option = partial(
    option,
    "--data",
    multiple=True,
    group=DATA,
    metavar="NAME=DATA",
)
columns_option = option(
    "--columns",
    multiple=True,
    group=DATA,
    metavar="NAME=COLUMN[,COLUMN]",
    help="Columns of the prompt and the completion of data, or of its texts, if they have other names. "
    "Can be repeated.",
)
max_length_option = option("--max-length", type=int, default=MAX_LENGTH, group=DATA, help="Tokens per window.")


def _set_verify(context: click.Context, _: click.Parameter, value: Verify) -> None:
    """Let all files be hashed again until the command ends, if the user said so."""
    from dem_hub.hub.remembered import hashing_again

    if value != VERIFY:
        context.with_resource(hashing_again(value))


verify_option = option(
    "--verify",
    type=click.Choice(get_args(Verify)),
    default=VERIFY,
    expose_value=False,
    callback=_set_verify,
    group=MODEL,
    help="quick hashes only files that are new or changed; full hashes every file again, and all bytes of a base.",
)


def split_pairs(texts: Iterable[str], option: str, example: str) -> dict[str, str]:
    """Return the values of an option that is repeated as `NAME=VALUE`, by name. A name may have `=` in it.

    Args:
        texts (`Iterable[str]`): what was typed.
        option (`str`): the option, for messages.
        example (`str`): a pair that the option takes, for messages.

    Returns:
        `dict[str, str]`: the values by name, in the order in which they were typed.

    Raises:
        `ConfigError`: a name or a value is missing; or a name is given twice, so that one of its values would be lost.

    Example:

    ```python
    >>> from dem_hub.cli.arguments import split_pairs
    >>> split_pairs(["maths=a.jsonl", "chat=b.jsonl"], "--data", "maths=maths.jsonl")
    {'maths': 'a.jsonl', 'chat': 'b.jsonl'}
    >>> split_pairs(["maths=a.jsonl", "maths=b.jsonl"], "--data", "maths=maths.jsonl")
    Traceback (most recent call last):
    dem_hub.errors.ConfigError: --data has 'maths' named twice: a.jsonl and b.jsonl. Name each once.

    ```
    """
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value:
            raise ConfigError(f"{option} '{text}' is not NAME=VALUE, such as {example}.")
        if name in values:
            raise ConfigError(f"{option} has '{name}' named twice: {values[name]} and {value}. Name each once.")
        values[name] = value
    return values


def split_columns(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the columns of `--columns`, by the name of the data.

    Raises:
        `ConfigError`: a name or a column is missing, or a name is given twice.
    """
    return {name: value.split(",") for name, value in split_pairs(texts, "--columns", "maths=question,answer").items()}


def number(text: str, meaning: str) -> float:
    """Return a text as a number.

    Raises:
        `ConfigError`: the text is not a number. The message says what it was to mean.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"The {meaning} is '{text}', which is not a number.") from error
