"""A DEM written out as an ordinary transformers folder, which anything that reads one can use with no dem_hub installed.

Base and vectors stream block by block into sharded safetensors, with the memory of a few blocks of rows; no model is built and
transformers is not imported. The recipe lies beside the weights as `dem_config.json`. Nothing that loads as a model is there before the
last byte is; an export that was killed goes on where it stopped.
"""

import shutil
from itertools import accumulate
from pathlib import Path

from dem_hub.files.atomic import write_text
from dem_hub.files.folders import MERGED
from dem_hub.files.names import MODEL_WEIGHT_FILES
from dem_hub.files.resumable import PartialFolder, partial_path, recorded_bytes, resumable_folder
from dem_hub.models.estimate import Estimate, check_room, estimate
from dem_hub.models.planned import PlannedModel, merging_bar


def export(model: PlannedModel, target: Path) -> None:
    """Write the merged model into a folder, which appears complete or not at all.

    An export that was killed goes on where it stopped, if it is called again with the same arguments.

    Args:
        model ([`PlannedModel`]): what to write.
        target (`Path`): the folder.

    Raises:
        `ConfigError`: a target that holds the base, a vector, or anything but an older export.
        `DiskSpaceError`: less is free there than it takes.
        `BusyError`: another process is writing the same folder.
        `CheckpointError`: NaN or inf in the base or after the merge.
    """
    model.opened.check_target(target, MERGED)
    check_room(model, target, model.nbytes)
    with resumable_folder(target, model.purpose, model.nbytes, model.last) as work:
        for name, file in model.copies.items():
            shutil.copyfile(file, work.folder / name)
        for name, text in model.texts(target).items():
            write_text(work.folder / name, text)
        _write_weights(model, work)  # whole with their last byte, or with the index of several files
        for name, text in model.index.items():
            write_text(work.folder / name, text)
        # Of an older export: with files of both, another model would load.
        for path in target.glob(MODEL_WEIGHT_FILES):
            path.unlink()


def estimate_export(model: PlannedModel, target: Path) -> Estimate:
    """What [`export`] will do, and nothing done yet; takes and raises what that does."""
    model.opened.check_target(target, MERGED)
    return estimate(model, target, model.nbytes, recorded_bytes(partial_path(target), model.purpose))


def _write_weights(model: PlannedModel, work: PartialFolder) -> None:
    """Write the shards, but for what is there already."""
    begins = [0, *accumulate(shard.nbytes for shard in model.shards)]
    placed = list(zip(model.shards, begins, strict=False))
    start = (
        work.written
        if all(shard.holds(work.folder / shard.name, work.written - before) for shard, before in placed)
        else 0
    )
    with merging_bar(model.nbytes, start) as bar:
        for shard, before in placed:
            there = min(max(0, start - before), shard.nbytes)
            for written in model.write(work.folder / shard.name, shard, there):
                bar.update(before + written - bar.n)
                work.record(before + written)
