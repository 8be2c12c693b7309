"""Time to the first token after a restart: with the prompt's beginning on disk or in memory, and without.

    python benchmarks/prefix.py BUNDLE [--tokens 1500] [--question 24] [--rounds 5]

One process answers `tokens` of system prompt with a question, saves and ends. A second one opens the folder and is
asked another question: in each round with nothing, from disk after the system forgot the files (Linux), from disk with
them in the system's memory, and from the cache's own memory; so a machine that slows down slows all of them. The first
logits must be equal, bit by bit, in all four. BUNDLE is for the `onnxruntime` dialect.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import open_bundle
from edgekit.generation.prefix import BLOCK_TOKENS, DiskStore, PrefixCache, model_fingerprint
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner

_DISK_BYTES = 2 << 30


def main() -> None:
    """Run both processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--question", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=BLOCK_TOKENS)
    parser.add_argument("--stage", choices=["first", "second"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        bench = _Bench(options)
        return bench.first() if options.stage == "first" else bench.second(options.rounds)
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:  # not /tmp, which may be memory
        for stage in ("first", "second"):
            command = [sys.executable, __file__, *sys.argv[1:], "--stage", stage, "--folder", folder]
            subprocess.run(command, check=True)
    return None


class _Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        manifest, length = open_bundle(options.bundle).manifest, options.tokens + options.question + 8
        kind, dialect = manifest.artifact.kind, manifest.artifact.dialect
        self._runner = open_runner(options.bundle, kind, dialect, context_length=length)
        self._fingerprint = model_fingerprint(manifest, self._runner)
        self._folder: Path = options.folder
        self._block: int = options.block
        rng, top = np.random.default_rng(1), self._runner.limits.vocab_size
        self._system: list[int] = rng.integers(top, size=options.tokens).tolist()
        self._questions: list[list[int]] = rng.integers(top, size=(2, options.question)).tolist()
        self._compute(self._system[:64], 0)  # the weights into memory

    def first(self) -> None:
        """Answer one question and save."""
        prompt = self._system + self._questions[0]
        cache, store = self._open(0)
        self._compute(prompt, 0)
        started = time.monotonic()
        cache.save(self._runner, 0, prompt, "", upto=len(self._system))
        saved = time.monotonic()
        assert store.flush(60)
        flushed = time.monotonic()
        cache.close()
        stats = store.stats()
        print(f"{stats.blocks} blocks of {self._block} tokens, {stats.used_bytes / 1e6:.0f} MB")
        print(f"saving held the caller up for {(saved - started) * 1e3:.0f} ms")
        print(f"everything was on disk {(flushed - saved) * 1e3:.0f} ms later")

    def second(self, rounds: int) -> None:
        """Answer another question in every way, again and again."""
        prompt = self._system + self._questions[1]
        seconds: dict[str, list[float]] = {"computed": [], "disk, cold": [], "disk, warm": [], "memory": []}
        restoring: dict[str, list[float]] = {name: [] for name in seconds}
        in_memory, store = self._open(1 << 30)
        in_memory.restore(self._runner_empty(), 0, prompt, "")
        store.close()  # the folder is opened anew each time, as after a restart
        for _ in range(rounds):
            expected = None
            for name, times in seconds.items():
                if name == "disk, cold":
                    self._forget()
                runner = self._runner_empty()
                started = time.monotonic()
                start, opened = 0, None
                if name == "memory":
                    start = in_memory.restore(runner, 0, prompt, "")
                elif name != "computed":
                    opened, _ = self._open(0)
                    start = opened.restore(runner, 0, prompt, "")
                restored = time.monotonic()
                logits = self._compute(prompt, start)
                times.append(time.monotonic() - started)
                restoring[name].append(restored - started)
                if opened:
                    opened.close()
                expected = logits if expected is None else expected
                assert np.array_equal(logits, expected), "another answer"
                assert name == "computed" or start == len(self._system) // self._block * self._block
        base = statistics.median(seconds["computed"])
        print(f"{'first logits from':<20}{'ms':>8}{'of it restoring':>17}{'times faster':>14}")
        for name, values in seconds.items():
            middle, back = statistics.median(values), statistics.median(restoring[name])
            print(f"{name:<20}{middle * 1e3:>8.0f}{back * 1e3:>17.0f}{base / middle:>14.1f}")

    def _open(self, memory_bytes: int) -> tuple[PrefixCache, DiskStore]:
        store = DiskStore(self._folder, max_bytes=_DISK_BYTES, fingerprint=self._fingerprint, queue_bytes=_DISK_BYTES)
        size = self._runner.limits.kv_bytes_per_token
        return PrefixCache(
            store,
            memory_bytes=memory_bytes,
            block_tokens=self._block,
            kv_bytes_per_token=size,
            fingerprint=self._fingerprint,
        ), store

    def _runner_empty(self) -> Runner:
        self._runner.truncate(0, 0)
        return self._runner

    def _compute(self, prompt: list[int], start: int) -> npt.NDArray[np.float32]:
        self._runner.truncate(0, start)
        logits = np.zeros((0, 0), np.float32)
        for at in range(start, len(prompt), 512):
            (logits,) = self._runner.run([Chunk(0, prompt[at : at + 512], exact=True)])
        return logits.copy()

    def _forget(self) -> None:
        """Make the system forget the files' contents, where it can be asked to."""
        if not hasattr(os, "posix_fadvise"):
            return
        for path in (self._folder / "prefix").iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
