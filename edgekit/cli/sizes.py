"""Parses sizes with units, for options."""

from __future__ import annotations

import re

import click

__all__ = ["size_in_bytes"]


def size_in_bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the bytes of a size with or without a unit: `900MiB`, `1.2GB`."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMG])(i?))?B?", value, re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{value!r} is not a size such as 900MiB or 1.2GB", ctx, param)
    number, prefix, binary = match.groups()
    power = " KMG".index((prefix or " ").upper())
    return int(float(number) * (1024 if binary else 1000) ** power)
