"""How the command line speaks: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

__all__ = ["bytes_text", "console", "print_error", "print_json", "progress_bar", "stderr"]

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


def bytes_text(size: float) -> str:
    """Return a size in binary units: `98.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


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
def progress_bar(*, in_bytes: bool = False) -> Iterator[Bar]:
    """Show a progress bar on stderr; on something that is no terminal it stays silent."""
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    columns += [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=stderr, disable=not stderr.is_terminal) as progress:
        yield Bar(progress)
