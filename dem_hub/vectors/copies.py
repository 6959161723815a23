"""Copies of a vector in other folders: its own files, and what belongs beside them.

A copy is on this machine, so the input statistics come along. A push leaves them out unless it is told otherwise.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.files.links import check_paths
from dem_hub.vectors.compatibility import check_weights
from dem_hub.vectors.folder import place_file, replaced_folder
from dem_hub.vectors.statistics_beside import statistics_files
from dem_hub.vectors.tokens import adapter_tokenizer

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector


def copy_vector(
    vector: "DistributionVector", target: Path, around: AbstractContextManager[object] | None = None
) -> None:
    """Write a vector into a folder, in place of the vector or adapter that is there, in one step.

    Unlike [`DistributionVector.save_pretrained`], this does not check what else the folder holds.

    Args:
        vector ([`DistributionVector`]): The vector.
        target (`Path`): The folder. It is created if it does not exist.
        around (`AbstractContextManager`, *optional*): Entered before the files take their place, and left afterwards.
    """
    check_weights(vector)
    if target.is_dir() and target.resolve() == vector.folder.resolve():
        with around or nullcontext():
            return
    files = {name: vector.folder / name for name in vector.file_names}
    check_paths(files.values(), vector.folder)
    files |= adapter_tokenizer(vector)
    files |= statistics_files(vector, download=False)
    may_link = vector.owns_files
    vector.owns_files = False  # a linked file is the target's too, so a second target needs a copy
    with replaced_folder(target, around) as folder:
        for name, file in files.items():
            place_file(file.resolve(), folder / name, link=may_link)  # the Hub's cache has links to its blobs
