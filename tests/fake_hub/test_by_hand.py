"""The Hub that a person starts."""

import os
import re
import subprocess
import sys
from pathlib import Path


def test_by_hand(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_hub", "--port", "0"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout
        lines = [server.stdout.readline() for _ in range(4)]
        code = "import huggingface_hub as h; h.create_repo('x'); print(h.upload_file(path_or_fileobj=b'1', path_in_repo='a', repo_id='ann/x').oid)"
        script = f'{"".join(lines)}\n{sys.executable} -c "{code}"'
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        done = subprocess.run(
            ["sh", "-c", script], env={**clean, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        assert re.fullmatch("[0-9a-f]{40}", done.stdout.strip())
    finally:
        server.terminate()
        server.communicate()
