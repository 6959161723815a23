"""The command `dem-hub`, put together from one file a command, and what all commands have in common.

Data goes to stdout; progress, notes and errors go to stderr. A user's mistake is one readable message and exit status
2, never a traceback. A command imports what it runs when it runs, so that `dem-hub --help` loads no torch.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from dem_hub._version import __version__
from dem_hub.cli.check import check
from dem_hub.cli.command import Group
from dem_hub.cli.dare import dare
from dem_hub.cli.demo import demo
from dem_hub.cli.eval import eval_command
from dem_hub.cli.export import export
from dem_hub.cli.extract import extract
from dem_hub.cli.info import info
from dem_hub.cli.interrupts import let_interrupts_wait_for_imports
from dem_hub.cli.list import list_command
from dem_hub.cli.merge import merge
from dem_hub.cli.mix import mix
from dem_hub.cli.plan import plan
from dem_hub.cli.push import push
from dem_hub.cli.regmean import regmean
from dem_hub.cli.search import search
from dem_hub.cli.startup import leave
from dem_hub.cli.statistics import statistics
from dem_hub.cli.ties import ties
from dem_hub.errors import DemHubError
from dem_hub.hub.foreign_text import printable

NAME = "dem-hub"

# What a shell sets to ask for completions. The name is click's: that of the command in capitals.
_COMPLETE_VARIABLE = "_DEM_HUB_COMPLETE"

# Set to anything, the traceback of every error is printed before its message.
_TRACEBACK_VARIABLE = "DEM_HUB_TRACEBACK"

# The exit status of a process that Ctrl-C has ended: 128 + the number of the signal SIGINT.
_INTERRUPTED = 130

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    # columns; a help is as wide as the terminal, but no wider
    "max_content_width": 100,
}


@click.group(name=NAME, cls=Group, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
def app() -> None:
    """Merge fine-tunes of one base model with coefficients chosen by validation loss.

    \b
    Completion of commands and options, for bash (zsh and fish likewise):
      eval "$(_DEM_HUB_COMPLETE=bash_source dem-hub)"
    """


for _command in (
    extract,
    info,
    merge,
    export,
    search,
    statistics,
    regmean,
    ties,
    dare,
    mix,
    eval_command,
    check,
    plan,
    push,
    list_command,
    demo,
):
    app.add_command(_command)


def run() -> None:
    """Run the command line as a process of its own: the entry point `dem-hub`."""
    if _COMPLETE_VARIABLE in os.environ:
        app(prog_name=NAME)  # answers the shell and exits
    let_interrupts_wait_for_imports()
    _make_warnings_printable()
    leave(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments (`Sequence[str]`, *optional*): what was typed after `dem-hub`; that of this process by default.

    Returns:
        `int`: the exit status: 0; 2 after a mistake that the message on stderr explains; 1 after an error that nobody
            expected, 130 after Ctrl-C.

    Raises:
        `SystemExit`: after `--help` and `--version`, and after a command line that cannot be parsed (status 2).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    context = None
    try:
        with app.make_context(NAME, list(arguments)) as context:
            app.invoke(context)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        # What was not finished has another name until it is, so nothing of it is in the way of the next run.
        _say(context, str(stop) or "stopped by Ctrl-C.")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001
        return _fail(context, error)
    return 0


def _fail(context: click.Context | None, error: Exception) -> int:
    """Say in one line what is wrong, and return the exit status.

    An error without a message for the user, such as one from inside another library, is said to be one, with the way
    to see more of it.
    """
    if os.environ.get(_TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    message = str(error).strip()
    if _is_expected(error):
        _say(context, message + "".join(f" {note}" for note in getattr(error, "__notes__", ())))
        return 2
    kind = type(error).__name__
    first_line = message.partition("\n")[0]
    told = f"{kind}: {first_line}" if first_line else kind
    _say(context, f"{told} (unexpected; {_TRACEBACK_VARIABLE}=1 in the environment shows where it happened)")
    return 1


def _say(context: click.Context | None, message: str) -> None:
    """Print one message to stderr, after the name of the command.

    It may quote a file, a name or an answer of others.
    """
    message = printable(message, keep="\n")
    command = context.invoked_subcommand if context is not None else None
    print(f"{NAME} {command}: {message}" if command else f"{NAME}: {message}", file=sys.stderr)


def _make_warnings_printable() -> None:
    """Have warnings of this process, which may quote a file of somebody else, printed without control characters."""
    original = warnings.formatwarning

    def format_warning(*arguments: Any, **options: Any) -> str:
        return printable(original(*arguments, **options), keep="\n")

    warnings.formatwarning = format_warning


def _is_expected(error: Exception) -> bool:
    """Return whether an error has a message for the user: ours, the Hub's, and those of files and connections."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, DemHubError | HfHubHTTPError | OSError)
