"""The option `--quick` of every benchmark: small sizes, to show in a minute that it works."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["parse"]


def parse(parser: argparse.ArgumentParser, quick: Mapping[str, Any]) -> argparse.Namespace:
    """Parse the command line of a benchmark, which gets the option `--quick`.

    Args:
        parser: The benchmark's parser.
        quick: Defaults that `--quick` replaces, by destination.
    """
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows in a minute that it works; the figures mean nothing"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**quick)
        arguments = parser.parse_args()
        print("--quick: shows that the benchmark works; the figures mean nothing", file=sys.stderr)
    return arguments
