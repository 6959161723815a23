"""A value that was refused is shown on one line, and short, whatever it is."""

import pytest

from dem_hub.files.shown import shown, shown_list


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", r"'a\nb'"),
        ("a" * 100, "'" + "a" * 59 + "..."),
        ((1 << 64) - 1, "18446744073709551615"),
        (1 << 64, "a number of 65 bits"),
        (-(1 << 64), "a number of 65 bits"),
        # Python itself refuses to print more than 4300 digits.
        pytest.param(10**5000, "a number of 16610 bits", id="5001 digits"),
        (True, "True"),
        (None, "None"),
    ],
)
def test_one_value(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("count", "end"), [(0, "none"), (1, "0"), (10, ", 8, 9"), (11, ", 8, 9 and 1 others"), (12, ", 9 and 2 others")]
)
def test_many_values(count: int, end: str) -> None:
    assert shown_list(range(count)).endswith(end)
