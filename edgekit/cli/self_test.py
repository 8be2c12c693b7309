"""`edgekit verify --run`: runs a bundle's self-test on every runner of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict

from edgekit.bundle.bundle import Bundle
from edgekit.cli.output import console, stderr
from edgekit.errors import BundleError, EdgekitError, RunnerError

__all__ = ["check_results", "run_self_tests"]

# The prompt runs in two sequence slots, so that steps over several slots are checked too.
_SLOTS = 2


def run_self_tests(bundle: Bundle, *, quiet: bool) -> list[dict[str, object]]:
    """Run the self-test on each runner, and print the figures unless `quiet`.

    Returns:
        For each runner the fields of its `Report` and the `seconds` it took, or why it was `skipped`.

    Raises:
        BundleError: The bundle has no self-test.
        RunnerError: A step failed.
    """
    from edgekit.bundle.self_test import read_self_test
    from edgekit.runners.candidates import LoadOptions, candidates
    from edgekit.runners.self_test import self_test

    expected = read_self_test(bundle)
    if expected is None:
        reason = bundle.manifest.self_test.get("none", "it was exported by an older version of edgekit")
        raise BundleError(f"{bundle.path} has no self-test: {reason}", code="no_self_test")
    context = min(len(expected.tokens), bundle.manifest.context_length)
    results: list[dict[str, object]] = []
    artifact, options = bundle.manifest.artifact, LoadOptions(context, sequence_slots=_SLOTS)
    for candidate in candidates(artifact.kind, artifact.dialect):
        start = time.monotonic()
        try:
            runner = candidate.offer(bundle.path, artifact.dialect).load(options)
        except EdgekitError as error:
            results.append({"runner": candidate.title, "skipped": error.message})
            if not quiet:
                stderr.print(f"not run by {candidate.title}: {error.message}", style="dim")
            continue
        with closing(runner):
            report = self_test(runner, expected)
        seconds = time.monotonic() - start
        results.append({**asdict(report), "name": candidate.title, "seconds": round(seconds, 2)})
        if not quiet:
            console.print(f"{'passed' if report.ok else 'FAILED'} by {candidate.title} in {seconds:.1f} s: {report}")
    return results


def check_results(bundle: Bundle, results: Sequence[Mapping[str, object]]) -> None:
    """Check the results of `run_self_tests`.

    Raises:
        RunnerError: A runner computes wrong logits, or none can run the bundle.
    """
    ran = [result for result in results if "ok" in result]
    failed = [str(result["runner"]) for result in ran if not result["ok"]]
    if failed:
        raise RunnerError(
            f"{' and '.join(failed)} computed wrong logits with {bundle.path}",
            hint="export the bundle again; if it fails again, please report this with the figures",
            code="self_test_failed",
        )
    if not ran:
        reasons = "; ".join(f"{result['runner']}: {result['skipped']}" for result in results)
        raise RunnerError(f"no runner of this machine can run {bundle.path}: {reasons}")
