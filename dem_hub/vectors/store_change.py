"""Changes of a store of vectors: one process makes one at a time, and what a killed one began is finished.

A change is written down before the first file of its vector takes its place, and deleted once the index has it. So a
store and its index agree for whoever opens it, whenever its last writer was killed.
"""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dem_hub.errors import BusyError, DemHubError
from dem_hub.files.atomic import write_text
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.locks import locked
from dem_hub.files.names import STORE_CHANGE
from dem_hub.files.partial import new_name, remove_leftovers
from dem_hub.files.strict_json import dump_json, read_json, read_record
from dem_hub.hub.download import Resolved
from dem_hub.vectors.store_index import Member, StoreIndex
from dem_hub.vectors.vector import DistributionVector


@dataclass(frozen=True)
class StoreChange:
    """A change of a store that is being made: the vector's name, and its new entry; `None` if it is removed.

    It is in a file of the store's folder as long as it is being made.
    """

    name: str
    member: Member | None

    @classmethod
    def read(cls, folder: Path) -> "StoreChange | None":
        """Read the change that is being made to a store; `None` if there is none.

        Raises:
            `ConfigError`: If the file is damaged.
        """
        path = folder / STORE_CHANGE
        try:
            data = read_json(path)
        except FileNotFoundError:
            return None
        if data.get("member") is not None:
            data["member"] = read_record(Member, data["member"], str(path))
        change = read_record(cls, data, str(path))
        check_inside(change.name, f"vector named in {path}")
        return change

    def write(self, folder: Path) -> None:
        """Write the change down."""
        write_text(folder / STORE_CHANGE, dump_json(asdict(self)))


@contextmanager
def store_at_rest(folder: Path) -> Iterator[StoreIndex]:
    """Give the index of a store while nobody changes it. A store that may only be read is given as it is."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder.resolve()))
            index = finish_change(folder)
        except BusyError:
            raise
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            index = StoreIndex.read(folder)
        yield index


def finish_change(folder: Path) -> StoreIndex:
    """Finish the change that is being made to a store, and return its index. The caller holds the store's lock."""
    index = StoreIndex.read(folder)
    change = StoreChange.read(folder)
    if change is None:
        return index
    members = dict(index.members)
    place = folder / change.name
    if change.member is None:
        members.pop(change.name, None)
    elif _identity(place) == change.member.sha256:
        members[change.name] = change.member
    # Otherwise the process was killed before the vector's files took their place.
    if members != index.members:
        index = replace(index, members=members)
        index.write(folder)
    if change.member is None:
        with locked(place):
            if place.is_dir():
                # In one step, so that whoever looks sees all of the vector or nothing.
                place.replace(new_name(place))
            remove_leftovers(place)
    (folder / STORE_CHANGE).unlink()
    return index


def _identity(folder: Path) -> str:
    """Return the sha256 of the vector in a folder; empty if there is none."""
    try:
        return DistributionVector(Resolved.local(folder), verify=False).sha256
    except (DemHubError, OSError):
        return ""
