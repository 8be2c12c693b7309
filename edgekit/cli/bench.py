"""`edgekit bench`: a bundle's speed on this machine."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.console import stderr
from edgekit.cli.loading import interruptible, open_verified
from edgekit.cli.output import print_json
from edgekit.cli.runner_option import runner_option
from edgekit.config import MAX_PARALLEL, MAX_THREADS, GenerationConfig
from edgekit.errors import ConfigError, EdgekitError

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.cli.bench_report import Measured
    from edgekit.jetson.device import Jetson

__all__ = ["bench"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--device", is_flag=True, help="Print one block of Markdown, with this machine, to paste into an issue.")
@click.option(
    "-p", "--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, help="Tokens to prefill."
)
@click.option("-n", "--decode-tokens", type=click.IntRange(2), default=128, show_default=True, help="Decoded after it.")
@click.option(
    "--streams",
    type=click.IntRange(1, MAX_PARALLEL),
    default=1,
    show_default=True,
    help="Also decode so many answers at the same time.",
)
@click.option("-r", "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds; medians are shown.")
@runner_option
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads [one per usable core].")
@click.option("--context-length", type=int, help="Maximum tokens of a sequence [the bundle's].")
@click.option("--ignore-compatible", is_flag=True, help="Measure a bundle that was made for other targets.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def bench(
    *,
    bundle: Path | None,
    device: bool,
    prompt_tokens: int,
    decode_tokens: int,
    streams: int,
    rounds: int,
    runner: str,
    threads: int | None,
    context_length: int | None,
    ignore_compatible: bool,
    as_json: bool,
) -> None:
    """Measure BUNDLE's speed: tokens/s of prompt and decoding, time to the first token, load time, memory.

    It runs on the runner that the daemon would choose, through the same engine, without speculative decoding and
    prefix cache. Ctrl-C prints what was measured. With --device alone, only the machine is described.
    """
    from edgekit.cli.bench_report import Measured, print_block, print_figures, report_json
    from edgekit.generation.speed import Workload
    from edgekit.jetson.device import find_jetson

    if bundle is None and not device:
        raise ConfigError("no bundle to measure", hint="edgekit bench BUNDLE, or --device for this machine alone")
    measured = Measured(Workload(prompt_tokens, decode_tokens, streams), rounds)
    failure: EdgekitError | None = None
    if bundle is not None:
        try:
            opened = open_verified(bundle, ignore_compatible=ignore_compatible)
            measured.manifest = opened.manifest
            _measure(opened, measured, find_jetson(), runner=runner, threads=threads, context_length=context_length)
        except EdgekitError as error:
            if not device:
                raise
            # What does not work is worth reporting too.
            failure, measured.failure = error, error
    if as_json:
        print_json(report_json(measured, device=device, folder=bundle))
    elif device:
        print_block(measured, folder=bundle)
    elif measured.rounds:
        print_figures(measured)
    if failure is not None:
        raise failure
    if measured.interrupted:
        raise click.exceptions.Exit(130)


def _measure(
    bundle: Bundle,
    measured: Measured,
    jetson: Jetson | None,
    *,
    runner: str,
    threads: int | None,
    context_length: int | None,
) -> None:
    """Load and measure, and keep in `measured` what is known so far."""
    from edgekit.generation.speed import load_for_speed, rounds
    from edgekit.jetson.energy import EnergyMeter
    from edgekit.jetson.watch import BoardWatch
    from edgekit.machine import peak_memory_bytes

    workload = measured.workload
    workload.check(context_length or bundle.manifest.context_length)
    before = _free_bytes(jetson)
    load = partial(
        load_for_speed,
        bundle,
        runner=runner,
        threads=threads,
        context_length=context_length,
        # As the daemon does: with several sequence slots, a runner may compute differently.
        parallel=max(GenerationConfig().parallel, workload.streams),
    )
    measured.loaded = loaded = interruptible(f"loading {bundle.manifest.name} …", load)
    with ExitStack() as resources:
        resources.enter_context(closing(loaded.model))
        meter = None
        if jetson is not None:
            watch = BoardWatch(jetson)
            watch.start()
            resources.callback(lambda: setattr(measured, "conditions", watch.conditions()))
            resources.callback(watch.stop)
            if jetson.rails.total() is not None:
                meter = EnergyMeter(jetson.rails.total)
                meter.start()
                resources.callback(meter.stop)
        _say(f"{bundle.manifest.name} on {loaded.model.info.runner}; warming up")
        try:
            for one in rounds(loaded.model, workload, measured.wanted, meter=meter):
                measured.rounds.append(one)
                _say(f"round {len(measured.rounds)} of {measured.wanted}: {_summary(one.prompt_tokens_per_s)} prompt, "
                     f"{_summary(one.decode_tokens_per_s)} decode tokens/s")  # fmt: skip
        except KeyboardInterrupt:
            measured.interrupted = True
            _say("interrupted")
        measured.peak_memory_bytes = peak_memory_bytes()
        after = _free_bytes(jetson)
        if before is not None and after is not None and loaded.model.runner.backend.runtime in _ON_GPU:
            measured.taken_bytes = max(0, before - after)


_ON_GPU = frozenset({"tensorrt", "tensorrt_rtx", "cuda"})


def _free_bytes(jetson: Jetson | None) -> int | None:
    """Free memory of the GPU, which on a Jetson is the machine's; None without an NVIDIA GPU."""
    from edgekit.machine import available_bytes, gpu_free_bytes

    return gpu_free_bytes() if jetson is None else available_bytes()


def _say(text: str) -> None:
    stderr.print(f"{time.strftime('%H:%M:%S')} {text}", style="dim")


def _summary(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:.1f}"
