"""The list of what a server may mix."""

import json
from pathlib import Path
from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.serving.mixes import Mix
from dem_hub.serving.permitted import Permitted


def write(folder: Path, **data: Any) -> Path:
    (folder / "mixes.json").write_text(json.dumps(data))
    return folder / "mixes.json"


def test_short_names_stand_for_vectors(tmp_path: Path) -> None:
    permitted = Permitted.read(write(tmp_path, vectors={"maths": "me/maths@v2//x", "chat": "me/chat"}, max_rank=64))
    assert permitted.sources(Mix.parse("chat=0.3+maths=0.4")) == {"me/chat": 0.3, "me/maths@v2//x": 0.4}
    assert (permitted.max_rank, permitted.max_mixes) == (64, 256)


@pytest.mark.parametrize("name", ["code", "me", "Maths"])
def test_a_name_that_is_not_listed_is_refused(name: str) -> None:
    permitted = Permitted({"maths": "me/maths", "chat": "me/chat"})
    with pytest.raises(ConfigError) as caught:
        permitted.sources(Mix.parse(f"maths=1+{name}=1"))
    assert str(caught.value) == f"This server has no vectors '{name}'; a mix may have chat, maths."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "lists neither vectors nor recipes"),
        ({"vectors": {"a/b": "me/maths"}}, "'a/b' cannot be names of vectors"),
        ({"vectors": {"a+b": "me/maths"}}, r"'a\+b' cannot be names of vectors"),
        ({"vectors": {"a": "me/maths", "b": "me/maths"}}, "'a', 'b' stand for the same vector"),
        ({"vectors": {"a": 1}}, "which is not an object of texts"),
        ({"vectors": {"a": "me/maths"}, "rank": 4}, "unknown key 'rank'"),
        ({"vectors": {"a": "me/maths"}, "max_rank": 0}, "max_rank is 0"),
        ({"vectors": {"a": "me/maths"}, "max_mixes": 0}, "max_mixes 0"),
        ({"vectors": {"a": "me/maths"}, "max_error": -1.0}, "max_error -1.0"),
        ({"vectors": {"a": "me/maths"}, "format_version": 2}, "format_version 2"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Permitted.read(write(tmp_path, **data))
    assert "mixes.json" in str(caught.value)


def test_a_list_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DEM_HUB_MIXES is '.*absent.json', which cannot be read"):
        Permitted.read(tmp_path / "absent.json")
