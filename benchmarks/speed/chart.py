"""Draws the ratios against the better peer as one SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["Bar", "draw"]

Bar = tuple[str, float]
"""What was measured, and how many times better edgekit is."""

_ROW, _LABEL, _WIDTH, _HEAD = 22, 330, 860, 34
_AHEAD, _BEHIND, _INK, _GRID = "#2a7f62", "#b3562d", "#24292f", "#d0d7de"


def draw(panels: Sequence[tuple[str, Sequence[Bar]]], caption: str) -> str:
    """Return the SVG: a panel for each model, a bar for each ratio on a scale of powers of two.

    Args:
        panels: Heading and bars of each.
        caption: One line below all.
    """
    every = [value for _, bars in panels for _, value in bars] or [1.0]
    low = min(-1, math.floor(min(map(math.log2, every))))
    high = max(1, math.ceil(max(map(math.log2, every)) + 0.25))
    scale = (_WIDTH - _LABEL - 60) / (high - low)

    def x(value: float) -> float:
        return _LABEL + (math.log2(value) - low) * scale

    parts: list[str] = []
    y = 12
    for heading, bars in panels:
        y += _HEAD
        parts.append(_text(16, y - 12, heading, weight="bold"))
        bottom = y + _ROW * len(bars)
        for power in range(low, high + 1):
            place = x(2.0**power)
            colour = _INK if power == 0 else _GRID
            parts.append(f'<line x1="{place:.1f}" y1="{y}" x2="{place:.1f}" y2="{bottom}" stroke="{colour}"/>')
            parts.append(_text(place, bottom + 15, f"{2.0**power:g}×", anchor="middle", size=11))
        for label, value in bars:
            left, right = sorted((x(1.0), x(value)))
            fill = _AHEAD if value >= 1 else _BEHIND
            size = f'width="{max(right - left, 1):.1f}" height="{_ROW - 8}"'
            parts.append(f'<rect x="{left:.1f}" y="{y + 4}" {size} fill="{fill}"/>')
            parts.append(_text(_LABEL - 12, y + 15, label, anchor="end"))
            shown = f"{value:.2f}"
            if value >= 1:
                parts.append(_text(right + 5, y + 15, shown, size=12))
            else:
                parts.append(_text(left - 5, y + 15, shown, anchor="end", size=12))
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
