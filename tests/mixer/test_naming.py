"""What a page calls things, and what it never shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dem_hub.errors import ConfigError
from dem_hub.mixer.naming import check_recipe_name, parse_hub_id, public_text

PARTS = st.text("abc-_.1", min_size=1).filter(lambda part: set(part) - {"."})


@given(
    st.lists(PARTS, min_size=2, max_size=5), st.sampled_from(["'{}' is gone", "no {}, sorry", "({})", "a\n{}", "{}"])
)
def test_of_a_path_only_the_last_part_is_shown(parts: list[str], message: str) -> None:
    for path in ("/" + "/".join(parts), "C:\\" + "\\".join(parts), "~/" + "/".join(parts)):
        shown = public_text(message.format(path))
        assert shown == message.format(parts[-1])


@pytest.mark.parametrize(
    "message",
    [
        "me/maths-vector has no file",
        "https://huggingface.co/me/maths/commit/1",
        "me/vectors//maths, 3/4 of it",
        "ratio 1 / 2",
        "../beside",
    ],
)
def test_what_is_no_path_of_this_machine_stays(message: str) -> None:
    assert public_text(message) == message


def test_paths_with_spaces_in_quotes_and_tokens() -> None:
    assert public_text("'/home/a b/c d' or \"/x/y z\"") == "'c d' or \"y z\""
    assert public_text("Bearer hf_AbC123 and api_org_x1") == "Bearer hf_... and api_org_..."


@pytest.mark.parametrize(
    "text",
    ["", "maths", "/etc/passwd", "../me/maths", "~/maths", "me/maths/x", "me/maths//../up", "C:\\maths", "me/.."],
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_hub_id(text)


def test_an_id_is_a_repository_whatever_folders_there_are(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me" / "maths").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = parse_hub_id(" me/maths@v2//sub/folder ")
    assert (str(source.repo_id), source.revision, source.subfolder) == ("me/maths", "v2", "sub/folder")
    assert source.is_repository


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a b", "x" * 81, "/tmp/x", "-o"])
def test_what_is_no_name_of_a_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a recipe"):
        check_recipe_name(name)


def test_a_name_of_a_recipe() -> None:
    assert check_recipe_name(" my-mix_1.0 ") == "my-mix_1.0"
