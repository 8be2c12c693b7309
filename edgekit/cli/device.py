"""`edgekit targets` and `edgekit doctor`."""

from __future__ import annotations

import os

import click
from rich.table import Table

from edgekit import target as profiles
from edgekit.cli.output import console, print_json

__all__ = ["doctor", "targets"]

_MARKS = {"ok": "[green]ok[/]", "note": "[dim]-[/]", "warn": "[yellow]warn[/]", "missing": "[red]missing[/]"}


@click.command()
@click.argument("name", required=False)
@click.option("--memory-gib", type=float, help="Memory of the device, where its name leaves it open.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def targets(*, name: str | None, memory_gib: float | None, as_json: bool) -> None:
    """List the devices edgekit exports for, or show the facts of the one called NAME."""
    if name is not None:
        _show(profiles.load_target(name, memory_gib=memory_gib), as_json=as_json)
        return
    known = [profiles.load_target(item) for item in profiles.targets()]
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
        table.add_row(item.name, item.title, sizes, speed, artifact, str(item.group_size), item.runners[0])
    console.print(table)


def _show(target: profiles.Target, *, as_json: bool) -> None:
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
    """Say which target this machine is and what it lacks, with the command that mends it."""
    from edgekit.config import load_config
    from edgekit.doctor import diagnose

    diagnosis = diagnose(load_config(None, env=os.environ, overrides={}))
    if as_json:
        print_json(diagnosis.to_json())
        return
    console.print(f"[bold]{diagnosis.title}[/]: --target {diagnosis.target}\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column()
    for check in diagnosis.checks:
        fix = f"\n[cyan]{check.fix}[/]" if check.fix and check.state != "ok" else ""
        table.add_row(_MARKS[check.state], check.name, check.detail + fix)
    console.print(table)
    if not diagnosis.ready:
        raise click.exceptions.Exit(1)
