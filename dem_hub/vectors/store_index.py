"""`vector_store.json`: the index of a store, with the base that its vectors share and the identity of each vector.

The index is small and is all that is downloaded when a store is opened. Like every config it refuses keys that it
does not know.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.files.atomic import write_text
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.names import STORE_CONFIG
from dem_hub.files.strict_json import (
    FORMAT_VERSION,
    as_mapping,
    check_version,
    dump_json,
    parse_json,
    read_json,
    read_record,
)
from dem_hub.hub.references import BaseRecord


@dataclass(frozen=True)
class Member:
    """The entry of one vector in the index: its identity (sha256, 64 hex digits), its codec, and the bytes of its
    tensor files.
    """

    sha256: str
    codec: str
    nbytes: int


@dataclass(frozen=True)
class StoreIndex:
    """The content of `vector_store.json`: the base, and the entry of each vector by name."""

    base: BaseRecord
    members: Mapping[str, Member] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "StoreIndex":
        """Read the index of a store's folder.

        Raises:
            `NotFoundError`: If the folder has no index.
            `ConfigError`: If the index is damaged, or of a newer version.
        """
        path = folder / STORE_CONFIG
        if not path.is_file():
            raise NotFoundError(
                f"'{folder}' is not a store of vectors: it has no {STORE_CONFIG}. VectorStore.create(...) makes one."
            )
        return cls._from_data(read_json(path), str(path))

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "StoreIndex":
        """Read the text of an index.

        Args:
            text (`str` or `bytes`): The text of the file.
            where (`str`): Name of the file, for error messages.

        Raises:
            `ConfigError`: If a key is unknown or missing, or the format version is newer than this library.
        """
        return cls._from_data(parse_json(text, where), where)

    @classmethod
    def _from_data(cls, data: Mapping[str, Any], where: str) -> "StoreIndex":
        check_version(data, where)
        unknown = sorted(set(data) - {"format_version", "base", "vectors"})
        if unknown:
            raise ConfigError(
                f"{where} has unknown keys {', '.join(map(repr, unknown))}; format version {FORMAT_VERSION} has "
                "base and vectors."
            )
        members = {}
        for name, entry in as_mapping(data.get("vectors"), f"{where}: vectors").items():
            check_inside(name, f"vector named in {where}")
            members[name] = read_record(Member, entry, f"{where}: vector '{name}'")
        return cls(read_record(BaseRecord, data.get("base"), f"{where}: base"), members)

    def to_json(self) -> str:
        """Return the text of the file. Keys are sorted, so that the same index has the same bytes."""
        vectors = {name: asdict(member) for name, member in self.members.items()}
        return dump_json({"format_version": FORMAT_VERSION, "base": asdict(self.base), "vectors": vectors})

    def write(self, folder: Path) -> None:
        """Write the index into a store's folder. The file is replaced in one step."""
        write_text(folder / STORE_CONFIG, self.to_json())
