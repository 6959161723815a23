"""The reference of the command `dem-hub`, from the declarations of its commands.

click writes a `--help` through a formatter. This one writes Markdown, so the page says what `--help` says.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from dem_hub.cli.app import NAME, app

_OPENING = """\
# Command line

Every command and every option of `dem-hub`, as `--help` has them. Results go to stdout, progress and messages to
stderr; `--json` is for programs. A mistake of a user is one message and exit status 2.
"""


class _Markdown(click.HelpFormatter):
    """A formatter whose usage is a block of code, whose lists are tables, and whose examples can be copied."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:  # noqa: ARG002
        self.buffer.append(f"```text\n{prog} {args}\n```\n\n")

    def write_text(self, text: str) -> None:
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("\b\n"):
                lines = "\n".join(f"    {line}" for line in paragraph.splitlines()[1:])
                self.buffer.append(f"{lines}\n\n")
            else:
                self.buffer.append(f"{escaped(' '.join(paragraph.split()))}\n\n")

    def write_paragraph(self) -> None:
        self.buffer.append("\n")

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.buffer.append(f"**{name}**\n\n")
        if name == "Examples":
            self.buffer.append("```bash\n")
        yield
        if name == "Examples":
            self.buffer.append("```\n")
        self.buffer.append("\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:  # noqa: ARG002
        # The first row of a table in Markdown is its head. An empty one is not shown (pages/stylesheets/site.css).
        self.buffer.append("| | |\n|---|---|\n")
        for name, meaning in rows:
            shown = name.replace("|", "\\|")
            self.buffer.append(f"| `{shown}` | {escaped(' '.join(meaning.split()))} |\n")


def command_line_page() -> str:
    """Return the page."""
    overview = _help_of(app, NAME)
    for name in app.commands:
        overview = overview.replace(f"| `{name}` |", f"| [`{name}`](#{NAME}-{name}) |")
    parts = [_OPENING, overview]
    for name, command in app.commands.items():
        parts.append(f"## {NAME} {name}\n\n{_help_of(command, f'{NAME} {name}')}")
    return "\n".join(parts)


def escaped(text: str) -> str:
    """Return a text with the characters escaped that Markdown would read as marks."""
    for mark in "\\`*_<[|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _help_of(command: click.Command, path: str) -> str:
    formatter = _Markdown()
    context = click.Context(command, info_name=path, **app.context_settings)
    command.format_help(context, formatter)
    return formatter.getvalue().rstrip() + "\n"
