"""Export: a merged model is written as an ordinary transformers folder, which loads without dem_hub.

Base and vectors are streamed block by block into sharded safetensors files, so memory is that of a few blocks of
rows; no model is built and transformers is not imported. The recipe is kept beside the weights as `dem_config.json`,
and the names of all files as `dem_files.json`: a later export replaces these, and a push takes these, and no others.
Nothing in the folder loads as a model before the last byte is written, and an export that was interrupted goes on
where it stopped.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from dem_hub.files.atomic import write_text
from dem_hub.files.folders import MERGED, kind_of
from dem_hub.files.names import MERGED_FILES, SAFETENSORS
from dem_hub.files.resumable import PartialFolder, partial_path, recorded_bytes, resumable_folder
from dem_hub.hub.download import copy_side_files
from dem_hub.hub.growing_digest import GrowingDigest
from dem_hub.models.estimate import Estimate, check_room, estimate
from dem_hub.models.manifest import Manifest, check_strange_weights, owned_files
from dem_hub.models.planned import PlannedModel, merging_bar


def export(model: PlannedModel, target: Path) -> None:
    """Write a merged model into a folder, which appears complete or not at all.

    An export that was interrupted is resumed if it is called again with the same arguments.

    Args:
        model ([`PlannedModel`]): The model.
        target (`Path`): The folder. An older export in it is replaced.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the folder is the base or a vector, or holds anything but an older export.
        [`~dem_hub.errors.DiskSpaceError`]: If the disk has less room than the model takes.
        [`~dem_hub.errors.BusyError`]: If another process is writing the same folder.
        [`~dem_hub.errors.CheckpointError`]: If the base or the merged weights have NaN or inf.
    """
    with export_folder(model, target, model.purpose) as work:
        complete(model, work.folder, _write_weights(model, work))


@contextmanager
def export_folder(model: PlannedModel, target: Path, purpose: str) -> Iterator[PartialFolder]:
    """Yield a folder that has all files of a merged model but the weights, and becomes `target` when the block ends.

    Args:
        model ([`PlannedModel`]): The model.
        target (`Path`): The folder of the export.
        purpose (`str`): What the bytes of the weights depend on: an interrupted export of another purpose is deleted.

    Raises:
        [`~dem_hub.errors.DemHubError`]: What [`export`] raises before it writes.
    """
    model.opened.check_target(target, MERGED)
    check_strange_weights(target)
    check_room(model, target, model.nbytes)
    # Files of an older export go: if weights of both stayed, another model would load. What is not in its manifest
    # belongs to the user, and stays.
    owned = frozenset(owned_files(target))
    with resumable_folder(target, purpose, model.nbytes, model.last_file, owned.__contains__) as work:
        copy_side_files(model.copies, work.folder)
        for name, text in model.texts(target).items():
            write_text(work.folder / name, text)
        yield work


def complete(model: PlannedModel, folder: Path, hashes: Mapping[str, str]) -> None:
    """Write the last files into a folder, whose files of weights have these sha256.

    A single file of weights is complete with its last byte. Several files are complete with their index, so that is
    written after them.
    """
    model.opened.check_unchanged()
    for name, text in model.index.items():
        write_text(folder / name, text)
    write_text(folder / MERGED_FILES, Manifest.of(folder, model.purpose, hashes).text)


def is_exported(model: PlannedModel, target: Path) -> bool:
    """Check whether a folder has the whole of this model already, from an earlier export with the same arguments.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the manifest of the folder is damaged.
    """
    manifest = Manifest.read(target)
    return manifest is not None and manifest.purpose == model.purpose and manifest.is_complete(target)


def is_interrupted(target: Path) -> bool:
    """Check whether a folder has a merged model without all of its files, as a killed export leaves it.

    Files that somebody has changed since are not what a killed export leaves, and are not lost.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the manifest of the folder is damaged.
    """
    if kind_of(target) != MERGED:
        return False
    manifest = Manifest.read(target)
    if manifest is None:
        return not any(name.endswith(SAFETENSORS) for name in owned_files(target))
    return bool(manifest.missing(target)) and not manifest.changed(target)


def estimate_export(model: PlannedModel, target: Path) -> Estimate:
    """Return what [`export`] will take, and write nothing.

    Raises:
        [`~dem_hub.errors.ConfigError`], [`~dem_hub.errors.DiskSpaceError`]: As [`export`] does.
    """
    model.opened.check_target(target, MERGED)
    already_written = recorded_bytes(partial_path(target), model.purpose)
    return estimate(model, target, model.nbytes, already_written)


def _write_weights(model: PlannedModel, work: PartialFolder) -> dict[str, str]:
    """Write the files of the weights, from the byte on that an interrupted export came to, and return their sha256."""
    offsets = [0, *accumulate(shard.nbytes for shard in model.shards)]
    shards = list(zip(model.shards, offsets, strict=False))
    start = work.written
    # The journal says how far the export came. If a file has become shorter since, all of them are written again.
    if not all(shard.holds(work.folder / shard.name, start - offset) for shard, offset in shards):
        start = 0
    # A file is hashed while it is written, as the system still has what was written in memory.
    hashes = {}
    with merging_bar(model.nbytes, start) as bar, ThreadPoolExecutor(max_workers=1) as pool:
        for shard, offset in shards:
            file = work.folder / shard.name
            growing = GrowingDigest(pool, file, shard.header)
            in_shard = min(max(0, start - offset), shard.nbytes)
            for written in growing.follow(model.write(file, shard, in_shard)):
                bar.update(offset + written - bar.n)
                work.record(offset + written)
            hashes[shard.name] = growing
    return {name: growing.hexdigest() for name, growing in hashes.items()}
