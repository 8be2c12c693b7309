"""Repeatedly kills a process that saves prefixes to disk, and checks the remaining files.

    scripts/bench kill_store [BUNDLE] [--kills 200] [--seed 1]

BUNDLE is any bundle of the `onnxruntime` dialect; default: a tiny model with random weights. The checks are in
`tests/generation/prefix/killing.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quick import parse

from tests.generation.bundles import tiny_bundle
from tests.generation.prefix.killing import kill_again_and_again


def main() -> None:
    """Run the kills and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parse(parser, {"kills": 5})
    logging.disable(logging.WARNING)  # one per torn file
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle or tiny_bundle(Path(name), "onnx")
        started = time.monotonic()
        outcome = kill_again_and_again(bundle.resolve(), Path(name) / "cache", options.kills, seed=options.seed)
        took = time.monotonic() - started
    print(f"{outcome.kills} kills in {took:.0f} s, {outcome.halves} of them in the middle of a write")
    print(f"{outcome.torn} files torn on purpose, {outcome.refused} of them refused when read, the rest at open")
    print(f"{outcome.restored} tokens restored; their KV cache and the following logits are bit-identical")
    print(f"slowest open: {outcome.slowest_open_s * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
