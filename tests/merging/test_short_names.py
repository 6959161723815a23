"""Short names of vectors: shown where unique, accepted where clear."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dem_hub.errors import CoefficientError
from dem_hub.merging.short_names import full_names, short_names

PARTS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)


@given(st.lists(PARTS.map(lambda name: f"/nowhere/{name}"), min_size=1, max_size=5, unique=True))
def test_what_is_shown_is_accepted(names: list[str]) -> None:
    """A short name that is the end of another vector's name, too, is refused and not guessed."""
    for name, short in zip(names, short_names(names), strict=True):
        ends = [other for other in names if f"/{other}".endswith(f"/{short}")]
        if ends == [name]:
            assert full_names([short], names, "this recipe") == {short: name}
        else:
            with pytest.raises(CoefficientError, match="Name more of it"):
                full_names([short], names, "this recipe")


def test_a_folder_is_not_taken_for_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_names(["maths"], ["me/maths"], "this recipe") == {"maths": "me/maths"}
    (tmp_path / "maths").mkdir()
    with pytest.raises(CoefficientError, match=rf"is called '{tmp_path}/maths'; it has 'me/maths'"):
        full_names(["maths"], ["me/maths"], "this recipe")


def test_all_faults_are_told() -> None:
    with pytest.raises(CoefficientError) as caught:
        full_names(["chat", "a", "me/a", "c"], ["me/a", "me/b", "x/c", "y/c"], "this recipe")
    text = str(caught.value)
    assert "'me/a' is 'me/a', which is named twice" in text
    assert "'c' is the end of 'x/c', 'y/c'" in text
    assert "No vector of this recipe is called 'chat'; it has 'me/a', 'me/b', 'x/c', 'y/c'." in text
