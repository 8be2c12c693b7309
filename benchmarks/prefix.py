"""Time to first token after a restart, with the prompt's prefix cached on disk, in memory, or not at all.

    scripts/bench prefix [BUNDLE] [--tokens 1500] [--question 24] [--rounds 5]

One process answers a question after a system prompt of `tokens`, saves the prefix and exits. A second process opens the
folder and answers another question, in each round in four ways, so that a slowdown of the machine affects all of them:
without a cache, from disk with a cold page cache (Linux), from disk with a warm one, and from the in-memory cache. The
first logits must be bit-identical in all four. BUNDLE is of the `onnxruntime` dialect; default: SmolLM2-135M.
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
from inputs.bundles import exported, tiny_bundle
from quick import parse

from edgekit.bundle.bundle import open_bundle
from edgekit.generation.prefix import BLOCK_TOKENS, DiskStore, PrefixCache, model_fingerprint
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner

_DISK_BYTES = 2 << 30


def main() -> None:
    """Run both processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--question", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=BLOCK_TOKENS)
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for the bundle and the prefixes")
    parser.add_argument("--stage", choices=["first", "second"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    # The tiny bundle has a context of 256 tokens.
    options = parse(parser, {"tokens": 100, "question": 8, "rounds": 1, "block": 16})
    if options.stage:
        bench = _Bench(options)
        return bench.first() if options.stage == "first" else bench.second(options.rounds)
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as name:  # not in /tmp, which may be memory
        folder = Path(name)
        if options.bundle is None:
            options.bundle = tiny_bundle(folder, "onnx") if options.quick else exported(options.work)
        sizes = [f"--{key}={getattr(options, key)}" for key in ("tokens", "question", "rounds", "block")]
        for stage in ("first", "second"):
            command = [sys.executable, __file__, options.bundle, *sizes, f"--stage={stage}", f"--folder={folder}"]
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
        self._compute(self._system[:64], 0)  # load the weights into memory

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
        print(f"saving blocked the caller for {(saved - started) * 1e3:.0f} ms")
        print(f"everything was on disk {(flushed - saved) * 1e3:.0f} ms later")

    def second(self, rounds: int) -> None:
        """Answer another question in every way, `rounds` times."""
        prompt = self._system + self._questions[1]
        seconds: dict[str, list[float]] = {"computed": [], "disk, cold": [], "disk, warm": [], "memory": []}
        restoring: dict[str, list[float]] = {name: [] for name in seconds}
        in_memory, store = self._open(1 << 30)
        in_memory.restore(self._runner_empty(), 0, prompt, "")
        store.close()  # the folder is reopened each time, as after a restart
        for _ in range(rounds):
            expected = None
            for name, times in seconds.items():
                if name == "disk, cold":
                    self._drop_page_cache()
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
                assert np.array_equal(logits, expected), "the logits differ"
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

    def _drop_page_cache(self) -> None:
        """Drop the files from the page cache, if the system supports it."""
        if not hasattr(os, "posix_fadvise"):
            return
        for path in (self._folder / "prefix").iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
