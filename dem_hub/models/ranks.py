"""The processes of `torchrun`, which write one export together: each writes some of the files of weights.

Process 0 makes the folder, which all of them must see, and completes it. An error of one process ends all of them. What
each process writes depends on the recipe alone, so the files are those that one process would write.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dem_hub.checkpoints.writer import Shard
from dem_hub.errors import ConfigError, DemHubError
from dem_hub.files.resumable import partial_path
from dem_hub.hub.growing_digest import GrowingDigest
from dem_hub.models.export import complete, export_folder
from dem_hub.models.planned import PlannedModel, merging_bar

_Result = TypeVar("_Result")


def export_by_ranks(model: PlannedModel, target: Path) -> None:
    """Write a merged model as [`export`] does, as one of the processes of `torchrun`. All of them must call this.

    An export that was interrupted begins anew.

    Args:
        model ([`PlannedModel`]): The model, the same in each process.
        target (`Path`): The folder, on a file system that all processes see.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `torchrun` did not start this process, the processes have different models,
            or they do not see one folder.
        [`~dem_hub.errors.DemHubError`]: What [`export`] raises, in the process that meets it; in the others, that one
            failed.
    """
    ranks = _Ranks.join()
    work = partial_path(target)
    with ExitStack() as stack:
        # A journal says how far one process came. The folder of several has none, so its purpose is another.
        purpose = f"{model.purpose} by {ranks.count} ranks"

        def begin() -> str:
            if ranks.number == 0:
                stack.enter_context(export_folder(model, target, purpose))
            return model.purpose

        def write() -> dict[str, str]:
            return _write(model, work, model.shards[ranks.number :: ranks.count], is_shown=ranks.number == 0)

        def end() -> None:
            if ranks.number == 0:
                _check_whole(model, work)
                hashes = {name: sha256 for part in parts for name, sha256 in part.items()}
                complete(model, work, hashes)
                stack.close()

        purposes = ranks.each(begin)
        if len(set(purposes)) > 1:
            raise ConfigError(
                f"The {ranks.count} processes do not write one model: they have different recipes, files, options or "
                "versions of dem_hub, torch or numba. Give all machines the same."
            )
        parts = ranks.each(write)
        ranks.each(end)


def _check_whole(model: PlannedModel, folder: Path) -> None:
    """Refuse a folder that lacks what another process has written: it wrote into a folder of its own."""
    lacking = [shard.name for shard in model.shards if not shard.holds(folder / shard.name, shard.nbytes)]
    if lacking:
        raise ConfigError(
            f"'{folder}' lacks {len(lacking)} of {len(model.shards)} files of weights, such as '{lacking[0]}', which "
            "another process has written. Give a folder that all machines see."
        )


def _write(model: PlannedModel, folder: Path, shards: Sequence[Shard], *, is_shown: bool) -> dict[str, str]:
    """Write some files of the weights, with a bar if it is to be shown, and return their sha256."""
    hashes = {}
    with merging_bar(sum(shard.nbytes for shard in shards)) as bar, ThreadPoolExecutor(max_workers=1) as pool:
        if not is_shown:
            bar.disable = True
        for shard in shards:
            file = folder / shard.name
            growing = GrowingDigest(pool, file, shard.header)
            done = 0
            for written in growing.follow(model.write(file, shard)):
                bar.update(written - done)
                done = written
            hashes[shard.name] = growing
    return {name: growing.hexdigest() for name, growing in hashes.items()}


@dataclass(frozen=True)
class _Ranks:
    """This process among those of `torchrun`."""

    number: int
    count: int
    group: Any

    @classmethod
    def join(cls) -> "_Ranks":
        """Meet the other processes. They exchange objects on the CPU, whatever else they use."""
        if not torch.distributed.is_available() or "RANK" not in os.environ:
            raise ConfigError(
                "This process was not started by torchrun. Run `torchrun --nnodes=8 -m dem_hub.cli merge ... "
                "--by-ranks`, or leave --by-ranks out, and one process writes all files."
            )
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        group = torch.distributed.new_group(backend="gloo")
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), group)

    def each(self, step: Callable[[], _Result]) -> list[_Result]:
        """Take a step in each process, and return the results of all, in their order.

        Raises:
            The error of the step in this process; `DemHubError` if it failed in another.
        """
        result = None
        error: Exception | None = None
        try:
            result = step()
        except Exception as raised:  # noqa: BLE001  raised below, when the others know
            error = raised
        mine = (result, None if error is None else str(error))
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, mine, group=self.group)
        if error is not None:
            raise error
        for number, (_, fault) in enumerate(found):
            if fault is not None:
                raise DemHubError(f"Process {number} of {self.count} failed: {fault}")
        return [each for each, _ in found]
