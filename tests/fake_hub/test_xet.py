"""With Xet on, in a process of its own: the same operations go through `hf_xet`, and the bytes come back."""

import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi

from tests.fake_hub.server import Hub

SCRIPT = """
import os, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

folder, cache = Path("pushed"), Path("cache")
folder.mkdir()
files = {"a.safetensors": os.urandom(12 * 2**20), "README.md": b"---\\nlicense: mit\\n---\\n", "sub/b.json": b"{}"}
for name, data in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)

def check(**options):
    there = Path(snapshot_download("ann/x", cache_dir=cache, **options))
    assert {name: (there / name).read_bytes() for name in files} == files

api = HfApi()
api.create_repo("ann/x")
api.upload_folder(repo_id="ann/x", folder_path=folder)
check()

files["c.safetensors"] = files["a.safetensors"][: 6 * 2**20] + b"another end"
commit = api.create_commit("ann/x", [CommitOperationAdd("c.safetensors", files["c.safetensors"])], commit_message="Add c")
check(revision=commit.oid)

files["d.safetensors"] = os.urandom(100_000)
(folder / "d.safetensors").write_bytes(files["d.safetensors"])
request = api.upload_folder(repo_id="ann/x", folder_path=folder, create_pr=True, commit_message="Add d")
assert request.pr_revision == "refs/pr/1", request
check(revision="refs/pr/1")
api.merge_pull_request("ann/x", 1)
check()
"""


def test_xet(hub: Hub, tmp_path: Path) -> None:
    hub.use_xet(tmp_path / "cas")
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.requests("GET", "xet-write-token") and hub.requests("GET", "xet-read-token")
    assert hub.requests(origin="cdn") == [], "no byte went over plain HTTP"
    paths = HfApi().get_paths_info("ann/x", ["a.safetensors", "c.safetensors", "d.safetensors"])
    assert [(one.size, bool(one.xet_hash)) for one in paths] == [
        (12 * 2**20, True),
        (6 * 2**20 + 11, True),
        (100_000, True),
    ]
    stored = sum(
        path.stat().st_size for path in (tmp_path / "cas").rglob("xorbs/default.*") if path.suffix != ".tagset"
    )
    assert stored < 15 * 2**20, "what c has in common with a is stored once"


def test_a_hub_without_it_commits_nothing(hub: Hub, tmp_path: Path) -> None:
    script = "from huggingface_hub import *; create_repo('ann/x'); upload_file(path_or_fileobj=b'1', path_in_repo='a.safetensors', repo_id='ann/x')"
    environment = hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="0")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "xet-write-token" in done.stderr
    assert hub.files("ann/x") == {}
