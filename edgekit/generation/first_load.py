"""Runs a bundle's self-test when a runner loads it for the first time.

That a runner passed is remembered in the state folder, by everything that its results depend on: the bundle with its
files' hashes, the runner and its kernels, the libraries, edgekit, and the processor. Whatever changes, it is run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

from edgekit.atomic_file import replace_file
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.self_test import read_self_test
from edgekit.generation.prefix import model_fingerprint
from edgekit.machine import state_folder
from edgekit.runners.base import Runner
from edgekit.runners.self_test import check_self_test

__all__ = ["check_first_load"]

logger = logging.getLogger(__name__)

_FILE = "self-tests.json"
_MAX_KEPT = 64


def check_first_load(bundle: Bundle, runner: Runner) -> None:
    """Run the self-test of a bundle, unless this runner has passed it before or the bundle has none.

    Args:
        bundle: The bundle.
        runner: A runner that has loaded it, with empty sequence slots.

    Raises:
        RunnerError: `self_test_failed`: it computes wrong logits; or a step failed.
        BundleError: The self-test is damaged.
    """
    state = state_folder()
    passed = None if state is None else state / _FILE
    key = _key(bundle, runner)
    if key in _read(passed):
        return
    expected = read_self_test(bundle)
    if expected is None:
        logger.info("%s has no self-test", bundle.path)
        return
    start = time.monotonic()
    report = check_self_test(runner, expected)
    if not report.rows:
        logger.info("the context of %d tokens is too short for the self-test", runner.limits.context_length)
        return
    logger.info("self-test passed by %s in %.1f s: %s", report.runner, time.monotonic() - start, report)
    # A shorter context leaves rows out, and another start may have a longer one.
    if passed is not None and runner.limits.context_length >= len(expected.tokens):
        _write(passed, key)


def _key(bundle: Bundle, runner: Runner) -> str:
    """A digest of all that the results depend on; with several slots, the self-test runs in two of them."""
    several, chunk = runner.limits.sequence_slots > 1, runner.limits.max_chunk
    parts = [model_fingerprint(bundle.manifest, runner), several, chunk]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path | None) -> list[str]:
    """The keys that passed; none if the file is missing or damaged."""
    if path is None:
        return []
    try:
        keys = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [str(key) for key in keys] if isinstance(keys, list) else []


def _write(path: Path, key: str) -> None:
    """Add a key; the oldest are dropped."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, json.dumps([*_read(path), key][-_MAX_KEPT:]).encode())
    except OSError as error:
        logger.warning("cannot remember the self-test in %s: %s", path, error.strerror)
