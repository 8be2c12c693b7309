"""`edgekit export` and `edgekit models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.bundle.quality import Quality
from edgekit.cli.console import console, progress_bar, stderr
from edgekit.cli.output import bytes_text, print_json
from edgekit.cli.quality import quality_table
from edgekit.cli.sizes import size_in_bytes
from edgekit.cli.termination import clean_up_when_terminated

__all__ = ["export", "models"]


class _ExportCommand(click.Command):
    """Lists the recipes below the options, importing them only when the help is shown."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from edgekit.export.recipes.recipe import METHODS

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
@click.option("--group-size", type=int, help="Weights per scale: 32, 64 or 128 [the target's].")
@click.option("--head-bits", type=int, help="Bits of the output head: 4, 8 or 16 [the recipe's].")
@click.option("--embedding-bits", type=int, help="Bits of the embedding: 4, 8 or 16 [the recipe's].")
@click.option(
    "--fit",
    "fit_bytes",
    metavar="SIZE",
    callback=size_in_bytes,
    help="Mixed 4 and 8 bits, with 8 where they help most, in at most SIZE: 900MiB, 1.2GB.",
)
@click.option(
    "--calibration", "calibrate_on", type=click.Path(path_type=Path), metavar="FILE", help="Text to calibrate on."
)
@click.option(
    "--calibration-windows", type=click.IntRange(1, 1024), help="Windows of 512 tokens to read [32; 2 without gptq]."
)
@click.option("--context", "context_length", type=int, help="Longest sequence in tokens [the model's].")
@click.option("--yarn", type=float, metavar="FACTOR", help="Extend the context with YaRN: 4 turns 32K into 128K.")
@click.option(
    "--ignore-key", "ignore_keys", multiple=True, metavar="KEY", help="Key of config.json that may be ignored."
)
@click.option("--memory-gib", type=float, help="Memory of the device, if the target comes in several sizes.")
@click.option("--jetpack", metavar="VERSION", help="The Jetson's JetPack, 6.2 or 7.2 [one bundle for both].")
@click.option(
    "--dialect", metavar="NAME", help="Of the ONNX graph, for TensorRT: portable, or native on newer ones [portable]."
)
@click.option("--name", help="Model name that the daemon serves [the checkpoint's].")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option(
    "--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="Chat template [the checkpoint's]."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--eval",
    "evaluate_on",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure the quality on this text; see `eval`.",
)
@click.option(
    "--exporter",
    type=click.Choice(["edgekit", "optimum"]),
    default="edgekit",
    show_default=True,
    help="optimum exports decoders that edgekit does not support itself, for the cpu target.",
)
@click.option("--allow-oversize", is_flag=True, help="Export even if it does not fit the target; see `edgekit plan`.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def export(
    *,
    model: str,
    target_name: str,
    output: Path | None,
    memory_gib: float | None,
    jetpack: str | None,
    dialect: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn MODEL into a bundle for a target.

    MODEL is a name from `edgekit models`, a GGUF file, a folder with a Hugging Face checkpoint, or a hub id.
    """
    from edgekit.export.pipeline import ExportOptions, export_bundle
    from edgekit.export.planning.plan import note_on_context
    from edgekit.export.sources.hub_ref import short_name
    from edgekit.target import load_target

    clean_up_when_terminated()

    target = load_target(target_name, memory_gib=memory_gib, jetpack=jetpack, dialect=dialect)
    if output is None:
        output = Path(f"{short_name(model)}-{target.name}")
    chosen = ExportOptions(memory_gib=memory_gib, **options)
    with progress_bar() as bar:
        bundle = export_bundle(model, target, output, chosen, bar)
    manifest = bundle.manifest
    if as_json:
        print_json({"path": str(output), "manifest": manifest.to_dict()})
        return
    total = sum(entry.size for entry in manifest.files)
    stderr.print(f"{manifest.name}: {manifest.recipe['summary']}")
    console.print(Text.assemble((str(output), "bold"), f"  {bytes_text(total)}, for {', '.join(manifest.compatible)}"))
    if manifest.quality:
        console.print(quality_table(Quality.from_dict(manifest.quality)))
    if (note := note_on_context(output, target, chosen)) is not None:
        stderr.print(note)
    if target.runners[0] in {"cpu", "mlx"}:
        stderr.print(f"\nnext: edgekit run {output} 'What is the capital of Germany?'\n      edgekit serve {output}")
    else:
        stderr.print(f"\nnext: edgekit verify {output} --build\n      on the device: edgekit build {output}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def models(*, as_json: bool) -> None:
    """List the models edgekit knows by name. `edgekit export` also takes a GGUF file, checkpoint folder or hub id."""
    from edgekit.export.sources.catalog import catalog

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
