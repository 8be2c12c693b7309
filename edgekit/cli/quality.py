"""Quality figures in the terminal, for `edgekit eval` and `edgekit info`."""

from __future__ import annotations

from rich.table import Table

from edgekit.bundle.quality import Quality

__all__ = ["quality_notes", "quality_table"]


def quality_table(quality: Quality) -> Table:
    """The figures, one column each for checkpoint, bundle and runner."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("quality")
    columns = [("checkpoint", None), ("bundle", quality.weights), ("bundle in its runner", quality.runner)]
    shown = [(name, figures) for name, figures in columns if figures is not None or name == "checkpoint"]
    for name, _ in shown:
        table.add_column(name, justify="right")
    measured = [figures for _, figures in shown if figures is not None]
    table.add_row("perplexity", f"{quality.perplexity:.3f}", *(f"{one.perplexity:.3f}" for one in measured))
    table.add_row("KL divergence, mean (nats per token)", "", *(f"{one.kl_mean:.5f}" for one in measured))
    table.add_row("KL divergence, 99th percentile", "", *(f"{one.kl_p99:.4f}" for one in measured))
    table.add_row("same most likely token", "", *(f"{one.top1:.2%}" for one in measured))
    if quality.layers:
        table.add_row("error of the hidden states at the end", "", f"{quality.layers[-1]:.2%}")
    return table


def quality_notes(quality: Quality) -> list[str]:
    """Notes on how the figures were measured, one line each."""
    stored = "" if quality.against_stored == "float" else f", which stores {quality.against_stored}"
    counted = f"{quality.tokens:,} tokens of {quality.text} (SHA-256 {quality.text_sha256[:12]}…)"
    notes = [
        f"{counted}, {quality.windows} windows of {quality.window}",
        f"against {quality.against}{stored}",
    ]
    if quality.calibrated:
        notes.append("the recipe was calibrated on this text, which flatters the figures; measure on another")
    return notes
