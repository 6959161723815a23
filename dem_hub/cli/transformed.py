"""What `regmean`, `ties` and `dare` have in common: they make vectors of vectors, and leave them in a store."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.cli.arguments import OUTPUT
from dem_hub.cli.command import PATH, argument, option

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector

base_argument = argument("base", type=PATH, help="Hub id or folder of the base.")
codec_option = option(
    "--codec",
    default="auto",
    group=OUTPUT,
    metavar="NAME",
    help="How to store deltas that are no product of two factors, as in dem-hub extract.",
)
store_option = option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    group=OUTPUT,
    metavar="FOLDER",
    help="Folder for a store of the vectors; a vector in it is FOLDER//NAME.",
)
device_option = option("--device", group=OUTPUT, help="Where the deltas are computed. Default: the CPU.")


def keep(
    output: str, base: str, vectors: Mapping[str, "DistributionVector"], coefficients: Mapping[str, float]
) -> None:
    """Put vectors into a new store, and print each in a line, and the command that merges them.

    The store appears with all of its vectors or not at all, so that a run that was killed can be run again.

    Args:
        output (`str`): the folder of the store.
        base (`str`): the base.
        vectors (`Mapping[str, DistributionVector]`): the vectors, by the names of those that they were made from.
        coefficients (`Mapping[str, float]`): the coefficient of each, by the same names.
    """
    from dem_hub.files.atomic import atomic_folder
    from dem_hub.files.names import STORE_CONFIG
    from dem_hub.files.sizes import format_size
    from dem_hub.hub.foreign_text import printable
    from dem_hub.vectors.report import summary
    from dem_hub.vectors.store import VectorStore

    names = short_names(vectors)
    with atomic_folder(Path(output), last=STORE_CONFIG) as partial:
        store = VectorStore.create(partial, base)
        for name, short in names.items():
            store.add(short, vectors[name])
    arguments = []
    for name, short in names.items():
        vector = vectors[name]
        if vector.config is None:  # regmean returns a single vector as it is, which may be an adapter
            described = f"LoRA adapter, unchanged, {format_size(vector.nbytes)}"
        else:
            described = summary(vector.config, vector.nbytes)
        print(printable(f"{output}//{short}: {described}"))
        arguments.append(f"--vector {output}//{short}={coefficients[name]:g}")
    print(printable(f"Merge them: dem-hub merge {base} {' '.join(arguments)} -o FOLDER"))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name for each vector that a folder can have: the last part of its own, with more where it is taken.

    Example:

    ```python
    >>> from dem_hub.cli.transformed import short_names
    >>> short_names(["me/maths", "you/maths", "folder//chat"])
    {'me/maths': 'me-maths', 'you/maths': 'you-maths', 'folder//chat': 'chat'}

    ```
    """
    from dem_hub.files.distinct_names import distinct_names

    parts = distinct_names([Path(name) for name in names])
    return {name: "-".join(of_name) for name, of_name in zip(names, parts, strict=True)}
