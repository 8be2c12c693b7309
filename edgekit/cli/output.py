"""Plain output of the command line: data to stdout, everything else to stderr.

Tables, colours and progress bars are in `console`, which loads Rich: the daemon needs none of them.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from typing import Any

import click

from edgekit.errors import Spelling, as_argument, escape_controls

__all__ = ["bytes_text", "flags_of", "print_error", "print_json", "print_warning"]


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


def bytes_text(size: float) -> str:
    """Return a size in binary units: `98.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
