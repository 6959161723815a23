import pytest

from dem_hub.errors import ConfigError
from dem_hub.files.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [(12, 12), ("12", 12), ("5GB", 5 * 10**9), ("1.5 kb", 1500), ("7B", 7), ("many", None)],
    ids=str,
)
def test_parse_size(size: int | str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="for instance '5GB'"):
            parse_size(size)
    else:
        assert parse_size(size) == expected


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (2_340_000_000, "2.34 GB"),
        (10**12, "1000.00 GB"),
    ],
)
def test_format_size(nbytes: int, expected: str) -> None:
    assert format_size(nbytes) == expected
