"""What every command is declared with: click's decorators, with options in groups and a `--help` that ends with
examples.

The command line stands on click because huggingface_hub's own does, so click is installed already. Typer is no
dependency of huggingface_hub any more; it takes three times as long to import, and it draws groups of options only
with rich.

A help is plain text, without colors, whatever the terminal.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

# Where an option is listed that names no group. `--help` is there, too.
OTHER = "Other options"

_Function = TypeVar("_Function", bound=Callable[..., Any])

argument = click.argument

# A folder or file, or a Hub id in its place: a shell completes it as a path. Nothing is checked here; the library's
# messages say more.
PATH = click.Path(readable=False)


class Option(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *names: Any, group: str = OTHER, **details: Any) -> None:
        super().__init__(*names, **details)
        self.group = group


class Command(click.Command):
    """A command whose `--help` has a heading for each group of options, and examples at its end."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **details: Any) -> None:
        super().__init__(*arguments, **details)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their groups, in the order in which the groups were declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and row is not None:
                groups.setdefault(getattr(parameter, "group", OTHER), []).append(row)
        groups[OTHER] = groups.pop(OTHER)  # to the end
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples, each on a line of its own that can be copied."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Group(click.Group):
    """The list of commands, in the order in which they were added, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands. click would sort them."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write a line for each command, and a second one where the sentence is long. click would cut the sentence
        off.
        """
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(limit=200)) for name, found in self.commands.items()])


def command(name: str, *, examples: Sequence[str], cls: type[Command] = Command) -> Callable[..., click.Command]:
    """Declare a function as the command `name`.

    Its docstring is the help, and the first sentence of that its line in the list.
    """
    return click.command(name, cls=cls, examples=examples)


def option(*names: str, group: str = OTHER, **details: Any) -> Callable[[_Function], _Function]:
    """Declare an option of a command. It is listed under the heading `group`; `details` are those of `click.option`."""
    return click.option(*names, cls=Option, group=group, **details)
