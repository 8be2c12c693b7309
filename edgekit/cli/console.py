"""Output of the command line with Rich: consoles for stdout and stderr, deltas of an answer, progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from edgekit.cli.input import is_terminal
from edgekit.cli.output import bytes_text
from edgekit.generation.types import Delta

__all__ = ["console", "print_delta", "print_restart", "progress_bar", "spinner", "stderr"]


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
