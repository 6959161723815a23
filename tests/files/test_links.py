"""No link is followed out of a folder; links within it, and those of the Hub's cache to its own blobs, are."""

import os
from pathlib import Path

import pytest

from dem_hub.errors import ConfigError
from dem_hub.files.links import check_links, check_paths, leads_out

COMMIT, BLOB = "1" * 40, "ab" * 32


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("a key")
    return tmp_path / "secret"


def link(place: Path, target: str | Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


@pytest.mark.parametrize("kind", ["absolute", "relative", "twice", "broken", "a folder on the way"])
def test_out_of_the_folder(tmp_path: Path, secret: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    path = folder / "a.json"
    if kind == "absolute":
        link(path, secret)
    elif kind == "relative":
        link(path, "../secret")
    elif kind == "twice":
        link(link(folder / "b", secret).with_name("a.json"), "b")
    elif kind == "broken":
        link(path, tmp_path / "absent")
    else:
        link(folder / "sub", tmp_path)
        path = folder / "sub" / "secret"
    assert leads_out(path, folder)
    with pytest.raises(ConfigError, match="links that lead out of it, which are not followed"):
        check_paths([path], folder)


def test_all_are_listed_and_only_what_is_wanted(tmp_path: Path, secret: Path) -> None:
    for name in ("a.json", "b.json", "notes.md"):
        link(tmp_path / "folder" / name, secret)
    with pytest.raises(ConfigError, match=rf"'a.json' leads to '{secret}'\n  - 'b.json'") as caught:
        check_links(tmp_path / "folder", ["*.json"])
    assert "notes.md" not in str(caught.value)


def test_within_the_folder_and_a_folder_named_by_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    link(folder / "b.json", "a.json")
    link(folder / "sub" / "c.json", "../a.json")
    check_links(link(tmp_path / "latest", folder), ["*"])
    check_links(folder / "sub", ["*"], folder)
    with pytest.raises(ConfigError):
        check_links(folder / "sub", ["*"])


def cache(root: Path, blob: str = BLOB) -> Path:
    """A repository of the Hub's cache with one snapshot of one file in a subfolder."""
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / blob).write_text("{}")
    return link(root / "snapshots" / COMMIT / "sub" / "a.json", f"../../../blobs/{blob}")


def test_the_cache(tmp_path: Path, secret: Path) -> None:
    path = cache(tmp_path / "models--org--base")
    check_links(path.parent, ["*"])
    check_links(path.parent, ["*"], path.parent.parent)
    assert not leads_out(
        link(tmp_path / "cache", path.parents[3]) / "snapshots" / COMMIT / "sub" / "a.json", path.parent
    )


def test_what_only_looks_like_the_cache(tmp_path: Path, secret: Path) -> None:
    no_hash = cache(tmp_path / "a", "id_rsa")
    onward = cache(tmp_path / "b")
    blob = tmp_path / "b" / "blobs" / BLOB
    blob.unlink()
    blob.symlink_to(secret)
    other = link(tmp_path / "c" / "snapshots" / COMMIT / "a.json", tmp_path / "a" / "blobs" / BLOB)
    for path in (no_hash, onward, other):
        with pytest.raises(ConfigError):
            check_links(path.parent, ["*"])


def test_not_on_the_way_up(tmp_path: Path) -> None:
    """`..` in the caller's own name of a folder is no link."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text("{}")
    check_paths([Path(os.path.relpath(tmp_path / "folder" / "a.json"))], Path(os.path.relpath(tmp_path / "folder")))
