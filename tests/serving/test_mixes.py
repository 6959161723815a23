"""Names of mixes: what is read from a request, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dem_hub.errors import ConfigError
from dem_hub.serving.mixes import SHORT_NAME, Mix

NAMES = st.from_regex(SHORT_NAME, fullmatch=True)
NUMBERS = st.floats(-1e3, 1e3).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=6))
def test_what_is_written_is_read_again(coefficients: dict[str, float]) -> None:
    """One mix has one name, in whatever order its vectors are given, and that name is read as the same mix."""
    used = {name: value for name, value in coefficients.items() if value}
    texts = [f"{name}={value!r}" for name, value in coefficients.items()]
    if not used:
        with pytest.raises(ConfigError, match="are 0"):
            Mix.parse("+".join(texts))
        return
    mix = Mix.parse("dem:" + "+".join(texts))
    assert dict(mix.coefficients) == used
    assert mix == Mix.parse("+".join(reversed(texts))) == Mix.parse(str(mix))


@pytest.mark.parametrize(
    ("text", "coefficients"),
    [
        ("dem:maths=0.4+chat=0.3", {"maths": 0.4, "chat": 0.3}),
        ("dem:maths=1+chat=-.5+code=2.", {"maths": 1.0, "chat": -0.5, "code": 2.0}),
        ("dem:a=1e-2+b=0", {"a": 0.01}),
    ],
)
def test_numbers(text: str, coefficients: dict[str, float]) -> None:
    assert dict(Mix.parse(text).coefficients) == coefficients


@pytest.mark.parametrize(
    "text",
    [
        "dem:", "dem:maths", "dem:maths=", "dem:=1", "dem:maths=0.4+", "dem:maths=nan", "dem:maths=inf", "dem:maths=1e+3",
        "dem:maths=1e999", "dem:maths=0x1", "dem:maths=1_0", "dem:maths=\u0661", "dem:maths= 1", "dem:maths=1\n",
        "dem:../maths=1", "dem:me/maths=1", "dem:/tmp/maths=1", "dem:maths@main=1", "dem:m a=1", "dem:.hidden=1",
        "dem:maths=1+maths=2", "dem:maths=0", "dem:maths=" + "1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mix.parse(text)
    assert len(str(caught.value)) < 400
