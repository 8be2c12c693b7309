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
from edgekit.cli.output import bytes_text, console, print_json, print_warning, progress_bar, stderr
from edgekit.cli.termination import clean_up_when_terminated
from edgekit.errors import ConfigError, IncompatibleBundleError, option

if TYPE_CHECKING:
    from edgekit.runners.tensorrt.build import BuildProgress
    from edgekit.runners.tensorrt.prepare import PreparedEngine

__all__ = ["build", "capability_of"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--segments", type=click.IntRange(min=1), help="Segments of layers to build [as memory requires].")
@click.option("--compute-capability", metavar="X.Y", help="Of the GPU to build for, such as 8.7 [this machine's].")
@click.option(
    "--context", "context_length", type=click.IntRange(min=1), default=4096, show_default=True, help="Max tokens."
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
    context_length: int,
    chunk: int,
    output: Path | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Build BUNDLE's TensorRT engine for the GPU of this machine, or for another one."""
    from edgekit.bundle.check import check_bundle
    from edgekit.runners.tensorrt.open import library_of
    from edgekit.runners.tensorrt.prepare import check_artifact, plan_build, prepare_engine
    from edgekit.runners.tensorrt.shapes import BuildLimits

    clean_up_when_terminated()
    if source is not None and output is not None:
        raise ConfigError(f"{option('source')} and {option('output')} exclude each other")
    if compute_capability is not None and not re.fullmatch(r"[0-9]{1,2}\.[0-9]", compute_capability):
        raise ConfigError(f"`{compute_capability}` is not a compute capability", hint="write it as 8.7")
    opened = open_bundle(bundle)
    check_artifact(opened)
    with progress_bar() as bar:
        # For another machine, if a compute capability is given.
        check_bundle(opened, ignore_compatible=True, progress=lambda done, total: bar("verify", done, total))
        capability = compute_capability or capability_of(opened)
        limits = BuildLimits(chunk=chunk, context_length=context_length)
        # The one whose engines are looked for at start, if both are installed.
        prefer = library_of(opened)
        plan = plan_build(opened, compute_capability=capability, limits=limits, segments=segments, prefer=prefer)
        _warn_of_another_library(opened, plan.library.name)
        shown = _Percent()

        def advance(progress: BuildProgress) -> None:
            bar("build, %", round(100 * progress.share), 100)
            shown(progress)

        prepared = prepare_engine(plan, output=output, source=source, progress=advance)
    if as_json:
        report = None if prepared.report is None else asdict(prepared.report)
        print_json({"path": str(prepared.stored.folder), "engine": asdict(prepared.stored.engine), "build": report})
    else:
        _show(prepared)


def capability_of(bundle: Bundle) -> str:
    """Return the compute capability of this machine's GPU, else that of the targets that a bundle is for.

    Raises:
        IncompatibleBundleError: The bundle is for no target with a GPU of NVIDIA's that this edgekit knows.
    """
    from edgekit.machine import probe
    from edgekit.profile import unreadable
    from edgekit.recognition import recognise
    from edgekit.target import load_targets

    here = recognise(probe())
    if here.compute_capability and set(bundle.manifest.compatible) & set(here.accepts):
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


class _Percent:
    """Prints the progress where there is no bar, a line every few seconds."""

    _INTERVAL_S = 5.0

    def __init__(self) -> None:
        self._next = time.monotonic() + self._INTERVAL_S

    def __call__(self, progress: BuildProgress) -> None:
        if stderr.is_terminal or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._INTERVAL_S
        stderr.print(f"{progress.share:.0%}, segment {progress.segment + 1} of {progress.segments}")


def _show(prepared: PreparedEngine) -> None:
    engine, report = prepared.stored.engine, prepared.report
    count = len(engine.segments)
    console.print(
        Text.assemble(
            (str(prepared.stored.folder), "bold"),
            f"  {bytes_text(engine.size)} in {count} segment{'s' if count > 1 else ''}, {engine.library} "
            f"{engine.version} for {engine.built_for or engine.compute_capability}, {engine.context_length:,} tokens",
        )
    )
    if report is None:
        console.print("copied and verified" if prepared.fetched else "there already")
        return
    console.print(f"built in {report.seconds:.0f} s, peak memory {bytes_text(report.peak_memory_bytes)}")
    if report.scratch_bytes is not None:
        console.print(f"a step needs {bytes_text(report.scratch_bytes)} beside weights, KV cache, inputs and outputs")
    for name, profile in (("one token", report.decode), ("a chunk", report.prefill)):
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
