"""Input statistics beside a vector: found, downloaded, and checked against the vector.

Statistics are of one fine-tune, so they name the vector that they are of. They name it by its contents alone: the
sha256 of a PEFT adapter covers what its base is called, which a push changes, and the statistics stay true.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.files.links import check_links
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INPUT_STATISTICS,
    INPUT_STATISTICS_TENSORS,
    STATISTICS_FILES,
    VECTOR_CONFIG,
)
from dem_hub.files.strict_json import dump_json, read_json
from dem_hub.hub.download import resolve
from dem_hub.hub.foreign_text import printable_data
from dem_hub.hub.hashes import digest, short_hash
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.vectors.compatibility import check_weights
from dem_hub.vectors.config import VectorConfig, contents_sha256

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector


def contents_of(folder: Path) -> str:
    """Return the hash of a vector's deltas, 64 hex digits: the same whatever its base is called.

    Args:
        folder (`Path`): Folder of a vector or of a PEFT adapter.
    """
    return _identity(folder, names_base=False)


def tied_statistics(statistics: InputStatistics, vector: "DistributionVector") -> InputStatistics:
    """Return statistics as those of a vector."""
    check_weights(vector)
    return replace(statistics, vector=contents_of(vector.folder))


def read_statistics(vector: "DistributionVector") -> InputStatistics:
    """Read the input statistics beside a vector. Those of a vector from the Hub are downloaded.

    Raises:
        `NotFoundError`: If there are none.
        `ConfigError`: If they are those of another vector, or damaged.
        `CheckpointError`: If their tensors are damaged, or the vector was opened with `describe`.
    """
    check_weights(vector)
    files = statistics_files(vector, download=True)
    if not files:
        raise NotFoundError(
            f"'{vector.name}' has no input statistics ({INPUT_STATISTICS}). Name data of its distribution, or gather "
            "them once: dem-hub statistics."
        )
    statistics = InputStatistics.from_pretrained(files[INPUT_STATISTICS].parent)
    _check_tie(statistics, vector.folder, vector.name)
    return statistics


def statistics_files(vector: "DistributionVector", *, download: bool) -> dict[str, Path]:
    """Return the files of the input statistics beside a vector by name, unread; an empty dict if there are none.

    Args:
        vector ([`DistributionVector`]): The vector.
        download (`bool`): Look on the Hub too, if the vector is from there.
    """
    folder = vector.folder
    if download and vector.commit is not None:
        source = replace(vector.source, revision=vector.commit)
        folder = resolve(source, STATISTICS_FILES, replace(vector.options, force_download=False)).folder
    return _files_in(folder)


def public_statistics(folder: Path) -> dict[str, Path | str]:
    """Return the input statistics of a vector's folder as they are pushed, by file name; an empty dict if it has none.

    Args:
        folder (`Path`): Folder of a vector or of a PEFT adapter.

    Raises:
        `ConfigError`: If they are those of another vector, or damaged, or links that lead out of the folder.
        `CheckpointError`: If their tensors are damaged.
    """
    if not _files_in(folder):
        return {}
    statistics = InputStatistics.from_pretrained(folder)
    _check_tie(statistics, folder, str(folder))
    record = {**read_json(folder / INPUT_STATISTICS), "vector": contents_of(folder)}
    return {
        INPUT_STATISTICS: dump_json(printable_data(record), foreign=True),
        INPUT_STATISTICS_TENSORS: folder / INPUT_STATISTICS_TENSORS,
    }


def _check_tie(statistics: InputStatistics, folder: Path, name: str) -> None:
    """Refuse statistics that are not those of the vector in a folder."""
    contents = contents_of(folder)
    # Statistics that were gathered before there was such a hash name the sha256 of the vector.
    if statistics.vector not in (contents, _identity(folder, names_base=True)):
        raise ConfigError(
            f"The input statistics in '{name}' are of a vector with the hash {short_hash(statistics.vector)}, and the "
            f"vector there has {short_hash(contents)}. Gather them again: dem-hub statistics."
        )


def _files_in(folder: Path) -> dict[str, Path]:
    if not (folder / INPUT_STATISTICS).is_file():
        return {}
    check_links(folder, STATISTICS_FILES)
    return {name: folder / name for name in STATISTICS_FILES if (folder / name).is_file()}


def _identity(folder: Path, *, names_base: bool) -> str:
    """Return the sha256 of a vector, with or without the name that an adapter's config has for its base."""
    if (folder / VECTOR_CONFIG).is_file():
        config = VectorConfig.read(folder / VECTOR_CONFIG)
        files = dict(config.files)
        if ADAPTER_CONFIG in files and not names_base:
            files[ADAPTER_CONFIG] = _nameless_sha256(folder)
        return replace(config, files=files).sha256
    adapter = digest(folder / ADAPTER_CONFIG) if names_base else _nameless_sha256(folder)
    return contents_sha256({ADAPTER_CONFIG: adapter, ADAPTER_WEIGHTS: digest(folder / ADAPTER_WEIGHTS)})


def _nameless_sha256(folder: Path) -> str:
    """Return the sha256 of an adapter's config without the name of its base, as sorted JSON."""
    config = read_json(folder / ADAPTER_CONFIG)
    config.pop("base_model_name_or_path", None)
    return hashlib.sha256(dump_json(config).encode()).hexdigest()
