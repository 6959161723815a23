"""`dem-hub push`, and what `dem-hub list` and `dem-hub info` show of it afterwards. `tests/hub/test_commits.py` has more of `push`."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from dem_hub.cli.app import main
from tests.cli.running import run
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models


def test_push_list_and_info_on_the_hub(
    hub: Hub, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo("org/base")
    HfApi().upload_folder(repo_id="org/base", folder_path=llama.base)
    run(capsys, "extract", "org/base", llama.low, "-o", tmp_path / "vector", "--codec", "lowrank", "--rank", "3")
    assert run(capsys, "push", tmp_path / "vector", "ann/maths", "--commit-message", "Maths").startswith(
        f"{hub.endpoint}/ann/maths/commit/"
    )
    assert "/discussions/1" in run(
        capsys, "push", tmp_path / "vector", "ann/maths", "--create-pr", "--subfolder", "again"
    )
    lines = run(capsys, "list", "--base", "org/base").splitlines()
    assert (lines[0].split(), lines[1].split()[:2]) == (
        ["vector", "kind", "downloads", "changed"],
        ["ann/maths", "vector"],
    )
    assert [found["kind"] for found in json.loads(run(capsys, "list", "--base", "org/base", "--json"))] == ["vector"]

    def numbers(text: str) -> list[str]:
        return [
            line for line in text.splitlines()[1:] if "lowrank dtype" not in line
        ]  # the size of the file has its header in it

    hub.forget_requests()
    remote = run(capsys, "info", "ann/maths")
    assert numbers(remote) == numbers(run(capsys, "info", tmp_path / "vector"))
    assert all("range" in seen.headers for seen in hub.requests("GET", r"/resolve/.*safetensors")), (
        "only headers come down"
    )
    assert main(["push", str(llama.base), "ann/x"]) == 2
    assert "no vector, store, recipe or merged model" in capsys.readouterr().err
