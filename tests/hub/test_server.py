"""The tests' Hub itself, by the unmodified client: every call that the library makes, and what each fault does to that client."""

import os
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from hub.server import Hub


def test_round_trip(hub: Hub, tmp_path: Path) -> None:
    api = HfApi()
    assert api.create_repo("ann/x").repo_id == "ann/x"
    files = {"a.safetensors": os.urandom(12 * 2**20), "README.md": b"---\nlibrary_name: dem-hub\nbase_model: org/base\n---\nhi"}
    folder = tmp_path / "pushed"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    api.upload_folder(repo_id="ann/x", folder_path=folder)
    assert hub.files("ann/x") == files
    assert {name: Path(hf_hub_download("ann/x", name)).read_bytes() for name in files} == files
    assert [model.id for model in api.list_models(filter=["dem-hub", "base_model:org/base"])] == ["ann/x"]
