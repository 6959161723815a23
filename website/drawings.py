"""Drawings in Mermaid, without a server that a browser would fetch Mermaid from.

Mermaid is a script of three megabytes. Zensical's page takes it from a server on the internet where it is not there
yet. So npm fetches it when the site is built, its hash is checked, and only the pages that have a drawing load it.
Without npm, or a network, a drawing is shown as its text.
"""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

_VERSION = "12.3.0"
_SHA256 = "336df803d87a38b70a01e736e666c8f7601d2ce42f5e47c8fafe5d721074b9a3"  # of the script
_SCRIPT = "javascripts/mermaid.min.js"
_FENCE = "```mermaid"


def with_mermaid(text: str, folder: Path) -> str:
    """Return a page with what its drawings need."""
    if _FENCE not in text:
        return text
    script = _fetched()
    if script is None:
        return text.replace(_FENCE, "```text")
    target = folder / _SCRIPT
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(script)
    return f'{text}\n<script src="../{_SCRIPT}"></script>\n'


@cache
def _fetched() -> bytes | None:
    """Return the script, or nothing where npm does not have it."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run([npm, "pack", "--silent", f"mermaid@{_VERSION}"], cwd=folder, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if packed.returncode or not archives:
            return None
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile("package/dist/mermaid.min.js")
            script = member.read() if member else b""
    found = hashlib.sha256(script).hexdigest()
    if found != _SHA256:
        raise ValueError(f"mermaid {_VERSION} has the hash {found} and not {_SHA256} (website/drawings.py).")
    return script
