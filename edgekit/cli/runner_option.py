"""The option `--runner`."""

from __future__ import annotations

from typing import get_args

import click

from edgekit.config import RunnerName

__all__ = ["RUNNERS", "runner_option"]

RUNNERS = click.Choice(get_args(RunnerName))

runner_option = click.option(
    "--runner", type=RUNNERS, default="auto", show_default=True, help="What runs the model; `auto` takes the best."
)
