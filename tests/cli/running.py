"""Run a command of the command line in this process, and look into its declaration."""

import click
import pytest

from dem_hub.cli.app import app, main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the standard output of a command that must work."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def parameters_of(name: str) -> list[click.Parameter]:
    """Return the arguments and options of a command."""
    command = app.commands[name]
    return command.get_params(click.Context(command, **app.context_settings))
