"""`edgekit eval`: measure a bundle's quantization error."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from edgekit.bundle.bundle import open_bundle, store_quality
from edgekit.cli.console import console, progress_bar, stderr
from edgekit.cli.output import print_json
from edgekit.cli.quality import quality_notes, quality_table
from edgekit.cli.runner_option import RUNNERS
from edgekit.cli.termination import clean_up_when_terminated
from edgekit.config import MAX_THREADS, RunnerName

__all__ = ["evaluate"]


@click.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="MODEL", help="The checkpoint it was exported from, as for export.")
@click.option(
    "--text", "text_path", required=True, type=click.Path(path_type=Path), help="UTF-8 text file to measure on."
)
@click.option("--window", type=int, default=512, show_default=True, help="Tokens per window.")
@click.option("--windows", type=int, default=16, show_default=True, help="Maximum number of windows.")
@click.option(
    "--runner",
    is_flag=False,
    flag_value="auto",
    type=RUNNERS,
    help="Also run the bundle, on this runner [auto], to include how it rounds activations.",
)
@click.option("--save", is_flag=True, help="Store the figures in the bundle's manifest.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write an HTML report.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads [one per usable core].")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def evaluate(
    *,
    bundle: Path,
    against: str,
    text_path: Path,
    window: int,
    windows: int,
    runner: RunnerName | None,
    save: bool,
    report_path: Path | None,
    threads: int | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE's quantization error: perplexity, KL divergence and top-1 agreement with its checkpoint.

    Both are computed in float32, layer by layer, so the figures show the error of the weights alone. Measure on a
    text that the recipe was not calibrated on.
    """
    from edgekit.export.evaluation.evaluate import EvaluationOptions
    from edgekit.export.evaluation.evaluate import evaluate as measure
    from edgekit.export.recipes.token_windows import read_text
    from edgekit.export.sources.open import open_checkpoint

    clean_up_when_terminated()

    opened = open_bundle(bundle)
    text = read_text(text_path)
    options = EvaluationOptions(window=window, windows=windows, runner=runner, threads=threads)
    with progress_bar() as bar, closing(open_checkpoint(against, revision=revision, report=bar)) as checkpoint:
        quality = measure(opened, checkpoint, text, options, bar)
    if save:
        opened = store_quality(opened, quality)
    if report_path is not None:
        from edgekit.export.evaluation.report import write_report

        write_report(report_path, opened.manifest, quality)
    if as_json:
        print_json(quality.to_dict())
        return
    console.print(quality_table(quality))
    for note in quality_notes(quality):
        stderr.print(note, style="dim")
