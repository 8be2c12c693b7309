"""`edgekit verify --run`: runs a bundle's self-test on every runner of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from edgekit.bundle.bundle import Bundle
from edgekit.cli.console import console
from edgekit.errors import BundleError, EdgekitError, RunnerError

__all__ = ["SLOTS", "check_results", "run_self_tests"]

SLOTS = 2
"""The prompt runs in two sequence slots, so that steps over several slots are checked too."""


def run_self_tests(bundle: Bundle, *, runner: str = "auto", quiet: bool) -> list[dict[str, object]]:
    """Run the self-test on each runner, and print a table of the figures unless `quiet`.

    Args:
        bundle: The bundle.
        runner: `auto` for all runners of its artifact, or the name of one.
        quiet: Print nothing.

    Returns:
        For each runner the fields of its `Report`, the `seconds` it took and `tokens_per_s`, or why it was
        `skipped`, or `failed` in a step.

    Raises:
        BundleError: The bundle has no self-test.
        ConfigError: `runner` is none that runs its artifact.
    """
    from edgekit.bundle.self_test import read_self_test
    from edgekit.runners import named_candidates
    from edgekit.runners.candidates import LoadOptions
    from edgekit.runners.self_test import self_test

    artifact = bundle.manifest.artifact
    listed = named_candidates(artifact.kind, artifact.dialect, runner)
    expected = read_self_test(bundle)
    if expected is None:
        reason = bundle.manifest.self_test.get("none", "it was exported by an older version of edgekit")
        raise BundleError(f"{bundle.path} has no self-test: {reason}", code="no_self_test")
    context = min(len(expected.tokens), bundle.manifest.context_length)
    results: list[dict[str, object]] = []
    options = LoadOptions(context, sequence_slots=SLOTS)
    for candidate in listed:
        start = time.monotonic()
        try:
            loaded = candidate.offer(bundle.path, artifact.dialect).load(options)
        except EdgekitError as error:
            results.append({"runner": candidate.title, "skipped": error.message, "hint": error.hint})
            continue
        with closing(loaded):
            begun = time.monotonic()
            try:
                report = self_test(loaded, expected)
            except RunnerError as error:
                failed = {"runner": str(loaded.backend), "name": candidate.title, "ok": False, "failed": error.message}
                results.append(failed)
                continue
            tested = time.monotonic() - begun
        figures = {**asdict(report), "name": candidate.title, "seconds": round(time.monotonic() - start, 2)}
        tokens = min(SLOTS, loaded.limits.sequence_slots) * context
        results.append({**figures, "tokens_per_s": round(tokens / tested, 1) if tested else None})
    if not quiet:
        _print(results)
    return results


def _print(results: Sequence[Mapping[str, Any]]) -> None:
    from edgekit.runners.self_test import MAX_KL

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("runner", "self-test", "error of the logits", "KL, nats", "top-1", "tokens/s", "s"):
        table.add_column(column)
    for one in results:
        if "rows" not in one:
            continue
        result = Text("passed", "green") if one["ok"] else Text("FAILED", "red")
        variant = str(one["runner"]).partition(" (")[2]
        name = f"{one['name']} ({variant}" if variant else one["name"]
        error = f"{one['error']:.2%} (at most {one['max_error']:.0%})"
        kl, top = f"{one['kl']:.2g} (at most {MAX_KL:g})", f"{one['top1'] * one['rows']:.0f} of {one['rows']}"
        table.add_row(name, result, error, kl, top, f"{one['tokens_per_s'] or 0:,.0f}", f"{one['seconds']:.1f}")
    if table.row_count:
        console.print(table)
        console.print("tokens/s of its short steps; `edgekit bench` measures speed", style="dim")
    for one in results:
        if "failed" in one:
            console.print(f"{one['name']} FAILED: {one['failed']}", style="red")
        elif "skipped" in one:
            hint = f" (hint: {one['hint']})" if one["hint"] else ""
            console.print(f"not run by {one['runner']}: {one['skipped']}{hint}", style="dim")


def check_results(bundle: Bundle, results: Sequence[Mapping[str, object]]) -> None:
    """Check the results of `run_self_tests`.

    Raises:
        RunnerError: A runner computes wrong logits, or none can run the bundle.
    """
    ran = [result for result in results if "ok" in result]
    broken = [result for result in ran if "failed" in result]
    if broken:
        reasons = "; ".join(f"{result['name']}: {result['failed']}" for result in broken)
        raise RunnerError(f"the self-test of {bundle.path} failed: {reasons}", code="self_test_failed")
    failed = [str(result["runner"]) for result in ran if not result["ok"]]
    if failed:
        raise RunnerError(
            f"{' and '.join(failed)} computed wrong logits with {bundle.path}",
            hint="export the bundle again; if it fails again, please report this with the figures",
            code="self_test_failed",
        )
    if not ran:
        reasons = "; ".join(f"{result['runner']}: {result['skipped']}" for result in results)
        hints = dict.fromkeys(str(result["hint"]) for result in results if result.get("hint"))
        raise RunnerError(f"no runner of this machine can run {bundle.path}: {reasons}", hint="; ".join(hints) or None)
