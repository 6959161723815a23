"""`dem-hub extract`: the vector FINETUNED - BASE, into a folder.

The options of the codecs are read from the codecs themselves: a new codec, or a new option of one, is known here
without a change.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dem_hub.cli.arguments import OUTPUT, overwrite_option, verify_option
from dem_hub.cli.command import PATH, Command, Option, argument, command, option
from dem_hub.cli.startup import heavy_imports
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from dem_hub.codecs.listing import OptionInfo

CODEC = "Codec"


class ExtractCommand(Command):
    """A command that also has every option of every codec.

    They are read when they are needed, to parse or to show: `dem-hub --help`, or another command, does without.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options that were declared, and those of the codecs."""
        return [*super().get_params(ctx), *_codec_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and below them each codec with its options."""
        from dem_hub.codecs.listing import list_codecs

        super().format_options(ctx, formatter)
        rows = []
        for codec in list_codecs():
            summary = codec.summary.replace("`", "")
            flags = [_flag(info.name) for info in codec.options]
            rows.append((codec.name, f"{summary} Options: {', '.join(flags)}." if flags else summary))
        with formatter.section("Codecs"):
            formatter.write_dl(rows)


@command(
    "extract",
    cls=ExtractCommand,
    examples=[
        "dem-hub extract org/base me/base-maths -o maths",
        "dem-hub extract org/base me/base-maths -o maths --max-bytes 20MB",
        "dem-hub extract org/base me/base-maths -o maths --codec lrsign --rank 64",
    ],
)
@argument("base", type=PATH, help="Hub id or folder of the base.")
@argument("finetuned", type=PATH, help="Hub id or folder of the fine-tune.")
@verify_option
@option("-o", "--output", type=PATH, required=True, group=OUTPUT, metavar="FOLDER", help="Folder for the vector.")
@overwrite_option
@option("--codec", default="auto", group=CODEC, metavar="NAME", help="How to store the vector; see Codecs below.")
def extract(*, base: str, finetuned: str, output: str, overwrite: bool, codec: str, **codec_options: Any) -> None:
    """Extract a distribution vector: fine-tune minus base.

    A vector of the same fine-tune in the folder is replaced, any other only with --overwrite.
    """
    from dem_hub.files.folders import VECTOR, check_output

    is_again = _has_vector_of(Path(output), finetuned)
    check_output(Path(output), VECTOR, overwrite=overwrite or is_again)  # before hours of work

    with heavy_imports():
        from dem_hub.vectors.report import summary
        from dem_hub.vectors.vector import DistributionVector

    given = {name: value for name, value in codec_options.items() if value is not None}
    vector = DistributionVector.extract(base, finetuned, codec=codec, **given)
    vector.save_pretrained(output)
    assert vector.config is not None
    print(f"{output}: {summary(vector.config, vector.nbytes)}")
    if vector.config.choice:
        print(printable(f"auto: {vector.config.choice}"))


def _has_vector_of(folder: Path, finetuned: str) -> bool:
    """Check whether a folder has a vector of this fine-tune: to extract that again loses nothing."""
    from dem_hub.errors import ConfigError
    from dem_hub.files.names import VECTOR_CONFIG
    from dem_hub.hub.references import VectorSource
    from dem_hub.vectors.config import VectorConfig

    path = folder / VECTOR_CONFIG
    if not path.is_file():
        return False
    try:
        return VectorConfig.read(path).finetuned == str(VectorSource.parse(finetuned).absolute)
    except ConfigError:  # damaged, or of a newer version: not known to be the same
        return False


def _codec_options() -> list[Option]:
    """Return one option for each name that an option of a codec has. Several codecs may have options of one name."""
    from dem_hub.codecs.listing import list_codecs

    infos: dict[str, OptionInfo] = {}
    owners: dict[str, dict[str, list[str]]] = {}
    for codec in list_codecs():
        for info in codec.options:
            infos[info.name] = info
            owners.setdefault(info.name, {}).setdefault(_help(info), []).append(codec.name)
    options = []
    for name, codecs_by_help in owners.items():
        texts = [f"{', '.join(codecs)}: {text}." for text, codecs in codecs_by_help.items()]
        options.append(Option([_flag(name)], type=infos[name].type, group=CODEC, help=" ".join(texts)))
    return options


def _help(info: "OptionInfo") -> str:
    """Return the help of a codec's option with its default, as plain text."""
    text = info.help.replace("`", "")
    return text if info.default is None else f"{text} (default: {info.default})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
