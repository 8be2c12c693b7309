"""Kill a process that saves prefixes to disk, again and again, and check what is left.

    python benchmarks/kill_store.py BUNDLE [--kills 200] [--seed 1]

BUNDLE is any for the `onnxruntime` dialect; without one, a tiny model with random weights is written and
used. What is checked stands in `tests/generation/prefix/killing.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.generation.bundles import tiny_bundle
from tests.generation.prefix.killing import kill_again_and_again


def main() -> None:
    """Kill, look, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a line for every torn file
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle or tiny_bundle(Path(name), "onnx")
        started = time.monotonic()
        outcome = kill_again_and_again(bundle.resolve(), Path(name) / "cache", options.kills, seed=options.seed)
        took = time.monotonic() - started
    print(f"{outcome.kills} kills in {took:.0f} s, {outcome.halves} of them in the middle of a write")
    print(f"{outcome.torn} files torn by hand, {outcome.refused} of them refused when read, the rest at open")
    print(f"{outcome.restored} tokens put back; their KV cache and the logits behind them equal, bit by bit")
    print(f"slowest open: {outcome.slowest_open_s * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
