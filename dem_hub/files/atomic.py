"""Files and folders that appear complete or not at all: they are written under another name, and then renamed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a small file, complete or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the name `target` when the block ends without an error, and is deleted otherwise.

    If `target` exists, its files are replaced one by one, and those that are not written again stay. If it does
    not, it appears complete at once.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dem_hub.files.atomic import atomic_folder
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
        # `mkdtemp` makes a folder that only its owner can read. The result should be readable by others, as with
        # `mkdir`.
        partial.chmod(0o755)
        yield partial
        if target.is_dir():
            for path in sorted(partial.iterdir()):
                path.replace(target / path.name)
        else:
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
