"""Names that leave their folder, or that no file can have, are refused."""

import pytest

from dem_hub.errors import ConfigError
from dem_hub.files.foreign_names import check_inside


@pytest.mark.parametrize("name", ["a", "a/b.json", "a..b", "a/b:c"])
def test_names_inside(name: str) -> None:
    check_inside(name, "file")


@pytest.mark.parametrize("name", ["/a", "..", "a/../b", "a\\b", "C:/a", "hf://a"])
def test_names_outside(name: str) -> None:
    with pytest.raises(ConfigError, match="The file is '.*'; names must be relative"):
        check_inside(name, "file")


def test_what_is_no_name() -> None:
    with pytest.raises(ConfigError, match="The file is 3, which is not a name"):
        check_inside(3, "file")  # type: ignore[arg-type]
