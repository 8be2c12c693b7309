"""`edgekit plan`: what a model takes on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from edgekit.cli.output import console, print_json, progress_bar, stderr
from edgekit.cli.sizes import size_in_bytes

if TYPE_CHECKING:
    from edgekit.export.plan import ModelPlan

__all__ = ["plan"]


@click.command()
@click.argument("model")
@click.option("-t", "--target", "target_name", required=True, help="Device to plan for; see `edgekit targets`.")
@click.option(
    "--context", "context_length", type=int, help="Tokens of a sequence [the most that the model has and fits]."
)
@click.option("--parallel", type=int, default=1, show_default=True, help="Sequences held at the same time.")
@click.option("--runner", metavar="NAME", help="What runs it there [the target's first that can].")
@click.option("--recipe", default="auto", show_default=True, help="As for `edgekit export`.")
@click.option("--group-size", type=int, help="As for `edgekit export`.")
@click.option("--head-bits", type=int, help="As for `edgekit export`.")
@click.option("--embedding-bits", type=int, help="As for `edgekit export`.")
@click.option("--fit", "fit_bytes", metavar="SIZE", callback=size_in_bytes, help="As for `edgekit export`.")
@click.option("--yarn", type=float, metavar="FACTOR", help="As for `edgekit export`.")
@click.option("--ignore-key", "ignore_keys", multiple=True, metavar="KEY", help="As for `edgekit export`.")
@click.option("--memory-gib", type=float, help="Memory of the device, where its name leaves it open.")
@click.option("--jetpack", metavar="VERSION", help="As for `edgekit export`.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def plan(
    *,
    model: str,
    target_name: str,
    context_length: int | None,
    parallel: int,
    runner: str | None,
    recipe: str,
    group_size: int | None,
    head_bits: int | None,
    embedding_bits: int | None,
    fit_bytes: int | None,
    yarn: float | None,
    ignore_keys: tuple[str, ...],
    memory_gib: float | None,
    jetpack: str | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Say what MODEL takes on a target, before anything is downloaded: memory, longest context, tokens per second.

    MODEL is what `edgekit export` takes, of which only the configuration is fetched; or a config.json, or a bundle.
    The exit status is 1 where it does not fit.
    """
    from edgekit.export.options import ExportOptions
    from edgekit.export.plan import plan_model
    from edgekit.target import load_target

    target = load_target(target_name, memory_gib=memory_gib, jetpack=jetpack)
    options = ExportOptions(
        recipe=recipe,
        group_size=group_size,
        head_bits=head_bits,
        embedding_bits=embedding_bits,
        fit_bytes=fit_bytes,
        revision=revision,
        context_length=context_length,
        yarn=yarn,
        ignore_keys=ignore_keys,
    )
    with progress_bar() as bar:
        made = plan_model(model, target, options, parallel=parallel, runner=runner, report=bar)
    if as_json:
        print_json(made.to_json())
    else:
        _show(made, stated=memory_gib is not None)
    if made.plan.fits is False:
        raise click.exceptions.Exit(1)


def _show(made: ModelPlan, *, stated: bool) -> None:
    from edgekit.memory import GIB, RUNTIMES

    plan, footprint, target = made.plan, made.plan.footprint, made.target
    memory = "" if target.memory_gib is None else f", {target.memory_gib:g} GiB"
    console.print(f"[bold]{made.name}[/] on {target.title}{memory}\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    def row(name: str, size: int | None, note: str) -> None:
        table.add_row(name, "" if size is None else f"{size / GIB:.2f} GiB", note)

    slots = "" if plan.parallel == 1 else f" × {plan.parallel} sequences"
    row("weights", footprint.weights, f"recipe {made.recipe}; from {made.basis}")
    row(
        "KV cache",
        plan.parallel * footprint.kv_cache(plan.context),
        f"{plan.context:,} tokens{slots}, {footprint.kv_cache(1):,} bytes each",
    )
    row("activations", footprint.step(plan.context), f"of {RUNTIMES[made.runner].chunk} tokens at a time")
    row("workspace", footprint.workspace, f"{made.runner}; {RUNTIMES[made.runner].basis}")
    row("needed", plan.needed, "")
    if plan.left is not None:
        row("reserve", plan.reserve, target.profile.reserve.basis)
        row("left", plan.left, "fits" if plan.fits else "[red]does not fit[/]")
    table.add_row("", "", "")
    for count in sorted({1, plan.parallel}):
        longest = plan.longest_context(count)
        if longest is not None:
            sequences = "one sequence" if count == 1 else f"{count} sequences"
            most = " (all that the model has)" if longest == plan.most else f" of the model's {plan.most:,}"
            table.add_row("longest context", f"{longest:,}", f"tokens of {sequences}{most}")
    for context in (0, plan.context):
        speed = made.ceiling(context)
        if speed is not None:
            formula = f"{target.bandwidth_gb_s:g} GB/s / {made.bytes_per_token(context) / 1e9:.2f} GB read per token"
            behind = "with an empty context" if context == 0 else f"behind {context:,} tokens"
            table.add_row("ceiling", f"{speed:.0f} tokens/s", f"{behind}: {formula}")
    console.print(table)
    for advice in made.advice:
        console.print(f"[cyan]{advice}[/]")
    if plan.memory is None:
        stderr.print("\nsay how much memory the device has to see whether it fits: --memory-gib")
    elif len(target.memory_choices_gib) > 1 and not stated:
        sizes = ", ".join(f"{size}" for size in target.memory_choices_gib)
        stderr.print(f"\nplanned for the smallest; --memory-gib takes {sizes}")
