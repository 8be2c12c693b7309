"""`edgekit info` and `edgekit verify`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from edgekit.bundle.bundle import Bundle, open_bundle, verify_bundle
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.quality import Quality
from edgekit.cli.console import console, progress_bar, stderr
from edgekit.cli.output import bytes_text, print_json
from edgekit.cli.quality import quality_notes, quality_table
from edgekit.cli.runner_option import RUNNERS
from edgekit.cli.self_test import check_results, run_self_tests
from edgekit.cli.termination import clean_up_when_terminated
from edgekit.errors import BundleError, ConfigError, EdgekitError, option

__all__ = ["info", "verify"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the quality figures as an HTML report.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def info(*, bundle: Path, report_path: Path | None, as_json: bool) -> None:
    """Show BUNDLE's model, recipe, size, memory, licence, compatible devices and quality figures."""
    manifest = open_bundle(bundle).manifest
    if report_path is not None:
        from edgekit.export.evaluation.report import write_report

        if not manifest.quality:
            raise BundleError(
                f"{bundle} was not measured",
                hint=f"edgekit eval {bundle} --against CHECKPOINT --text FILE --save --report {report_path}",
            )
        write_report(report_path, manifest, Quality.from_dict(manifest.quality))
    if as_json:
        print_json(manifest.to_dict())
        return
    weights, per_token = manifest.memory.weights, manifest.memory.kv_cache_per_token
    full = per_token * manifest.context_length
    kind = f"{manifest.artifact.kind} {manifest.artifact.dialect}".strip()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for row in (
        ("model", f"{manifest.name}  ({manifest.architecture}, {manifest.parameters / 1e6:,.0f} M parameters)"),
        ("compatible", ", ".join(manifest.compatible)),
        ("artifact", kind),
        *(("runner here", text) for text in _runner_here(bundle, manifest)),
        ("recipe", str(manifest.recipe.get("summary", ""))),
        ("weights", bytes_text(weights)),
        (
            "context",
            f"{manifest.context_length:,} tokens; KV cache {bytes_text(per_token)} each, {bytes_text(full)} when full",
        ),
        *(("sampling", f"{text} where a request says nothing") for text in _sampling(manifest)),
        ("licence", manifest.licence),
        ("source", str(manifest.source.get("id", ""))),
        ("created", f"{manifest.created} by edgekit {manifest.edgekit}"),
        ("files", ", ".join(f"{entry.path} ({bytes_text(entry.size)})" for entry in manifest.files)),
    ):
        table.add_row(*row)
    console.print(table)
    if manifest.quality:
        quality = Quality.from_dict(manifest.quality)
        console.print()
        console.print(quality_table(quality))
        for note in quality_notes(quality):
            console.print(note, style="dim")


def _sampling(manifest: Manifest) -> Iterator[str]:
    """The model's own sampling defaults, if it has any."""
    if manifest.sampling:
        yield ", ".join(f"{name} {value}" for name, value in sorted(manifest.sampling.items()))


def _runner_here(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The runner that this machine would use, and why not a better one."""
    try:
        from edgekit.runners import expected_runner

        label, rejected = expected_runner(folder, manifest.artifact.kind, manifest.artifact.dialect)
    except (ImportError, BundleError):
        # Without numpy nothing runs here; damage is for `edgekit verify` to report.
        return
    except EdgekitError as error:
        yield f"none: {error.message}"
        return
    yield "; ".join((label, *(f"not {one}" for one in rejected)))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--build", is_flag=True, help="Also parse and build the graph with TensorRT for RTX.")
@click.option("--run", is_flag=True, help="Also run the self-test on every runner that this machine has for BUNDLE.")
@click.option("--runner", type=RUNNERS, help="With --run: only on this runner.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def verify(*, bundle: Path, build: bool, run: bool, runner: str | None, as_json: bool) -> None:
    """Check every byte of BUNDLE against its manifest."""
    clean_up_when_terminated()
    if runner is not None and not run:
        hint = f"edgekit verify {bundle} --run --runner {runner}"
        raise ConfigError(f"{option('runner')} is for {option('run')}", hint=hint)
    opened = open_bundle(bundle)
    total = sum(entry.size for entry in opened.manifest.files)
    done = 0
    with progress_bar() as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar("hash", done, total)

        problems = verify_bundle(opened, advance)
    if problems:
        if as_json:
            print_json({"sound": False, "problems": [{"path": p.path, "what": p.what} for p in problems]})
        for problem in problems:
            stderr.print(f"  {problem.detail}")
        raise BundleError(
            f"{bundle} is damaged: {', '.join(problem.path for problem in problems)}", hint="copy or export it again"
        )
    result: dict[str, object] = {"sound": True, "files": len(opened.manifest.files), "bytes": total}
    if build:
        result["build"] = _build(opened, quiet=as_json)
    results = None
    if run:
        results = result["run"] = run_self_tests(opened, runner=runner or "auto", quiet=as_json)
    if as_json:
        print_json(result)
    else:
        console.print(f"{bundle} is sound: {len(opened.manifest.files)} files, {bytes_text(total)}")
    if results is not None:
        check_results(opened, results)


def _build(bundle: Bundle, *, quiet: bool) -> dict[str, object]:
    """Parse and build the graph with TensorRT for RTX and report the result."""
    from edgekit.cli.build import capability_of
    from edgekit.generation.engine_wanted import this_target
    from edgekit.machine import available_bytes
    from edgekit.runners.tensorrt.build import build_engine, installed_library, open_chain
    from edgekit.runners.tensorrt.build_memory import choose_segments
    from edgekit.runners.tensorrt.engine_set import capability_text
    from edgekit.runners.tensorrt.prepare import check_artifact
    from edgekit.runners.tensorrt.shapes import BuildLimits

    check_artifact(bundle)
    capability = capability_of(bundle, this_target())
    if not quiet:
        stderr.print("building with TensorRT for RTX …", style="dim")
    chain, limits = open_chain(bundle.path, BuildLimits())
    report = build_engine(
        chain,
        limits,
        compute_capability=capability,
        segments=choose_segments(chain, installed_library("tensorrt_rtx").name, available_bytes()),
        prefer="tensorrt_rtx",
    )
    profiles = [
        (name, one)
        for name, one in (("one token", report.decode), ("a chunk", report.prefill), ("a batch", report.batch))
        if one
    ]
    if report.int4_bytes and report.int4_kept is False:
        expanded = [node for _, profile in profiles for node in profile.expanded]
        raise BundleError(
            f"the builder expanded {len(expanded)} of the INT4 matrices, first that of {expanded[0]}: the engine has "
            f"{bytes_text(report.engine_bytes)}, the graph {bytes_text(report.graph_bytes)}"
        )
    if not quiet:
        int4 = "INT4 weights kept" if report.int4_kept else "no INT4 weights" if not report.int4_bytes else "unknown"
        console.print(
            f"built by {report.library} {report.version} for "
            f"{capability_text(report.compute_capability, report.built_for)} in {report.seconds:.1f} s, peak memory "
            f"{bytes_text(report.peak_memory_bytes)}\n"
            f"engine {bytes_text(report.engine_bytes)}, graph {bytes_text(report.graph_bytes)}: {int4}"
        )
        for name, profile in profiles:
            console.print(
                f"a step of {name}: {profile.kernels} kernels, {profile.int4} matrix products read INT4, "
                f"{len(profile.expanded)} do not, {len(profile.cache_copies)} kernels copy the KV cache"
            )
        for warning in report.warnings:
            stderr.print(f"  {warning}", style="dim")
    return asdict(report)
