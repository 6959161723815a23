"""Notebooks as pages: run, and written as Markdown with their outputs.

In the repository they have no outputs, so that a change of one shows what changed. The tests run their cells too.
"""

import base64
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

_PROGRESS = "stderr"  # bars, which were overwritten again and again
_PATIENCE = 600  # seconds for a cell: each takes a few, but a busy machine has been seen to take minutes


def notebook_page(notebook: Path, page: Path, *, run: bool) -> str:
    """Return a notebook as the text of `page`, beside which the pictures of its outputs are written."""
    cells = _run(notebook) if run else cells_of(notebook)
    parts = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            parts += [_shown(output, page, number) for output in _joined(cell["outputs"])]
    return "\n\n".join(parts) + f"\n\nThis page is `examples/notebooks/{notebook.name}`.\n"


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook, in order."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text("utf-8"))["cells"]
    return cells


def _run(notebook: Path) -> list[dict[str, Any]]:
    """Return the cells after a run in a Jupyter kernel."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        # Tiny tensors are faster on one thread.
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": scratch}
        NotebookClient(content, timeout=_PATIENCE, kernel_name="python3").execute(env=settings)
    cells: list[dict[str, Any]] = json.loads(without_scratch(nbformat.writes(content), scratch))["cells"]
    return cells


def without_scratch(text: str, scratch: str) -> str:
    """Return a text in which a notebook's temporary folder has the name of its variable, `folder`."""
    return re.sub(rf"{re.escape(scratch)}/\w+", "folder", text)


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outputs without bars, and what was printed around a bar as one."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == _PROGRESS:
            continue
        if joined and output["output_type"] == joined[-1]["output_type"] == "stream":
            joined[-1] = {**output, "text": "".join([*joined[-1]["text"], *output["text"]])}
        else:
            joined.append(output)
    return joined


def _shown(output: dict[str, Any], page: Path, number: int) -> str:
    """Return one output as Markdown: a picture, HTML, or text."""
    if output["output_type"] == "stream":
        return _text(output["text"])
    data = output.get("data", {})
    if "image/png" in data:
        picture = page.with_name(f"{page.stem}_{number}.png")
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![An output of the notebook]({picture.name})"
    if "text/html" in data:
        # A blank line would end a block of HTML in Markdown.
        html = re.sub(r"\n\s*\n", "\n", "".join(data["text/html"])).strip()
        return f'<div class="output">\n{html}\n</div>'
    return _text(data.get("text/plain", ""))


def _text(text: Any) -> str:
    return f'<div class="output" markdown>\n\n```text\n{"".join(text).rstrip()}\n```\n\n</div>'
