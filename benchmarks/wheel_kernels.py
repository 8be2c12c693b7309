"""Speed of the kernels in a wheel beside those that this machine's C compiler builds from the same sources.

    scripts/bench wheel_kernels dist/edgekit_llm-…-manylinux_2_28_x86_64.whl [--bundle FOLDER] [--rounds 11]

scripts/wheels compiles with zig, an installation from source with the system's compiler. Each round runs a prompt and
then single tokens on both libraries, one after the other and in turn first; medians of the rounds, and their ratio, for
each variant that this processor supports. Exits with 1 if the wheel has less than --min-ratio of the speed anywhere.
The model is random, with 12 layers of SmolLM2-135M's shape, unless a bundle is given.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from quick import parse

from edgekit.runners.base import Chunk
from edgekit.runners.cpu.build import FOLDER, LIBRARY, SOURCES, compile_kernels, find_compiler
from edgekit.runners.cpu.library import Kernels, load
from edgekit.runners.cpu.onnx_reader.match_model import ModelDescription, describe
from edgekit.runners.cpu.runner import CpuRunner

ROOT = Path(__file__).parent.parent
PROMPT, DECODED = 128, 32


def kernels_of_wheel(wheel: Path, folder: Path) -> Kernels:
    """Unpack a wheel and load its kernels."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return loaded(folder / FOLDER.relative_to(ROOT))


def kernels_of_compiler(folder: Path) -> Kernels:
    """Compile the kernels with the system's compiler, and load them."""
    (folder / SOURCES).symlink_to(FOLDER / SOURCES)
    compiler = find_compiler()
    compile_kernels(compiler, FOLDER / SOURCES, folder / LIBRARY)
    print(f"compiled by {' '.join(compiler.command)} ({compiler.target})", file=sys.stderr)
    return loaded(folder)


def loaded(folder: Path) -> Kernels:
    """Load a library."""
    found = load({}, folder)
    if not isinstance(found, Kernels):
        sys.exit(f"error: {folder}: {found.reason}")
    return found


def model_of(bundle: Path | None) -> ModelDescription:
    """Describe a bundle's model, or a random one."""
    if bundle is not None:
        return describe(bundle)
    sys.path.insert(0, str(ROOT))
    from tests.runners.cpu.models import random_model

    shape = {"hidden": 576, "intermediate": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 12}
    return random_model(vocab_size=4096, positions=512, **shape)


def measure(runner: CpuRunner, tokens: list[int]) -> tuple[float, float]:
    """Return tokens/s of the prompt, and of single tokens after it."""
    runner.truncate(0, 0)
    time.sleep(0.02)  # the other library's threads spin for a moment after a step
    start = time.perf_counter()
    runner.run([Chunk(0, tokens[:PROMPT], "last")])
    middle = time.perf_counter()
    for token in tokens[PROMPT:]:
        runner.run([Chunk(0, [token], "last")])
    return PROMPT / (middle - start), DECODED / (time.perf_counter() - middle)


def compare(
    model: ModelDescription, libraries: dict[str, Kernels], rounds: int, report: Callable[[str], None]
) -> float:
    """Measure every variant that all libraries have, and return the smallest ratio."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, PROMPT + DECODED).tolist()
    smallest = float("inf")
    shared = [name for name in libraries["wheel"].variants if name in libraries["compiler"].variants]
    report("| variant | | wheel, tokens/s | compiler, tokens/s | ratio |\n|---|---|---|---|---|")
    for variant in shared:
        runners = {
            name: CpuRunner(model, replace(kernels, variant=variant), max_chunk=PROMPT)
            for name, kernels in libraries.items()
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
        for at in range(rounds + 1):
            for name in sorted(runners, reverse=at % 2 == 1):
                figures = measure(runners[name], tokens)
                if at > 0:  # the first warms up
                    found[name].append(figures)
        for which, label in enumerate(("prompt", "decode")):
            wheel, compiler = (
                statistics.median(figures[which] for figures in found[name]) for name in ("wheel", "compiler")
            )
            smallest = min(smallest, wheel / compiler)
            report(f"| {variant} | {label} | {wheel:,.1f} | {compiler:,.1f} | {wheel / compiler:.3f} |")
        for runner in runners.values():
            runner.close()
    return smallest


def main() -> int:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "wheel", type=Path, nargs="?", help="built by scripts/wheels; default with --quick: compiled here, as the other"
    )
    parser.add_argument("--bundle", type=Path, help="a bundle for the CPU; default: a random model")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--min-ratio", type=float, default=0.95)
    options = parse(parser, {"rounds": 1, "min_ratio": 0.0})
    if options.wheel is None and not options.quick:
        parser.error("no wheel; scripts/wheels builds one")
    model = model_of(options.bundle)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        libraries = {
            "wheel": kernels_of_wheel(options.wheel, Path(first))
            if options.wheel
            else kernels_of_compiler(Path(first)),
            "compiler": kernels_of_compiler(Path(second)),
        }
        smallest = compare(model, libraries, options.rounds, lambda line: print(line, flush=True))
    print(f"\nsmallest ratio {smallest:.3f}, {options.min_ratio} is enough")
    return 0 if smallest >= options.min_ratio else 1


if __name__ == "__main__":
    sys.exit(main())
