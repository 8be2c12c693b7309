"""How the command line speaks: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from edgekit.generation.request import Delta

__all__ = ["bytes_text", "console", "print_error", "print_json", "print_piece", "progress_bar", "stderr"]

# Where nobody looks, a table is not cut to a screen's width.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str, hint: str | None) -> None:
    """Print an error and its hint the one way edgekit prints them."""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    if hint:
        click.echo(f"\nhint: {hint}", err=True)


def print_json(value: object) -> None:
    """Print data for a script."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_piece(piece: Delta) -> None:
    """Print a piece of an answer as it comes; what the model thinks first is not the answer, so stderr has it."""
    if piece.reasoning:
        stderr.print(piece.text, end="", style="dim", markup=False, emoji=False)
    else:
        sys.stdout.write(piece.text)
        sys.stdout.flush()


def bytes_text(size: float) -> str:
    """Return a size in binary units: `98.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


class _Amount(ProgressColumn):
    """How much of a stage is done: stages with a large total count bytes, the others count things."""

    def render(self, task: Task) -> Text:
        """Return `12.0 MiB of 93.8 MiB, 9.4 MiB/s` or `17 of 272`."""
        total = task.total or 0
        if max(total, task.completed) < 1_000_000:
            return Text(f"{task.completed:.0f} of {total:.0f}" if total else f"{task.completed:.0f}")
        words = bytes_text(task.completed) + (f" of {bytes_text(total)}" if total else "")
        return Text(words + (f", {bytes_text(task.speed)}/s" if task.speed else ""))


class Bar:
    """A progress bar fed by `(stage, done, total)`; each stage gets its own line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` (None if unknown) of a stage are done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)  # type: ignore[arg-type]


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Show a progress bar on stderr; on something that is no terminal it stays silent."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        yield Bar(progress)
