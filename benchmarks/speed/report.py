"""Formats figures as Markdown tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from speed.rounds import Outcome

__all__ = ["comparison", "markdown", "medians", "ratios", "stored"]

Stored = Mapping[str, Any]


def stored(outcome: Outcome, **facts: str) -> dict[str, Any]:
    """Convert an outcome for JSON: every round's figures, and facts about the run."""
    return {**asdict(outcome), **facts}


def medians(table: Stored, label: str) -> dict[str, float]:
    """Return a row's median figures."""
    return {key: statistics.median(values) for key, values in table["rows"][label]["figures"].items()}


def ratios(table: Stored) -> dict[str, tuple[float, str]]:
    """Return edgekit's advantage over the best peer, and that peer's row, by figure.

    An advantage of 2 is twice the speed or half the time.
    """
    own = medians(table, "edgekit")
    peers = {label: medians(table, label) for label, row in table["rows"].items() if row["engine"] != "edgekit"}
    found = {}
    for figure in table["figures"]:
        key = figure["key"]
        label = _best(figure, peers)
        if label is None or not own.get(key) or not peers[label][key]:
            continue
        ratio = own[key] / peers[label][key]
        found[key] = (ratio if figure["better"] == "more" else 1 / ratio, label)
    return found


def _best(figure: Stored, rows: Mapping[str, Mapping[str, float]]) -> str | None:
    """Return the label of the row with the best value of a figure; None if the figure is not compared."""
    values = {label: row[figure["key"]] for label, row in rows.items() if figure["key"] in row}
    if figure["better"] is None or not values:
        return None
    return (max if figure["better"] == "more" else min)(values, key=values.__getitem__)


def markdown(model: str, table: Stored) -> str:
    """Format one table with a heading and a row of ratios."""
    figures = table["figures"]
    found = ratios(table)
    rounds = "One round" if table["rounds"] == 1 else f"Median of {table['rounds']} rounds"
    lines = [
        f"**{model}. {table['title']}**",
        "",
        f"{rounds}, {table['date']}, {table['machine']}; bundle: {table['bundle']}.",
        "",
        "| | " + " | ".join(figure["title"] for figure in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    for label, row in table["rows"].items():
        values = medians(table, label)
        cells = [_cell(figure, values) for figure in figures]
        name, _, form = label.partition(",")
        lines.append(f"| {name} {row['version']}{f',{form}' if form else ''} | " + " | ".join(cells) + " |")
    if found:
        cells = [f"**{found[f['key']][0]:.2f}**" if f["key"] in found else "" for f in figures]
        lines.append("| **edgekit / best peer** | " + " | ".join(cells) + " |")
    lines += [f"\n{label} is left out: {why}" for label, why in table["left_out"].items()]
    return "\n".join(lines) + "\n"


def comparison(model: str, tables: Mapping[str, Stored]) -> str:
    """Format the compared figures of all scenarios as one table: a column per engine, at its best over its rows.

    Args:
        model: The model's name.
        tables: Results by scenario.
    """
    names: dict[str, str] = {}
    lines = []
    for table in tables.values():
        for label, row in table["rows"].items():
            names.setdefault(label.partition(",")[0], row["version"])
    for scenario, table in tables.items():
        rows = {label: medians(table, label) for label in table["rows"] if label != "edgekit, runner only"}
        found = ratios(table)
        for figure in table["figures"]:
            if figure["better"] is None:
                continue
            cells = []
            for name in names:
                best = _best(figure, {label: row for label, row in rows.items() if label.partition(",")[0] == name})
                cells.append("" if best is None else _cell(figure, rows[best]))
            cells.append(f"**{found[figure['key']][0]:.2f}**" if figure["key"] in found else "")
            lines.append(f"| {scenario}: {figure['title']} | " + " | ".join(cells) + " |")
    head = " | ".join([model, *(f"{name} {version}" for name, version in names.items()), "**edgekit / best peer**"])
    return "\n".join([f"| {head} |", "|---" * (len(names) + 2) + "|", *lines]) + "\n"


def _cell(figure: Stored, values: Mapping[str, float]) -> str:
    return f"{values[figure['key']]:.{figure['digits']}f}" if figure["key"] in values else ""
