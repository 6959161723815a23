"""Every notebook runs, offline and from the first cell to the last, and is kept without outputs."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from website.notebooks import cells_of, notebook_page, without_scratch
from website.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
PAGE = """# Title

```python
print("two")
```

<div class="output" markdown>

```text
one
two
```

</div>

<div class="output">
<table>
<tr></tr>
</table>
</div>

![An output of the notebook](small_1.png)

This page is `examples/notebooks/small.ipynb`.
"""


@pytest.mark.parametrize("notebook", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_notebook(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names: dict[str, Any] = {"__name__": notebook.stem}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), names)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["lora_mixing", "quick_start", "search"]


def test_outputs_as_markdown(tmp_path: Path) -> None:
    """Text, HTML without the blank lines that would end it, and pictures; a bar, which goes to stderr, is left out, and divides nothing."""
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": "50%"},
        {"output_type": "stream", "name": "stdout", "text": ["one\n"]},
        {"output_type": "stream", "name": "stderr", "text": "100%"},
        {"output_type": "stream", "name": "stdout", "text": "two\n"},
        {"output_type": "display_data", "data": {"text/html": "<table>\n\n<tr></tr>\n</table>\n", "text/plain": "2"}},
        {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ['print("two")'], "outputs": outputs},
    ]
    notebook = tmp_path / "small.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert notebook_page(notebook, tmp_path / "small.md", run=False) == PAGE
    assert (tmp_path / "small_1.png").read_bytes() == b"\0\0\0"


def test_temporary_folders_are_not_shown() -> None:
    """Where a notebook was run is nobody's business, and another run has other names."""
    text = "Search on /tmp/tmpab/tmp1_x9/base: /tmp/tmpab/tmp1_x9/up-vector, '/tmp/tmpab/tmp1_x9', /tmp/other"
    assert without_scratch(text, "/tmp/tmpab") == "Search on folder/base: folder/up-vector, 'folder', /tmp/other"
