"""`dem-hub list`: the vectors and LoRA adapters of a base that are on the Hub."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dem_hub.cli.arguments import json_option
from dem_hub.cli.command import command, option

if TYPE_CHECKING:
    from dem_hub.hub.listing import FoundVector

FILTERS = "Filters"


@command(
    "list",
    examples=["dem-hub list --base org/base", "dem-hub list --base org/base --author me --search maths --limit 10"],
)
@option("--base", required=True, group=FILTERS, metavar="REPO_ID", help="Hub id of the base.")
@option("--author", group=FILTERS, metavar="NAME", help="Only repositories of this user or organization.")
@option("--search", group=FILTERS, metavar="TEXT", help="Only repositories whose name contains this text.")
@option("--limit", type=int, group=FILTERS, help="Maximum number of repositories.")
@json_option
def list_command(*, base: str, author: str | None, search: str | None, limit: int | None, as_json: bool) -> None:
    """List vectors and LoRA adapters of a base on the Hub."""
    from dem_hub.cli.output import table
    from dem_hub.hub.listing import list_vectors

    vectors = list_vectors(base, author=author, search=search, limit=limit)
    if as_json:
        print(json.dumps([_vector_data(vector) for vector in vectors], indent=2))
    else:
        print(table(("vector", "kind", "downloads", "changed"), [_row(vector) for vector in vectors]))


def _vector_data(vector: "FoundVector") -> dict[str, Any]:
    """Return a vector as JSON data."""
    changed = vector.last_modified
    return {**asdict(vector), "last_modified": changed.isoformat() if changed else changed}


def _row(vector: "FoundVector") -> tuple[str, str, str, str]:
    """Return a vector as a line of the table."""
    changed = f"{vector.last_modified:%Y-%m-%d}" if vector.last_modified else ""
    return vector.repo_id, vector.kind, str(vector.downloads or 0), changed
