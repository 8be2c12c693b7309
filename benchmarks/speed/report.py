"""Figures to Markdown tables and to the JSON that is kept. It measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from speed.rounds import Outcome

__all__ = ["markdown", "ratios", "stored"]

Stored = Mapping[str, Any]


def stored(outcome: Outcome, **facts: str) -> dict[str, Any]:
    """An outcome as it is kept: every round's figures, and what else is to be known about the run."""
    return {**asdict(outcome), **facts}


def medians(table: Stored, label: str) -> dict[str, float]:
    """A row's figures."""
    return {key: statistics.median(values) for key, values in table["rows"][label]["figures"].items()}


def ratios(table: Stored) -> dict[str, float]:
    """How many times better edgekit is than the better peer, by figure: 2 is twice the speed or half the time."""
    own = medians(table, "edgekit")
    peers = [medians(table, label) for label, row in table["rows"].items() if row["engine"] != "edgekit"]
    found = {}
    for figure in table["figures"]:
        key, better = figure["key"], figure["better"]
        values = [peer[key] for peer in peers if key in peer]
        if better is None or key not in own or not values:
            continue
        best = max(values) if better == "more" else min(values)
        if own[key] and best:
            found[key] = own[key] / best if better == "more" else best / own[key]
    return found


def markdown(model: str, table: Stored) -> str:
    """One table with a heading, and below it the ratios."""
    figures = table["figures"]
    found = ratios(table)
    lines = [
        f"**{model}. {table['title']}**",
        "",
        f"Median of {table['rounds']} rounds, {table['date']}, {table['machine']}; bundle: {table['bundle']}.",
        "",
        "| | " + " | ".join(figure["title"] for figure in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    for label, row in table["rows"].items():
        values = medians(table, label)
        cells = [f"{values[f['key']]:.{f['digits']}f}" if f["key"] in values else "" for f in figures]
        head, _, form = label.partition(",")
        lines.append(f"| {head} {row['version']}{f',{form}' if form else ''} | " + " | ".join(cells) + " |")
    if found:
        cells = [f"**{found[f['key']]:.2f}**" if f["key"] in found else "" for f in figures]
        lines.append("| **edgekit / better peer** | " + " | ".join(cells) + " |")
    lines += [f"\n{label} is left out: {why}" for label, why in table["left_out"].items()]
    return "\n".join(lines) + "\n"
