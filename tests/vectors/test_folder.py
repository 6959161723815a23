"""The folder of a vector is replaced as a whole: no file of the older vector stays, and everything else in the folder does."""

from pathlib import Path

import pytest

from dem_hub.vectors.folder import place_file, replaced_folder


def write(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_an_older_vector_go_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "vector"
    write(target, "vector_config.json", "vector_model.safetensors", "adapter_config.json", "README.md", "notes.txt")
    with replaced_folder(target) as folder:
        (folder / "vector_config.json").write_text("new")
        (folder / "vector_model-00001-of-00002.safetensors").write_text("new")
    assert names_in(target) == [
        "README.md",
        "notes.txt",
        "vector_config.json",
        "vector_model-00001-of-00002.safetensors",
    ]
    assert (target / "vector_config.json").read_text() == "new"
    assert (target / "notes.txt").read_text() == "notes.txt"


def test_an_error_leaves_the_older_vector_whole(tmp_path: Path) -> None:
    target = tmp_path / "vector"
    write(target, "vector_config.json", "vector_model.safetensors")
    with pytest.raises(OSError, match="full"), replaced_folder(target) as folder:
        (folder / "vector_config.json").write_text("new")
        raise OSError("the disk is full")
    assert names_in(target) == ["vector_config.json", "vector_model.safetensors"]
    assert (target / "vector_config.json").read_text() == "vector_config.json"
    assert names_in(tmp_path) == ["vector"]


@pytest.mark.parametrize("link", [True, False])
def test_place_file(tmp_path: Path, link: bool) -> None:
    write(tmp_path, "a")
    place_file(tmp_path / "a", tmp_path / "b", link=link)
    assert (tmp_path / "b").read_text() == "a"
    assert (tmp_path / "a").samefile(tmp_path / "b") == link


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    write(tmp_path, "a")
    place_file(tmp_path / "a", tmp_path / "b", link=True)
    assert (tmp_path / "b").read_text() == "a"
    assert not (tmp_path / "a").samefile(tmp_path / "b")
