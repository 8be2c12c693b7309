"""Speed on the CPU of bundles for other devices: on our kernels, and on onnxruntime, beside the bundle for the CPU.

    scripts/bench on_cpu BUNDLE [BUNDLE…] [--prompt 256] [--decode 32] [--rounds 5]

The bundles are of one model; the first is what the others are compared with. Each round runs a prompt and then single
tokens on every runner, one after the other; medians of the rounds, seconds to load, and the memory that loading takes.
A graph for TensorRT runs on onnxruntime with FP16 activations, as a checker does; `--kernels-only` leaves that out.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from quick import parse

from edgekit.bundle.bundle import open_bundle
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner

MIB = 1 << 20


def opened(folder: Path, runner: str, context: int, threads: int | None) -> tuple[Runner, float, float]:
    """Load a bundle; return its runner, the seconds and the MiB that took."""
    artifact = open_bundle(folder).manifest.artifact
    gc.collect()
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    found = open_runner(
        folder, artifact.kind, artifact.dialect, context_length=context, threads=threads, max_chunk=512, runner=runner,
        shares_cores=True,
    )  # fmt: skip
    return found, time.perf_counter() - start, (psutil.Process().memory_info().rss - before) / MIB


def measure(runner: Runner, tokens: list[int], prompt: int) -> tuple[float, float]:
    """Return tokens/s of the prompt, and of single tokens after it."""
    runner.truncate(0, 0)
    start = time.perf_counter()
    for at in range(0, prompt, 512):
        runner.run([Chunk(0, tokens[at : min(at + 512, prompt)], "last")])
    middle = time.perf_counter()
    for token in tokens[prompt:]:
        runner.run([Chunk(0, [token], "last")])
    return prompt / (middle - start), (len(tokens) - prompt) / (time.perf_counter() - middle)


def main() -> int:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens after it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: one per usable core")
    parser.add_argument("--kernels-only", action="store_true", help="leave onnxruntime out")
    options = parse(parser, {"prompt": 32, "decode": 4, "rounds": 1})
    count = options.prompt + options.decode
    subjects: dict[str, tuple[Runner, float, float]] = {}
    for folder in options.bundle:
        for runner in ("auto",) if options.kernels_only else ("auto", "onnxruntime"):
            found = opened(folder, runner, count, options.threads)
            subjects[f"{folder.name} on {found[0].backend}"] = found
    vocab = min(runner.limits.vocab_size for runner, *_ in subjects.values())
    tokens = np.random.default_rng(0).integers(0, vocab, count).tolist()
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for at in range(options.rounds + 1):
        for name, (runner, *_) in subjects.items():
            measured = measure(runner, tokens, options.prompt)
            if at > 0:  # the first warms up
                figures[name].append(measured)
    print("| | loaded, s | MiB | prompt, tokens/s | ratio | decode, tokens/s | ratio |\n|---|---|---|---|---|---|---|")
    medians = {name: [statistics.median(row[at] for row in rows) for at in (0, 1)] for name, rows in figures.items()}
    first = next(iter(medians.values()))
    for name, (_, seconds, mib) in subjects.items():
        parts = [f"{value:,.1f} | {value / base:.2f}" for value, base in zip(medians[name], first, strict=True)]
        print(f"| {name} | {seconds:.2f} | {mib:,.0f} | {' | '.join(parts)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
