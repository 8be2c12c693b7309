"""`edgekit targets` and `edgekit doctor`."""

from __future__ import annotations

import os

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.console import console, stderr
from edgekit.cli.output import print_json, print_warning
from edgekit.recognition import check_targets
from edgekit.target import Target, load_target, load_targets

__all__ = ["doctor", "targets"]

_MARKS = {"ok": ("ok", "green"), "note": ("-", "dim"), "warn": ("warn", "yellow"), "missing": ("missing", "red")}


@click.command()
@click.argument("name", required=False)
@click.option("--memory-gib", type=float, help="Memory of the device, if the target comes in several sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def targets(*, name: str | None, memory_gib: float | None, as_json: bool) -> None:
    """List the devices edgekit exports for, or show the profile of NAME."""
    shown = None if name is None else load_target(name, memory_gib=memory_gib)
    for error in check_targets():
        print_warning(error.message, error.hint)
    if shown is not None:
        _show(shown, as_json=as_json)
        return
    known = load_targets()
    if as_json:
        print_json([item.describe() for item in known])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("target", "device", "memory GiB", "GB/s", "artifact", "group size", "runs on"):
        table.add_column(column)
    for item in known:
        sizes = ", ".join(map(str, item.memory_choices_gib)) or "any"
        artifact = f"{item.artifact} {item.dialect or ''}".strip()
        speed = f"{item.bandwidth_gb_s:g}" if item.bandwidth_gb_s else ""
        table.add_row(item.name, item.title, sizes, speed, artifact, str(item.group_size), ", ".join(item.runners))
    console.print(table)
    stderr.print(
        "\nruns on: the first that works on the device. tensorrt and tensorrt_rtx run an engine that the device builds "
        "of the bundle (edgekit build); none has run on a device yet"
    )


def _show(target: Target, *, as_json: bool) -> None:
    facts = target.describe()
    if as_json:
        print_json(facts)
        return
    sources = dict(target.sources)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(style="dim")
    for key, value in facts.items():
        if key != "sources" and value not in (None, []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            table.add_row(key, shown, sources.get(key, ""))
    console.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def doctor(*, as_json: bool) -> None:
    """Identify this machine's target and check what is missing, with the command that fixes it."""
    from edgekit.config import load_config
    from edgekit.doctor import diagnose

    diagnosis = diagnose(load_config(None, env=os.environ, overrides={}))
    if as_json:
        print_json(diagnosis.to_json())
        return
    console.print(Text.assemble((diagnosis.title, "bold"), f": --target {diagnosis.target}\n"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column()
    for check in diagnosis.checks:
        found = Text(check.detail)
        if check.fix and check.state != "ok":
            found.append(f"\n{check.fix}", "cyan")
        table.add_row(Text(*_MARKS[check.state]), check.name, found)
    console.print(table)
    if not diagnosis.ready:
        raise click.exceptions.Exit(1)
