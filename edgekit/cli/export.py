"""`edgekit export` and `edgekit models`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from rich.table import Table

from edgekit.bundle.quality import Quality
from edgekit.cli.output import bytes_text, console, print_json, progress_bar, stderr
from edgekit.cli.quality import quality_table
from edgekit.cli.sizes import size_in_bytes

__all__ = ["export", "models"]


class _ExportCommand(click.Command):
    """Lists the recipes under the options; they are looked up only when the help is shown."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from edgekit.export.recipe import METHODS

        with formatter.section("Recipes"):
            formatter.write_dl(list(METHODS.items()))
        super().format_epilog(ctx, formatter)


@click.command(name="export", cls=_ExportCommand)
@click.argument("model")
@click.option("-t", "--target", "target_name", required=True, help="Device to export for; see `edgekit targets`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle [MODEL-TARGET].")
@click.option(
    "--recipe", metavar="NAME", default="auto", show_default=True, help="How weights are quantized; see below."
)
@click.option("--group-size", type=int, help="Weights that share a scale: 32, 64 or 128 [the target's].")
@click.option("--head-bits", type=int, help="Bits of the output head: 4, 8 or 16 [the recipe's].")
@click.option("--embedding-bits", type=int, help="Bits of the embedding: 4, 8 or 16 [the recipe's].")
@click.option(
    "--fit",
    "fit_bytes",
    metavar="SIZE",
    callback=size_in_bytes,
    help="8 bits where they help most, weights of at most SIZE: 900MiB, 1.2GB.",
)
@click.option(
    "--calibration", "calibrate_on", type=click.Path(path_type=Path), metavar="FILE", help="Text to calibrate on."
)
@click.option(
    "--calibration-windows", type=click.IntRange(1, 1024), help="Windows of 512 tokens of it [32; 2 without gptq]."
)
@click.option("--context", "context_length", type=int, help="Longest sequence in tokens [the model's].")
@click.option("--yarn", type=float, metavar="FACTOR", help="Stretch the context with YaRN: 4 makes 128K of 32K.")
@click.option(
    "--ignore-key", "ignore_keys", multiple=True, metavar="KEY", help="A key of config.json that is harmless."
)
@click.option("--memory-gib", type=float, help="Memory of the device, where its name leaves it open.")
@click.option("--jetpack", metavar="VERSION", help="On the Jetson, 6.2 or 7.2: chooses the dialect [one for both].")
@click.option("--name", help="Name the daemon serves the model under [the checkpoint's].")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@click.option(
    "--eval", "evaluate_on", type=click.Path(path_type=Path), metavar="FILE", help="Measure on a text; see `eval`."
)
@click.option(
    "--exporter",
    type=click.Choice(["edgekit", "optimum"]),
    default="edgekit",
    show_default=True,
    help="optimum takes decoders that edgekit itself does not know, for the cpu target.",
)
@click.option("--allow-oversize", is_flag=True, help="Export what does not fit the target too; see `edgekit plan`.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def export(
    *,
    model: str,
    target_name: str,
    output: Path | None,
    recipe: str,
    group_size: int | None,
    head_bits: int | None,
    embedding_bits: int | None,
    fit_bytes: int | None,
    calibrate_on: Path | None,
    calibration_windows: int | None,
    context_length: int | None,
    yarn: float | None,
    ignore_keys: tuple[str, ...],
    memory_gib: float | None,
    jetpack: str | None,
    name: str | None,
    revision: str | None,
    force: bool,
    evaluate_on: Path | None,
    exporter: Literal["edgekit", "optimum"],
    allow_oversize: bool,
    as_json: bool,
) -> None:
    """Turn MODEL into a bundle for a target.

    MODEL is a name of `edgekit models`, a GGUF file, a folder with a Hugging Face checkpoint, or a hub id.
    """
    from edgekit.export.pipeline import ExportOptions, export_bundle
    from edgekit.export.plan import note_on_context
    from edgekit.target import load_target

    target = load_target(target_name, memory_gib=memory_gib, jetpack=jetpack)
    if output is None:
        output = Path(f"{Path(model).name.removesuffix('.gguf').lower()}-{target.name}")
    options = ExportOptions(
        recipe=recipe,
        group_size=group_size,
        name=name,
        revision=revision,
        force=force,
        head_bits=head_bits,
        embedding_bits=embedding_bits,
        fit_bytes=fit_bytes,
        calibrate_on=calibrate_on,
        calibration_windows=calibration_windows,
        context_length=context_length,
        yarn=yarn,
        ignore_keys=ignore_keys,
        evaluate_on=evaluate_on,
        exporter=exporter,
        memory_gib=memory_gib,
        allow_oversize=allow_oversize,
    )
    with progress_bar() as bar:
        bundle = export_bundle(model, target, output, options, bar)
    manifest = bundle.manifest
    if as_json:
        print_json({"path": str(output), "manifest": manifest.to_dict()})
        return
    total = sum(entry.size for entry in manifest.files)
    stderr.print(f"{manifest.name}: {manifest.recipe['summary']}")
    console.print(f"[bold]{output}[/]  {bytes_text(total)}, for {', '.join(manifest.compatible)}")
    if manifest.quality:
        console.print(quality_table(Quality.from_dict(manifest.quality)))
    if (note := note_on_context(output, target, options)) is not None:
        stderr.print(note)
    if target.runners[0] in {"cpu", "mlx"}:
        stderr.print(f"\nnext: edgekit run {output} 'What is the capital of France?'\n      edgekit serve {output}")
    else:
        stderr.print(f"\nnext: edgekit verify {output} --build")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def models(*, as_json: bool) -> None:
    """List the models edgekit knows by name. Any GGUF file, checkpoint folder or hub id works too."""
    from edgekit.export.catalog import catalog

    entries = catalog()
    if as_json:
        print_json([entry.as_dict() for entry in entries])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "parameters", "architecture", "licence", "from"):
        table.add_column(column)
    for entry in entries:
        table.add_row(entry.name, entry.parameters_text, entry.architecture, entry.licence, entry.source_text)
    console.print(table)
