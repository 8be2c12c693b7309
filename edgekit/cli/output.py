"""Output of the command line: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from edgekit.cli.input import is_terminal
from edgekit.errors import Spelling, as_argument, escape_controls
from edgekit.generation.types import Delta

__all__ = [
    "bytes_text",
    "console",
    "flags_of",
    "print_delta",
    "print_error",
    "print_json",
    "print_restart",
    "print_warning",
    "progress_bar",
    "spinner",
    "stderr",
]


# In a terminal they would move the cursor, change colours or answer for the user.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_ESCAPED = {code: f"\\x{code:02x}" for code in _CONTROLS}


class _Console(Console):
    """Prints text as it is: a path or command may contain `[v1]`, which Rich takes for markup.

    Control characters, which names and paths may contain too, are shown escaped. Styles come as `style=`, or as `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to print; Rich's own control sequences are segments of another kind."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else segment.text.translate(_ESCAPED)
            yield segment if text == segment.text else Segment(text, segment.style)


# Tables are not cut to the screen's width when stdout is not a terminal.
console = _Console(width=None if is_terminal(sys.stdout) else 160)
stderr = _Console(stderr=True)


def print_error(message: str, hint: str | None) -> None:
    """Print an error and its hint to stderr, if that can be written."""
    with suppress(OSError):
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(escape_controls(message), err=True)
        if hint:
            click.echo(f"\nhint: {escape_controls(hint)}", err=True)


def flags_of(command: click.Command) -> Spelling:
    """Return the spelling of the options that an error or advice mentions as the flags of a command."""
    options = {item.name: max(item.opts, key=len) for item in command.params if isinstance(item, click.Option)}
    arguments = {item.name: item.human_readable_name for item in command.params if isinstance(item, click.Argument)}

    def spell(name: str, value: Any) -> str:
        if name in arguments:
            return arguments[name]
        if name not in options:
            return as_argument(name, value)
        if value is None or value is True:
            return options[name]
        if name == "fit_bytes":
            return f"{options[name]} {value * 10 // 2**20 / 10:.1f}MiB"  # rounded down
        (word,) = value if isinstance(value, list) else (value,)
        return f"{options[name]} {shlex.quote(str(word))}"

    return spell


def print_warning(message: str, hint: str | None) -> None:
    """Print to stderr what is wrong but did not stop the command, and its hint."""
    click.secho("warning: ", fg="yellow", bold=True, nl=False, err=True)
    click.echo(escape_controls(message + (f" (hint: {hint})" if hint else "")), err=True)


def print_json(value: object) -> None:
    """Print JSON to stdout."""
    plain = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not plain, default=str) + "\n")


def print_delta(delta: Delta) -> None:
    """Print a text delta as it arrives: the answer to stdout, reasoning to stderr."""
    stream = sys.stderr if delta.reasoning else sys.stdout
    text = delta.text.translate(_CONTROLS) if is_terminal(stream) else delta.text
    if delta.reasoning:
        stderr.print(text, end="", style="dim")
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


def print_restart() -> None:
    """End the line of an answer that a daemon starts anew, and say so on stderr."""
    sys.stdout.write("\n")
    sys.stdout.flush()
    stderr.print("the device was restarted; its answer begins again", style="dim")


def bytes_text(size: float) -> str:
    """Return a size in binary units: `98.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


class _Amount(ProgressColumn):
    """Progress of a stage, as bytes if its total is large and as a plain count otherwise."""

    def render(self, task: Task) -> Text:
        """Return `12.0 MiB of 93.8 MiB, 9.4 MiB/s` or `17 of 272`."""
        total = task.total or 0
        if max(total, task.completed) < 1_000_000:
            return Text(f"{task.completed:.0f} of {total:.0f}" if total else f"{task.completed:.0f}")
        text = bytes_text(task.completed) + (f" of {bytes_text(total)}" if total else "")
        return Text(text + (f", {bytes_text(task.speed)}/s" if task.speed else ""))


class Bar:
    """A progress bar that takes `(stage, done, total)`; each stage has its own line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` (None if unknown) of a stage are done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)  # type: ignore[arg-type]


def spinner(text: str) -> AbstractContextManager[object]:
    """Show that something is going on, on stderr if that is a terminal."""
    return stderr.status(Text(text), spinner="line") if stderr.is_terminal else nullcontext()


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Show a progress bar on stderr if that is a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), _Amount(), TimeElapsedColumn())
    progress = Progress(*columns, console=stderr, disable=not stderr.is_terminal)
    with progress if stderr.is_terminal else nullcontext():  # before 14.3, rich ends a disabled one with a line
        yield Bar(progress)
