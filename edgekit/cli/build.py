"""`edgekit build`."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.cli.console import console, progress_bar, stderr
from edgekit.cli.output import bytes_text, print_json, print_warning
from edgekit.cli.termination import clean_up_when_terminated
from edgekit.config import MIN_CONTEXT
from edgekit.errors import ConfigError, EdgekitError, IncompatibleBundleError, RunnerError, option

if TYPE_CHECKING:
    from edgekit.runners.self_test import Report
    from edgekit.runners.tensorrt.build import BuildProgress
    from edgekit.runners.tensorrt.prepare import PreparedEngine
    from edgekit.runners.tensorrt.store import StoredEngine
    from edgekit.target import Target

__all__ = ["build", "capability_of", "self_test_engine"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--segments", type=click.IntRange(min=1), help="Segments of layers to build [as memory requires].")
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="Of the GPU to build for, such as 8.7 [this machine's; without one, that of the bundle's targets].",
)
@click.option(
    "--context",
    "context_length",
    type=click.IntRange(min=1),
    help="Max tokens of a sequence [the bundle's, or the longest for which the device has memory].",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4),
    help="Max sequences that decode in one execution [4 if there is memory for weights in two layouts, else 1].",
)
@click.option("--chunk", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of a prefill chunk.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="New folder for the engine [edgekit's own]."
)
@click.option(
    "--from",
    "source",
    metavar="FOLDER|USER@HOST",
    help="Take the engine that a device of the same kind built: from a folder, or over ssh from the device.",
)
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def build(
    *,
    bundle: Path,
    segments: int | None,
    compute_capability: str | None,
    context_length: int | None,
    batch: int | None,
    chunk: int,
    output: Path | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Build BUNDLE's TensorRT engine for the GPU of this machine, or for another one."""
    from edgekit.bundle.check import check_bundle
    from edgekit.generation.engine_wanted import this_target
    from edgekit.runners.tensorrt.limits import engine_limits
    from edgekit.runners.tensorrt.open import library_of
    from edgekit.runners.tensorrt.prepare import check_artifact, check_output, plan_build, prepare_engine

    clean_up_when_terminated()
    if source is not None and output is not None:
        raise ConfigError(f"{option('source')} and {option('output')} exclude each other")
    if compute_capability is not None and not re.fullmatch(r"[0-9]{1,2}\.[0-9]", compute_capability):
        raise ConfigError(f"`{compute_capability}` is not a compute capability", hint="write it as 8.7")
    opened = open_bundle(bundle)
    check_artifact(opened)
    if output is not None:
        check_output(opened, output)
    _check_context(opened, context_length)
    with progress_bar() as bar:
        # For another machine, if a compute capability is given.
        check_bundle(opened, ignore_compatible=True, progress=lambda done, total: bar("verify", done, total))
        here = this_target()
        capability = compute_capability or capability_of(opened, here)
        device = here if compute_capability is None and _is_for(opened, here) else None
        limits = engine_limits(opened, device, context_length=context_length, batch=batch, chunk=chunk)
        # The device that built an engine chose its limits by its own memory.
        any_shapes = source is not None and context_length is None and batch is None
        plan = plan_build(
            opened,
            compute_capability=capability,
            limits=limits,
            segments=segments,
            any_shapes=any_shapes,
            # The one whose engines are looked for at start, if both are installed.
            prefer=library_of(opened),
        )
        _warn_of_another_library(opened, plan.library.name)
        _warn_of_a_fixed_cache(opened, plan.limits.context_length)
        shown = _Percent()

        def advance(progress: BuildProgress) -> None:
            bar("build, %", round(100 * progress.share), 100)
            shown(progress)

        prepared = prepare_engine(plan, output=output, source=source, progress=advance)
    # An engine for another machine cannot run here.
    runs_here = output is None and here.compute_capability == capability
    tested = self_test_engine(opened, prepared.stored) if runs_here else None
    if as_json:
        report = None if prepared.report is None else asdict(prepared.report)
        print_json(
            {
                "path": str(prepared.stored.folder),
                "engine": asdict(prepared.stored.engine),
                "build": report,
                "fetched": prepared.fetched,
                "self_test": None if tested is None else asdict(tested),
            }
        )
    else:
        _show(prepared, source)
        if tested is not None:
            console.print(f"self-test passed: {tested}")


def _check_context(bundle: Bundle, context_length: int | None) -> None:
    """Refuse an engine that is shorter than any that the daemon takes, or longer than its model."""
    longest = bundle.manifest.context_length
    shortest = min(MIN_CONTEXT, longest)
    if context_length is None or shortest <= context_length <= longest:
        return
    hint = f"{bundle.manifest.name} was exported for {longest} tokens"
    if context_length < shortest:
        hint = (
            f"an engine for fewer than {MIN_CONTEXT} tokens holds no chat, and `generation.context_length` is no less"
        )
    raise ConfigError(
        f"{option('context_length')} must be between {shortest} and {longest}, not {context_length}", hint=hint
    )


def self_test_engine(bundle: Bundle, stored: StoredEngine) -> Report | None:
    """Run a bundle's self-test on its engine; one that fails it is removed.

    Returns:
        The figures; None if the bundle has no self-test, or the engine cannot be opened here, which is a warning.

    Raises:
        RunnerError: `self_test_failed`: the engine computes wrong logits; or a step failed.
    """
    from contextlib import closing

    from edgekit.bundle.self_test import read_self_test
    from edgekit.cli.self_test import SLOTS
    from edgekit.runners.self_test import check_self_test
    from edgekit.runners.tensorrt.open import open_engine
    from edgekit.runners.tensorrt.store import EngineStore

    expected = read_self_test(bundle)
    if expected is None:
        return None
    try:
        runner = open_engine(bundle, stored, context_length=len(expected.tokens), sequence_slots=SLOTS)
    except EdgekitError as error:
        print_warning(f"the engine is not tested: {error.message}", error.hint)
        return None
    with closing(runner):
        try:
            report = check_self_test(runner, expected)
        except RunnerError as error:
            if error.code == "self_test_failed":
                EngineStore().remove(stored)
            raise
    if not report.rows:
        print_warning("the engine is not tested: its context is too short for the self-test", None)
        return None
    return report


def _is_for(bundle: Bundle, here: Target) -> bool:
    """Whether a bundle is for the GPU of a machine."""
    return here.compute_capability is not None and bool(set(bundle.manifest.compatible) & set(here.accepts))


def capability_of(bundle: Bundle, here: Target) -> str:
    """Return the compute capability of this machine's GPU, if a bundle is for it, else that of the bundle's targets.

    Args:
        bundle: The bundle.
        here: This machine.

    Raises:
        IncompatibleBundleError: The bundle is for no target with a GPU of NVIDIA's that this edgekit knows.
    """
    from edgekit.profile import unreadable
    from edgekit.target import load_targets

    if here.compute_capability is not None and _is_for(bundle, here):
        return here.compute_capability
    capabilities = {
        target.compute_capability
        for target in load_targets()
        if target.compatible in bundle.manifest.compatible and target.compute_capability
    }
    if not capabilities:
        raise IncompatibleBundleError(
            f"no known target is compatible with {', '.join(bundle.manifest.compatible)}",
            hint="; ".join(error.message for error in unreadable()) or None,
        )
    return min(capabilities)


def _warn_of_another_library(bundle: Bundle, library: str) -> None:
    """Say so if the library's engines do not run on the devices that a bundle is for."""
    from edgekit.target import load_targets

    runners = {
        runner
        for target in load_targets()
        if target.compatible in bundle.manifest.compatible
        for runner in target.profile.export.runners
    }
    if runners and library not in runners:
        print_warning(
            f"{library} builds for other devices than {', '.join(bundle.manifest.compatible)}: this engine shows what "
            "the build takes, and does not run there",
            f"edgekit build {bundle.path}, on the device",
        )


def _warn_of_a_fixed_cache(bundle: Bundle, context_length: int) -> None:
    """Say what a cache of fixed length costs, where it is longer than short chats need."""
    from edgekit.runners.buckets import FIRST_BUCKET

    if bundle.manifest.artifact.dialect == "native" and context_length > 2 * FIRST_BUCKET:
        print_warning(
            f"an engine of the `native` dialect reads all {context_length:,} positions of its KV cache for every "
            "token, however few of them it holds",
            "build for a short --context, or export for the `portable` dialect",
        )


class _Percent:
    """Prints the progress where there is no bar: every few seconds, if there is any."""

    _INTERVAL_S = 5.0

    def __init__(self) -> None:
        self._next = time.monotonic() + self._INTERVAL_S
        self._last = ""

    def __call__(self, progress: BuildProgress) -> None:
        if stderr.is_terminal or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._INTERVAL_S
        text = f"building, {progress.share:.0%}, segment {progress.segment + 1} of {progress.segments}"
        if text != self._last:
            self._last = text
            stderr.print(text)


def _show(prepared: PreparedEngine, source: str | None) -> None:
    engine, report = prepared.stored.engine, prepared.report
    count = len(engine.segments)
    console.print(
        Text.assemble(
            (str(prepared.stored.folder), "bold"),
            f"  {bytes_text(engine.size)} in {count} segment{'s' if count > 1 else ''}, {engine.library} "
            f"{engine.version} for {engine.capability_text}, {engine.context_length:,} tokens",
        )
    )
    if report is None:
        kept = "there already" if source is None else f"there already: nothing was copied from {source}"
        console.print("copied and verified" if prepared.fetched else kept)
        return
    console.print(f"built in {report.seconds:.0f} s, peak memory {bytes_text(report.peak_memory_bytes)}")
    if report.scratch_bytes is not None:
        console.print(f"a step needs {bytes_text(report.scratch_bytes)} beside weights, KV cache, inputs and outputs")
    for name, profile in (("one token", report.decode), ("a chunk", report.prefill), ("a batch", report.batch)):
        if profile is not None:
            console.print(
                f"a step of {name}: {profile.kernels} kernels, {profile.int4} matrix products read INT4, "
                f"{len(profile.expanded)} do not, {len(profile.cache_copies)} kernels copy the KV cache"
            )
    if report.int4_bytes and report.int4_kept is False:
        print_warning("the builder expanded INT4 matrices: the engine is larger and slower than it should be", None)
    if report.decode is not None and report.decode.cache_copies:
        print_warning("a step of one token copies the KV cache: it is slower than it should be", None)
    for warning in report.warnings:
        stderr.print(f"  {warning}", style="dim")
