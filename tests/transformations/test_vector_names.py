"""The vectors of a transformation: what is not several vectors, each once, is refused before anything is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.transformations import dare, gather_statistics, regmean, ties

TRANSFORMATIONS = [dare, gather_statistics, regmean, ties]


@pytest.mark.parametrize("transform", TRANSFORMATIONS)
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "There are no vectors"),
        ({}, "There are no vectors"),
        ("me/maths", r"vectors is 'me/maths', one name. Give a list of names: \['me/maths'\]"),
        (Path("me/maths"), "vectors is 'me/maths', one name"),
        (["me/maths", "me/chat", "me/maths"], "Vectors named twice: me/maths"),
    ],
)
def test_refused(transform: Callable[..., Any], vectors: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transform("org/base", vectors)


@pytest.mark.parametrize("transform", [dare, ties])
def test_one_folder_by_two_names_is_refused(transform: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Vectors named twice: {tmp_path}"):
        transform("org/base", [str(tmp_path), f"{tmp_path}/."])


@pytest.mark.parametrize("transform", [gather_statistics, regmean])
def test_names_without_data_are_refused_where_each_may_have_some(transform: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="vectors is a list. Give data of each vector, or None.*'me/maths'"):
        transform("org/base", ["me/maths", "me/chat"])
