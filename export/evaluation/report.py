"""Renders quality figures as one HTML page: a summary table, the error after each layer, and of each weight matrix.

The page is self-contained: style and charts (SVG) are inline, it has no script and loads nothing. Every value in a
chart is also in the page as text, in tooltips and tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from re import fullmatch

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.quality import Figures, Quality
from edgekit.errors import ConfigError

__all__ = ["html_report", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --line: #d5dae3; --mark: #1f6feb; --page: #ffffff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ef; --dim: #98a2b3; --line: #3a4252; --mark: #6ea8ff; --page: #14181f }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
p { margin: .3rem 0 } .dim { color: var(--dim); font-size: .9rem } .warning { color: #b42318; font-weight: 600 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem 1rem .3rem 0 } th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 1px solid var(--line); font-weight: 600 } tbody th { font-weight: 400 }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--dim); font: 12px system-ui, sans-serif }
details { margin-top: .6rem } summary { cursor: pointer; color: var(--dim); font-size: .9rem }
code { font-size: .9em; overflow-wrap: anywhere }
"""
_WIDTH, _LEFT, _RIGHT = 900.0, 70.0, 12.0


def write_report(path: Path, manifest: Manifest, quality: Quality) -> None:
    """Write the page.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        path.write_text(html_report(manifest, quality), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the report {path}: {error.strerror}") from error


def html_report(manifest: Manifest, quality: Quality) -> str:
    """Return the page.

    Args:
        manifest: The manifest of the measured bundle.
        quality: The figures.
    """
    title = f"{manifest.name} for {', '.join(manifest.compatible)}: quality"
    stored = "" if quality.against_stored == "float" else f", which stores {quality.against_stored}"
    parts = [
        f"<h1>{escape(manifest.name)}</h1>",
        _paragraph(f"for {', '.join(manifest.compatible)} · {manifest.recipe.get('summary', '')}"),
        _paragraph(f"against {quality.against}{stored}", "dim"),
        _paragraph(
            f"{quality.tokens:,} tokens of {quality.text}, in {quality.windows} windows of {quality.window}, each a "
            "separate sequence",
            "dim",
        ),
        f'<p class="dim">SHA-256 of the text: <code>{escape(quality.text_sha256)}</code></p>',
    ]
    if quality.calibrated:
        parts.append(
            _paragraph("The recipe was calibrated on this same text, so the figures flatter the bundle.", "warning")
        )
    parts += ["<h2>Compared with the checkpoint</h2>", _figures_table(quality)]
    parts.append(
        _paragraph(
            "Bundle and checkpoint are evaluated with the same float32 computation, so the differences are the error "
            "of the stored weights alone. "
            + (
                "The error that a runner adds by rounding activations is not included."
                if quality.runner is None
                else "Only the runner's column includes the error that it adds by rounding activations."
            ),
            "dim",
        )
    )
    if quality.layers:
        parts += [
            "<h2>Error of the hidden states after each layer</h2>",
            _paragraph("|h' - h| / |h|, averaged over tokens", "dim"),
            _bars(quality.layers),
            _layers_table(quality.layers),
        ]
    grid = _by_layer(quality.matrices)
    if quality.matrices:
        parts += [
            "<h2>Error of the weight matrices</h2>",
            _paragraph(f"|W' - W| / |W|, {_range(grid)}", "dim"),
            *([_heat_map(grid)] if grid else []),
            _matrices_table(quality.matrices),
        ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f'<p class="dim">Measured by edgekit; the bundle was created on {escape(manifest.created)} with edgekit '
        f"{escape(manifest.edgekit)}.</p>\n</body>\n</html>\n"
    )


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def _figures_table(quality: Quality) -> str:
    columns = [("bundle", quality.weights)]
    if quality.runner is not None:
        columns.append(("bundle in its runner", quality.runner))

    def row(name: str, checkpoint: str, values: Iterator[str]) -> str:
        cells = "".join(f"<td>{value}</td>" for value in (checkpoint, *values))
        return f"<tr><th>{escape(name)}</th>{cells}</tr>"

    all_figures: list[Figures] = [figures for _, figures in columns]
    rows = [
        row("perplexity", f"{quality.perplexity:.3f}", (f"{figures.perplexity:.3f}" for figures in all_figures)),
        row("KL divergence, mean (nats per token)", "", (f"{figures.kl_mean:.5f}" for figures in all_figures)),
        row("KL divergence, 99th percentile", "", (f"{figures.kl_p99:.4f}" for figures in all_figures)),
        row("same most likely token", "", (f"{figures.top1:.2%}" for figures in all_figures)),
    ]
    headers = "".join(f"<th>{name}</th>" for name in ("", "checkpoint", *(name for name, _ in columns)))
    return f"<table>\n<thead><tr>{headers}</tr></thead>\n<tbody>{''.join(rows)}</tbody>\n</table>"


def _bars(errors: Sequence[float]) -> str:
    """A bar chart with one bar per layer and round axis ticks."""
    height, bottom, top = 262.0, 38.0, 10.0
    ticks = _ticks(max(errors))
    plot_height = height - bottom - top
    step = (_WIDTH - _LEFT - _RIGHT) / len(errors)

    def y(value: float) -> float:
        return top + plot_height * (1 - value / ticks[-1]) if ticks[-1] else top + plot_height

    shapes = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_percent(tick)}</text>'
        for tick in ticks
    ]
    for index, error in enumerate(errors):
        x = _LEFT + step * index
        shapes.append(
            f'<rect x="{x + step * 0.12:.1f}" y="{y(error):.1f}" width="{step * 0.76:.1f}" '
            f'height="{y(0) - y(error):.1f}" fill="var(--mark)"><title>layer {index}: {_percent(error)}</title></rect>'
        )
    shapes += _layer_labels(len(errors), step, y(0) + 16)
    shapes.append(f'<text x="{_WIDTH / 2}" y="{height - 5}" text-anchor="middle">layer</text>')
    return _svg(height, "Error of the hidden states after each layer", shapes)


def _heat_map(grid: Mapping[str, Mapping[int, float]]) -> str:
    """A heat map with one row per kind of matrix and one column per layer."""
    count = 1 + max(index for row in grid.values() for index in row)
    step, line = (_WIDTH - _LEFT - _RIGHT) / count, 26.0
    smallest, largest = _extremes(grid)
    span = (largest - smallest) or 1.0
    shapes = []
    for number, (name, row) in enumerate(grid.items()):
        y = number * line
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + line / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        shapes += [
            f'<rect x="{_LEFT + step * index:.1f}" y="{y + 1:.1f}" width="{max(step - 1, 0.5):.1f}" '
            f'height="{line - 2}" fill="var(--mark)" fill-opacity="{0.1 + 0.9 * (value - smallest) / span:.3f}">'
            f"<title>layer {index}, {escape(name)}: {_percent(value)}</title></rect>"
            for index, value in row.items()
        ]
    below = len(grid) * line
    shapes += _layer_labels(count, step, below + 14)
    shapes.append(f'<text x="{_WIDTH / 2}" y="{below + 32}" text-anchor="middle">layer</text>')
    return _svg(below + 38, "Error of the weight matrices, by kind and layer", shapes)


def _layer_labels(count: int, step: float, y: float) -> Iterator[str]:
    """Layer numbers along the axis, as many as fit."""
    every = next((n for n in (1, 2, 5, 10, 20) if step * n >= 24), 50)
    for index in range(0, count, every):
        yield f'<text x="{_LEFT + step * (index + 0.5):.1f}" y="{y:.1f}" text-anchor="middle">{index}</text>'


def _svg(height: float, label: str, shapes: Sequence[str]) -> str:
    inside = "\n".join(shapes)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>'


def _layers_table(errors: Sequence[float]) -> str:
    rows = "".join(f"<tr><th>{index}</th><td>{_percent(error)}</td></tr>" for index, error in enumerate(errors))
    return _details("As a table", ("layer", "error"), rows)


def _matrices_table(errors: Mapping[str, float]) -> str:
    rows = "".join(
        f"<tr><th><code>{escape(name)}</code></th><td>{_percent(value)}</td></tr>" for name, value in errors.items()
    )
    return _details("As a table, including the embedding and the output head", ("matrix", "error"), rows)


def _details(summary: str, headers: tuple[str, str], rows: str) -> str:
    cells = "".join(f"<th>{name}</th>" for name in headers)
    table = f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>{rows}</tbody>\n</table>"
    return f"<details><summary>{summary}</summary>\n{table}\n</details>"


def _by_layer(errors: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Group errors by kind of matrix and layer: `{"q_proj": {0: 0.08}}`."""
    grid: dict[str, dict[int, float]] = {}
    for name, value in errors.items():
        match = fullmatch(r"model\.layers\.(\d{1,4})\.\w+\.(\w+)\.weight", name)
        if match:
            grid.setdefault(match[2], {})[int(match[1])] = value
    return grid


def _extremes(grid: Mapping[str, Mapping[int, float]]) -> tuple[float, float]:
    values = [value for row in grid.values() for value in row.values()]
    return min(values), max(values)


def _range(grid: Mapping[str, Mapping[int, float]]) -> str:
    if not grid:
        return "by matrix"
    smallest, largest = _extremes(grid)
    return f"from {_percent(smallest)} (faintest colour) to {_percent(largest)} (strongest)"


def _ticks(largest: float) -> list[float]:
    """Round axis ticks from 0 to at least the largest value, at most six."""
    if largest <= 0:
        return [0.0, 0.01]
    size = 1e-9
    while True:
        for factor in (1, 2, 5):
            step = size * factor
            if largest / step <= 5:
                count = int(-(-largest // step))
                return [step * i for i in range(count + 1)]
        size *= 10


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"
