"""`edgekit eval`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from edgekit.bundle.bundle import open_bundle, store_quality
from edgekit.cli.output import console, print_json, progress_bar, stderr
from edgekit.cli.quality import quality_notes, quality_table

__all__ = ["evaluate"]


@click.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="MODEL", help="The checkpoint it was exported from, as for export.")
@click.option("--text", "text_path", required=True, type=click.Path(path_type=Path), help="A UTF-8 text to measure on.")
@click.option("--window", type=int, default=512, show_default=True, help="Tokens per window.")
@click.option("--windows", type=int, default=16, show_default=True, help="The most windows.")
@click.option("--runner", is_flag=True, help="Run the bundle too: its runner's rounding of activations is then seen.")
@click.option("--save", is_flag=True, help="Store the figures in the bundle's manifest.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write an HTML report.")
@click.option("--threads", type=int, help="Threads [one per physical core].")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def evaluate(
    *,
    bundle: Path,
    against: str,
    text_path: Path,
    window: int,
    windows: int,
    runner: bool,
    save: bool,
    report_path: Path | None,
    threads: int | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Measure what quantization did to BUNDLE: perplexity, KL divergence and agreement with its checkpoint.

    Both are computed in float32, layer by layer, so the figures are the error of the weights alone. Measure on a text
    that the recipe was not calibrated on.
    """
    from edgekit.export.checkpoints import open_checkpoint
    from edgekit.export.evaluate import EvaluationOptions
    from edgekit.export.evaluate import evaluate as measure
    from edgekit.export.windows import read_text

    opened = open_bundle(bundle)
    text = read_text(text_path)
    options = EvaluationOptions(window=window, windows=windows, runner=runner, threads=threads)
    with progress_bar() as bar, closing(open_checkpoint(against, revision=revision, report=bar)) as checkpoint:
        quality = measure(opened, checkpoint, text, options, bar)
    if save:
        opened = store_quality(opened, quality)
    if report_path is not None:
        from edgekit.export.report import write_report

        write_report(report_path, opened.manifest, quality)
    if as_json:
        print_json(quality.to_dict())
        return
    console.print(quality_table(quality))
    for note in quality_notes(quality):
        stderr.print(note, style="dim")
