"""Kills a process that saves prefixes, at random moments, and checks what is left: for the tests and `benchmarks/`.

The process runs prompts of a small pool on a real runner, with a cache whose disk holds half of them, so it writes and
evicts all the time. After each SIGKILL the folder must be within its limit and open at once; no block may be damaged,
since each gets its name only when it is complete; and restored KV cache, and the logits computed after it, must equal
those of a run without a cache, bit by bit. Between two kills a file is torn as by a power cut.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.bundle import open_bundle
from edgekit.generation.prefix import DiskStore, PrefixCache, model_fingerprint
from edgekit.generation.prefix.block_file import HEADER_BYTES
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner

__all__ = ["Outcome", "kill_again_and_again"]

BLOCK_TOKENS = 16
PROMPTS = 12
# Complete blocks and an odd remainder.
PROMPT_TOKENS = 8 * BLOCK_TOKENS + 7
TENANT = "kitchen"
PAGE = 4096


@dataclass(slots=True)
class Outcome:
    """Counts of a run.

    Attributes:
        kills: Processes killed.
        halves: Kills in the middle of a write: there was a temporary file.
        torn: Files torn on purpose.
        refused: Torn files that were rejected when read; the others were too short to contain a block.
        restored: Tokens restored and verified.
        slowest_open_s: Longest time to open the folder.
    """

    kills: int = 0
    halves: int = 0
    torn: int = 0
    refused: int = 0
    restored: int = 0
    slowest_open_s: float = 0.0


def kill_again_and_again(bundle: Path, folder: Path, kills: int, *, seed: int = 0) -> Outcome:
    """Kill and check so many times; any fault raises AssertionError."""
    rng, witness = np.random.default_rng(seed), _Witness(bundle, folder)
    outcome = witness.outcome
    for number in range(kills):
        _kill(bundle, folder, seed=seed * 1_000_000 + number, after_s=rng.uniform(0, 0.25))
        outcome.kills += 1
        outcome.halves += (folder / "prefix" / "writing.tmp").exists()
        before = outcome.restored
        assert witness.look() == 0, "the kill damaged a block"
        assert outcome.restored > before, "nothing survived the process"
        if _tear(folder, rng):
            outcome.torn += 1
            outcome.refused += witness.look()
            assert witness.look() == 0, "a torn file is still there"
    return outcome


class _Witness:
    """Computes every prompt without a cache, and compares."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.outcome = Outcome()
        self._bundle, self._folder = bundle, folder
        self._runner = _runner(bundle)
        self._prompts = _prompts(self._runner)
        self._expected = [_compute(self._runner, prompt, 0) for prompt in self._prompts]

    def look(self) -> int:
        """Restore and compare all prompts; returns the number of damaged blocks found."""
        runner, outcome = self._runner, self.outcome
        assert _taken(self._folder) <= _cap(runner), "the limit was exceeded"
        started = time.monotonic()
        store, cache = _open(self._bundle, self._folder, runner)
        outcome.slowest_open_s = max(outcome.slowest_open_s, time.monotonic() - started)
        assert not (self._folder / "prefix" / "writing.tmp").exists(), "a partial block was left"
        for prompt, (kv, logits) in zip(self._prompts, self._expected, strict=True):
            runner.truncate(0, 0)
            start = cache.restore(runner, 0, prompt, TENANT)
            got_kv, got_logits = _compute(runner, prompt, start)
            assert got_kv == kv, "different KV cache"
            assert np.array_equal(got_logits, logits), "different logits"
            outcome.restored += start
        # Also those that no prompt reaches any more.
        remaining = store._index.keys()
        for key in remaining:
            store.get(key)
        cache.close()
        return store.stats().damaged


def _runner(bundle: Path) -> Runner:
    manifest = open_bundle(bundle).manifest
    kind, dialect = manifest.artifact.kind, manifest.artifact.dialect
    return open_runner(bundle, kind, dialect, context_length=manifest.context_length, threads=1)


def _prompts(runner: Runner) -> list[list[int]]:
    """The pool: every three share a prefix."""
    tokens = np.random.default_rng(7).integers(runner.limits.vocab_size, size=(PROMPTS, PROMPT_TOKENS))
    tokens[:, : PROMPT_TOKENS // 2] = tokens[np.arange(PROMPTS) // 3, : PROMPT_TOKENS // 2]
    return [list(map(int, prompt)) for prompt in tokens]


def _cap(runner: Runner) -> int:
    block = -(-(BLOCK_TOKENS * runner.limits.kv_bytes_per_token + HEADER_BYTES) // PAGE) * PAGE
    return PROMPTS * (PROMPT_TOKENS // BLOCK_TOKENS) // 2 * block


def _open(bundle: Path, folder: Path, runner: Runner) -> tuple[DiskStore, PrefixCache]:
    fingerprint = model_fingerprint(open_bundle(bundle).manifest, runner)
    store = DiskStore(folder, max_bytes=_cap(runner), fingerprint=fingerprint)
    assert store.active, "the folder does not open"
    size = runner.limits.kv_bytes_per_token
    return store, PrefixCache(
        store, memory_bytes=0, block_tokens=BLOCK_TOKENS, kv_bytes_per_token=size, fingerprint=fingerprint
    )


def _compute(runner: Runner, prompt: list[int], start: int) -> tuple[bytes, npt.NDArray[np.float32]]:
    """Compute a prompt from `start` on; returns its KV cache and its last logits."""
    runner.truncate(0, start)
    (logits,) = runner.run([Chunk(0, prompt[start:], exact=True)])
    return runner.read_kv(0, 0, len(prompt)), logits.copy()


def _tear(folder: Path, rng: np.random.Generator) -> bool:
    """Damage one file as a power cut may: truncate it, or zero a page."""
    files = sorted((folder / "prefix").glob("*.kv"))
    if not files:
        return False
    victim = files[rng.integers(len(files))]
    size = victim.stat().st_size
    if rng.random() < 0.5:
        os.truncate(victim, int(rng.integers(size)))
    else:
        offset = int(rng.integers(-(-size // PAGE))) * PAGE
        with victim.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(min(PAGE, size - offset)))
    return True


def _taken(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in (folder / "prefix").iterdir())


def _kill(bundle: Path, folder: Path, *, seed: int, after_s: float) -> None:
    command = [sys.executable, "-m", "tests.generation.prefix.killing", str(bundle), str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout
        assert process.stdout.readline() == "working\n", "the process did not start"
        time.sleep(after_s)
        assert process.poll() is None, "the process ended by itself"
        process.send_signal(signal.SIGKILL)


def _work(bundle: Path, folder: Path, seed: int) -> None:
    """Run the process that is killed."""
    rng = np.random.default_rng(seed)
    runner = _runner(bundle)
    store, cache = _open(bundle, folder, runner)
    pool = _prompts(runner)
    for number in range(1_000_000):
        prompt = pool[rng.integers(len(pool))]
        runner.truncate(0, 0)
        _compute(runner, prompt, cache.restore(runner, 0, prompt, TENANT))
        cache.save(runner, 0, prompt, TENANT, upto=len(prompt))
        if number == 0:
            assert store.flush(60)
            print("working", flush=True)  # noqa: T201  the signal to the parent


if __name__ == "__main__":
    _work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
