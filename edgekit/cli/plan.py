"""`edgekit plan`: memory, context and speed of a model on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.console import console, progress_bar, stderr
from edgekit.cli.output import flags_of, print_json
from edgekit.cli.sizes import size_in_bytes
from edgekit.cli.termination import clean_up_when_terminated
from edgekit.errors import spell_options

if TYPE_CHECKING:
    from edgekit.export.planning.plan import ModelPlan

__all__ = ["notes_on_this_machine", "plan"]


@click.command()
@click.argument("model")
@click.option("-t", "--target", "target_name", required=True, help="Device to plan for; see `edgekit targets`.")
@click.option("--context", "context_length", type=int, help="Tokens per sequence [the longest that fits].")
@click.option("--parallel", type=int, default=1, show_default=True, help="Sequences in memory at the same time.")
@click.option("--runner", metavar="NAME", help="Runner to plan for [the target's first that can run it].")
@click.option("--recipe", default="auto", show_default=True, help="As for `edgekit export`.")
@click.option("--group-size", type=int, help="As for `edgekit export`.")
@click.option("--head-bits", type=int, help="As for `edgekit export`.")
@click.option("--embedding-bits", type=int, help="As for `edgekit export`.")
@click.option("--fit", "fit_bytes", metavar="SIZE", callback=size_in_bytes, help="As for `edgekit export`.")
@click.option("--yarn", type=float, metavar="FACTOR", help="As for `edgekit export`.")
@click.option("--ignore-key", "ignore_keys", multiple=True, metavar="KEY", help="As for `edgekit export`.")
@click.option("--memory-gib", type=float, help="Memory of the device, if the target comes in several sizes.")
@click.option("--jetpack", metavar="VERSION", help="As for `edgekit export`.")
@click.option("--dialect", metavar="NAME", help="As for `edgekit export`.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def plan(
    *,
    model: str,
    target_name: str,
    parallel: int,
    runner: str | None,
    memory_gib: float | None,
    jetpack: str | None,
    dialect: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate MODEL's memory, longest context and tokens per second on a target, without downloading its weights.

    MODEL is anything `edgekit export` takes (only its small files are downloaded), a config.json, or a bundle.
    The exit status is 1 if it does not fit.
    """
    from edgekit.export.options import ExportOptions
    from edgekit.export.planning.plan import plan_model
    from edgekit.target import load_target

    clean_up_when_terminated()

    target = load_target(target_name, memory_gib=memory_gib, jetpack=jetpack, dialect=dialect)
    with progress_bar() as bar:
        model_plan = plan_model(model, target, ExportOptions(**options), parallel=parallel, runner=runner, report=bar)
    flags = flags_of(click.get_current_context().command)
    model_plan = replace(model_plan, advice=tuple(spell_options(advice, flags) for advice in model_plan.advice))
    on_engine = tuple(spell_options(note, flags) for note in model_plan.engine_notes)
    notes = (*model_plan.notes, *notes_on_this_machine(model_plan))
    model_plan = replace(model_plan, notes=notes, engine_notes=on_engine)
    if as_json:
        print_json(model_plan.to_json())
    else:
        _show(model_plan, stated=memory_gib is not None)
    if model_plan.plan.fits is False:
        raise click.exceptions.Exit(1)


def _show(model_plan: ModelPlan, *, stated: bool) -> None:
    from edgekit.memory import GIB, RUNTIMES

    plan, footprint, target = model_plan.plan, model_plan.plan.footprint, model_plan.target
    memory = "" if target.memory_gib is None else f", {target.memory_gib:g} GiB"
    console.print(Text.assemble((model_plan.name, "bold"), f" on {target.title}{memory}\n"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    def row(name: str, size: int | None, note: str | Text) -> None:
        table.add_row(name, "" if size is None else f"{size / GIB:.2f} GiB", note)

    slots = "" if plan.parallel == 1 else f" × {plan.parallel} sequences"
    twice = ", twice" if model_plan.batch > 1 else ""
    row("weights", footprint.weights, f"recipe {model_plan.recipe}; from {model_plan.basis}{twice}")
    row(
        "KV cache",
        plan.parallel * footprint.kv_allocated(plan.context),
        f"{plan.context:,} tokens{slots}, {footprint.kv_cache(1):,} bytes each",
    )
    chunks = f"prefill chunks of {RUNTIMES[model_plan.runner].chunk} tokens"
    row("activations", footprint.step(plan.context), chunks + ("; an estimate" if model_plan.needs_engine else ""))
    row("workspace", footprint.workspace, f"{model_plan.runner}; {RUNTIMES[model_plan.runner].basis}")
    row("needed", plan.needed, "")
    if plan.left is not None:
        row("reserve", plan.reserve, target.profile.reserve.basis)
        row("left", plan.left, "fits" if plan.fits else Text("does not fit", "red"))
    table.add_row("", "", "")
    for count in sorted({1, plan.parallel}):
        longest = plan.longest_context(count)
        if longest is not None:
            sequences = "one sequence" if count == 1 else f"{count} sequences"
            full = longest == plan.max_context
            maximum = "the model's maximum" if full else f"the model's maximum is {plan.max_context:,}"
            table.add_row("longest context", f"{longest:,}", f"tokens for {sequences}; {maximum}")
    for context in (0, plan.context):
        speed = model_plan.ceiling(context)
        if speed is not None:
            formula = (
                f"{target.bandwidth_gb_s:g} GB/s / {model_plan.bytes_per_token(context) / 1e9:.2f} GB read per token"
            )
            after = "with an empty context" if context == 0 else f"after {context:,} tokens"
            table.add_row("ceiling", f"{speed:.0f} tokens/s", f"{after}: {formula}")
    console.print(table)
    if model_plan.needs_engine:
        console.print(
            "note: planned for a TensorRT engine, built on the device by `edgekit build`. The weights and the KV cache "
            "are computed from the model; activations and workspace are estimates: no engine has run on a device yet. "
            "Without an engine, other runners do: see --runner"
        )
    for note in (*model_plan.engine_notes, *model_plan.notes):
        console.print(f"note: {note}")
    for advice in model_plan.advice:
        console.print(advice, style="cyan")
    if plan.memory is None:
        stderr.print("\ngive the device's memory with --memory-gib to see whether it fits")
    elif len(target.memory_choices_gib) > 1 and not stated:
        sizes = ", ".join(f"{size}" for size in target.memory_choices_gib)
        stderr.print(f"\nplanned for the smallest memory; --memory-gib takes {sizes}")


def notes_on_this_machine(model_plan: ModelPlan, root: Path = Path("/")) -> tuple[str, ...]:
    """Return notes on the memory that is available now, if this machine is the Jetson that is planned for.

    Elsewhere a model is rarely planned where it runs.

    Args:
        model_plan: The plan.
        root: Folder that contains /proc and /sys.
    """
    from edgekit.jetson.board import device_tree, find_board
    from edgekit.jetson.desktop import STOP_DESKTOP, find_desktop
    from edgekit.machine import available_bytes, probe
    from edgekit.memory import GIB
    from edgekit.recognition import recognise

    if find_board(device_tree(root)) is None or recognise(probe(root)).name != model_plan.target.name:
        return ()
    notes = []
    available, needed = available_bytes(root), model_plan.plan.needed
    if available is not None:
        enough = "" if available >= needed else f", and {needed / GIB:.2f} are needed"
        notes.append(f"this machine has {available / GIB:.2f} GiB available now{enough}")
    desktop = find_desktop(root)
    if desktop is not None:
        notes.append(f"{desktop} of it; to start without a desktop: {STOP_DESKTOP}")
    return tuple(notes)
