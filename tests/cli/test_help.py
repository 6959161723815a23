"""Every `--help` is what `help.txt` has. After a change that is meant: python -m tests.cli.test_help"""

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from dem_hub.cli.app import NAME, app, main
from dem_hub.codecs.listing import OFFERED
from dem_hub.search.strategies import STRATEGIES
from tests.cli.running import parameters_of

SNAPSHOT = Path(__file__).with_name("help.txt")


def help_of(*arguments: str, width: int = 80) -> str:
    text = io.StringIO()
    with patch.dict(os.environ, COLUMNS=str(width)), redirect_stdout(text), pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0
    return text.getvalue()


def all_helps() -> str:
    commands = [(), *((name,) for name in app.commands)]
    return "\n".join(f"$ {' '.join([NAME, *words, '--help'])}\n{help_of(*words)}" for words in commands)


def test_every_help() -> None:
    assert all_helps() == SNAPSHOT.read_text("utf-8"), "If it is meant: python -m tests.cli.test_help"


@pytest.mark.parametrize("name", app.commands)
def test_a_help_is_plain_whole_sentences_and_has_examples(name: str) -> None:
    text = help_of(name)
    assert "\x1b" not in text
    assert f"\nExamples:\n  dem-hub {name}" in text
    for parameter in parameters_of(name):
        assert parameter.help, f"{parameter.name} has no help."  # type: ignore[attr-defined]
        assert parameter.help.endswith("."), f"The help of {parameter.name} is no sentence."  # type: ignore[attr-defined]


def test_a_help_is_as_wide_as_the_terminal() -> None:
    assert max(map(len, help_of("extract", width=120).splitlines())) > 80


def test_what_can_be_chosen_is_named() -> None:
    assert all(f"\n  {name} " in help_of("extract") for name in ("auto", *OFFERED))
    assert all(name in help_of("search") for name in ("auto", *STRATEGIES))


if __name__ == "__main__":
    SNAPSHOT.write_text(all_helps(), "utf-8")
