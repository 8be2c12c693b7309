"""Draws the ratios to the best peer as an SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["Bar", "draw"]

Bar = tuple[str, float, str]
"""Label, how many times better edgekit is, and the best peer."""

_ROW, _LABEL, _WIDTH, _HEAD, _PEER = 22, 330, 960, 34, 210
_AHEAD, _BEHIND, _INK, _GRID = "#2a7f62", "#b3562d", "#24292f", "#d0d7de"


def draw(panels: Sequence[tuple[str, Sequence[Bar]]], caption: str) -> str:
    """Return the SVG: a panel per model, a bar per ratio, on a logarithmic scale.

    Args:
        panels: Heading and bars of each panel.
        caption: One line below the panels.
    """
    values = [value for _, bars in panels for _, value, _ in bars] or [1.0]
    low = min(-1, math.floor(min(map(math.log2, values))))
    high = max(1, math.ceil(max(map(math.log2, values)) + 0.25))
    scale = (_WIDTH - _LABEL - _PEER) / (high - low)

    def x(value: float) -> float:
        return _LABEL + (math.log2(value) - low) * scale

    parts: list[str] = []
    y = 12
    for heading, bars in panels:
        y += _HEAD
        parts.append(_text(16, y - 12, heading, weight="bold"))
        bottom = y + _ROW * len(bars)
        for power in range(low, high + 1):
            tick = x(2.0**power)
            colour = _INK if power == 0 else _GRID
            parts.append(f'<line x1="{tick:.1f}" y1="{y}" x2="{tick:.1f}" y2="{bottom}" stroke="{colour}"/>')
            parts.append(_text(tick, bottom + 15, f"{2.0**power:g}×", anchor="middle", size=11))
        for label, value, peer in bars:
            left, right = sorted((x(1.0), x(value)))
            fill = _AHEAD if value >= 1 else _BEHIND
            size = f'width="{max(right - left, 1):.1f}" height="{_ROW - 8}"'
            parts.append(f'<rect x="{left:.1f}" y="{y + 4}" {size} fill="{fill}"/>')
            parts.append(_text(_LABEL - 12, y + 15, label, anchor="end"))
            # Of a bar to the left the text is on the right of the axis, where it cannot meet the label.
            parts.append(_text(right + 5, y + 15, f"{value:.2f} {peer}", size=12))
            y += _ROW
        y += 24
    y += 22
    parts.append(_text(16, y, caption, size=12))
    height = y + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
