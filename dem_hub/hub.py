"""The only code that talks to the Hub, and the small file work around it.

Whatever is named (a base, a vector, a recipe) is resolved once, to a folder and a commit, and everything is read from there: two
reads of a branch can meet two commits. One `HfApi` carries our name and version.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub._version import __version__
from dem_hub.errors import VectorNotFoundError
from dem_hub.records import REPO_ID, VectorSource

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What is wanted of a repository of weights: safetensors and JSON, and what a tokenizer needs. Never pickles.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")
VECTOR_FILES = ("vector_config.json", "vector_model*", "adapter_config.json", "adapter_model.safetensors")
# What makes a folder usable by `AutoTokenizer` and `pipeline`, beside config.json and the weights.
SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class HubOptions:
    """How to reach the Hub, with the ecosystem's names."""

    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False


@dataclass(frozen=True)
class Resolved:
    """A source found: its folder on this machine, and its commit (`None` for a folder that was always here)."""

    source: VectorSource
    folder: Path
    commit: str | None


@cache
def hub_api() -> "HfApi":
    """The one client, which tells the Hub who we are."""
    from huggingface_hub import HfApi

    return HfApi(library_name="dem-hub", library_version=__version__)


def resolve(source: VectorSource, files: Iterable[str], options: HubOptions | None = None) -> Resolved:
    """Find a source on this machine or fetch it from the Hub.

    Args:
        source ([`VectorSource`]): a folder or a Hub id.
        files (`Iterable[str]`): glob patterns of what is wanted; nothing else is downloaded.
        options ([`HubOptions`], *optional*): token, cache and so on.

    Returns:
        [`Resolved`]: the folder (its subfolder, where one is named) and the commit it was read at.

    Raises:
        `VectorNotFoundError`: no such folder, and the name cannot be a Hub id.
        `huggingface_hub.errors.HfHubHTTPError`: whatever the Hub answers, untouched.
    """
    options = options or HubOptions()
    if source.is_local:
        folder = Path(source.repo_id) / source.subfolder
        if not folder.is_dir():
            raise VectorNotFoundError(f"'{source.repo_id}' has no subfolder '{source.subfolder}'.")
        return Resolved(source, folder, None)
    if not REPO_ID.fullmatch(source.repo_id):
        raise VectorNotFoundError(f"'{source.repo_id}' is not a folder here, and not a Hub id (namespace/name). Check the path.")
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    try:
        snapshot = Path(
            hub_api().snapshot_download(
                source.repo_id,
                revision=source.revision,
                cache_dir=options.cache_dir if options.cache_dir is None else Path(options.cache_dir),
                token=options.token,
                local_files_only=options.local_files_only,
                force_download=options.force_download,
                allow_patterns=[prefix + pattern for pattern in files],
            )
        )
    except Exception as error:
        error.add_note(f"'{source.repo_id}' is not a folder here, so it was looked for on the Hub.")
        raise
    return Resolved(source, snapshot / source.subfolder, snapshot.name)


def copy_side_files(source: VectorSource | Path, target: Path) -> None:
    """Copy a model's tokenizer, chat template and generation config into a folder."""
    folder = source if isinstance(source, Path) else resolve(source, SIDE_FILES).folder
    for name in SIDE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes its name only when the block ends well, and vanishes when it fails.

    Files that are already in `target` and are not written again stay; a folder that did not exist appears complete at once.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dem_hub.hub import atomic_folder
    >>> target = Path(tempfile.mkdtemp()) / "new"
    >>> with atomic_folder(target) as folder:
    ...     _ = (folder / "a.txt").write_text("whole")
    >>> (target / "a.txt").read_text()
    'whole'

    ```
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        partial.chmod(0o755)
        yield partial
        if target.is_dir():
            for path in sorted(partial.iterdir()):
                path.replace(target / path.name)
        else:
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
