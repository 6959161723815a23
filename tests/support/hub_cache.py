"""Files in a cache, laid out as the Hub's client does it."""

from pathlib import Path


def cached(folder: Path, name: str, content: bytes = b"contents") -> Path:
    """Make a repository with one file, whose blob has this name, and return the link to the blob."""
    repo = folder / "models--org--base"
    for part in ("blobs", "snapshots/0"):
        (repo / part).mkdir(parents=True, exist_ok=True)
    (repo / "blobs" / name).write_bytes(content)
    path = repo / "snapshots" / "0" / "file"
    path.symlink_to(f"../../blobs/{name}")
    return path
