"""Prints what `edgekit bench` measured: a table for the terminal, Markdown for an issue, JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from edgekit import __version__
from edgekit.bundle.manifest import Manifest
from edgekit.cli.console import console
from edgekit.cli.output import bytes_text
from edgekit.device_report import device_facts, without_paths
from edgekit.errors import EdgekitError, escape_controls
from edgekit.generation.speed import LoadedModel, Round, Workload, median
from edgekit.jetson.board import find_board
from edgekit.jetson.watch import Conditions
from edgekit.machine import Machine, probe
from edgekit.recognition import recognise
from edgekit.target import Target

__all__ = ["Measured", "print_block", "print_figures", "report_json"]

_NOTE = "medians of {}; through the daemon's engine, greedy, without speculative decoding and prefix cache"


@dataclass(slots=True)
class Measured:
    """What is known so far.

    Attributes:
        workload: The work of each round.
        wanted: Number of rounds.
        manifest: The bundle's; None if it could not be opened, or there is none.
        loaded: The loaded model; None until then.
        rounds: The rounds that were measured.
        interrupted: Ctrl-C ended it.
        failure: Why the bundle could not be measured.
        conditions: What a Jetson's sensors read meanwhile.
        peak_memory_bytes: Peak of the process; None if unknown.
        taken_bytes: Memory of the GPU that the model took, on runners that compute there.
    """

    workload: Workload
    wanted: int
    manifest: Manifest | None = None
    loaded: LoadedModel | None = None
    rounds: list[Round] = field(default_factory=list)
    interrupted: bool = False
    failure: EdgekitError | None = None
    conditions: Conditions | None = None
    peak_memory_bytes: int | None = None
    taken_bytes: int | None = None

    @property
    def read_per_token(self) -> int | None:
        """Bytes read to decode a token: weights, and the KV cache of the mean context; None if unknown."""
        if self.manifest is None or self.loaded is None or self.manifest.memory.read_per_token is None:
            return None
        kv = self.loaded.model.runner.limits.kv_bytes_per_token
        return self.manifest.memory.read_per_token + kv * self.workload.mean_context

    def bandwidth_share(self, target: Target) -> float | None:
        """The fraction of a target's memory bandwidth that decoding uses; None if unknown."""
        rate = median(self.rounds).decode_tokens_per_s if self.rounds else None
        if rate is None or self.read_per_token is None or not target.bandwidth_gb_s:
            return None
        return rate * self.read_per_token / (target.bandwidth_gb_s * 1e9)


def print_figures(measured: Measured) -> None:
    """Print a table of the figures."""
    assert measured.manifest is not None  # noqa: S101  there are rounds
    assert measured.loaded is not None  # noqa: S101  as above
    info = measured.loaded.model.info
    console.print(Text.assemble((measured.manifest.name, "bold"), f" on {info.runner}\n"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in (*_figures(measured, probe()), *_rejected(measured)):
        table.add_row(name, text)
    console.print(table)
    console.print(f"\n{_note(measured)}", style="dim")


def print_block(measured: Measured, *, folder: Path | None, root: Path = Path("/")) -> None:
    """Print one block of Markdown with the machine and the figures.

    Args:
        measured: The figures; without a manifest, the machine alone.
        folder: The bundle's folder, which the block does not mention.
        root: Folder that contains /etc, /proc, /sys and /usr.
    """
    machine = probe(root)
    device = device_facts(machine, root)
    rows = [("edgekit", __version__), *device.facts.items()]
    rows.append(("libraries", ", ".join(f"{name} {found}" for name, found in device.libraries.items()) or "none"))
    rows += _model_rows(measured, folder)
    if measured.rounds:
        rows += _figures(measured, machine)
    rows += _condition_rows(measured.conditions)
    if measured.failure is not None:
        rows.append(("failed", _public(measured.failure.message, folder)))
    elif measured.manifest is None:
        rows.append(("model", "none measured"))
    lines = [f"**edgekit bench --device**, {time.strftime('%Y-%m-%d')}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in rows]
    if measured.rounds:
        lines += ["", _cell(_note(measured)[:1].upper() + _note(measured)[1:] + ".")]
    click.echo("\n".join(lines))


def report_json(measured: Measured, *, device: bool, folder: Path | None, root: Path = Path("/")) -> dict[str, object]:
    """Return everything as JSON data: seconds, bytes, tokens per second, joules.

    Args:
        measured: The figures.
        device: Describe the machine too.
        folder: As for `print_block`.
        root: As for `print_block`.
    """
    machine = probe(root)
    target = recognise(machine)
    data: dict[str, object] = {"edgekit": __version__, "date": time.strftime("%Y-%m-%d"), "target": target.name}
    if device:
        found = device_facts(machine, root)
        data |= {"device": found.facts, "libraries": found.libraries}
    manifest, loaded = measured.manifest, measured.loaded
    if manifest is not None:
        artifact = manifest.artifact
        data["model"] = {
            "name": manifest.name,
            "architecture": manifest.architecture,
            "parameters": manifest.parameters,
            "recipe": manifest.recipe.get("summary"),
            "artifact": f"{artifact.kind} {artifact.dialect}".strip(),
            "weights_bytes": manifest.memory.weights,
            "exported_by": manifest.edgekit,
        }
    if loaded is not None:
        info = loaded.model.info
        data["runner"] = info.runner
        data["rejected"] = [{"name": one.name, "reason": _public(one.reason, folder)} for one in info.rejected]
        data["load_s"], data["self_test_s"] = loaded.load_s, loaded.self_test_s
    if measured.failure is not None:
        error = measured.failure
        data["error"] = {"code": error.code, "message": _public(error.message, folder)}
    data["workload"] = {**asdict(measured.workload), "speculation": False, "prefix_cache": False}
    data["interrupted"] = measured.interrupted
    data["rounds"] = [asdict(one) for one in measured.rounds]
    data["median"] = asdict(median(measured.rounds)) if measured.rounds else None
    data["peak_memory_bytes"], data["gpu_memory_bytes"] = measured.peak_memory_bytes, measured.taken_bytes
    data["bandwidth"] = {
        "gb_s": target.bandwidth_gb_s,
        "read_per_token_bytes": measured.read_per_token,
        "fraction": measured.bandwidth_share(target),
    }
    data["conditions"] = None if measured.conditions is None else asdict(measured.conditions)
    return data


def _figures(measured: Measured, machine: Machine) -> Iterator[tuple[str, str]]:
    """Name and text of every figure."""
    work, middle, loaded = measured.workload, median(measured.rounds), measured.loaded
    target = recognise(machine)
    assert loaded is not None  # noqa: S101  there are rounds

    def rate(name: str, figure: Callable[[Round], float | None], what: str) -> tuple[str, str]:
        values = [value for one in measured.rounds if (value := figure(one)) is not None]
        value = figure(middle)
        if value is None:
            return name, "not measured"
        spread = f"; {_number(min(values))} to {_number(max(values))}" if len(values) > 1 else ""
        return name, f"{_number(value)} tokens/s ({what}{spread})"

    yield rate(
        "prompt",
        lambda one: one.prompt_tokens_per_s,
        f"{work.prompt_tokens} token{'s' if work.prompt_tokens > 1 else ''}",
    )
    yield rate("decode", lambda one: one.decode_tokens_per_s, f"{work.decode_tokens} tokens after the prompt")
    if work.streams > 1:
        name = f"{work.streams} streams"
        if middle.streams_tokens_per_s is None:
            yield name, "not measured: they never decoded all at the same time; give more --decode-tokens"
        else:
            yield rate(name, lambda one: one.streams_tokens_per_s, "decoded in all")
    if middle.first_token_s is not None:
        yield "first token", f"{middle.first_token_s:.3f} s"
    tested = f", and {loaded.self_test_s:.2f} s for the self-test" if loaded.self_test_s >= 0.01 else ""
    yield "loaded in", f"{loaded.load_s:.2f} s{tested}"
    if measured.peak_memory_bytes is not None:
        taken = measured.taken_bytes
        on_gpu = "" if taken is None else f"; the model took {bytes_text(taken)} of the GPU's memory"
        yield "peak memory", f"{bytes_text(measured.peak_memory_bytes)} of the process{on_gpu}"
    share = measured.bandwidth_share(target)
    if share is not None and measured.read_per_token is not None:
        read = f"{measured.read_per_token / 1e9:.3g} GB a token"
        yield "bandwidth", f"{share:.0%} of {target.bandwidth_gb_s:g} GB/s ({read}){_super_note(machine)}"
    elif target.bandwidth_gb_s:
        yield "bandwidth", "unknown: the bundle does not say what a token reads; export it again"
    if middle.joules_per_token is not None:
        prompt = middle.prompt_joules_per_token
        yield (
            "energy",
            f"{middle.joules_per_token:.3g} J per decoded token"
            + ("" if prompt is None else f", {prompt:.3g} J per prompt token"),
        )


def _super_note(machine: Machine) -> str:
    board = find_board(machine.device_tree)
    if board is None or not board.has_super_variant or board.super_clocks:
        return ""
    return ", which this board has with a `-super` device tree only"


def _model_rows(measured: Measured, folder: Path | None) -> Iterator[tuple[str, str]]:
    manifest = measured.manifest
    if manifest is None:
        return
    artifact = f"{manifest.artifact.kind} {manifest.artifact.dialect}".strip()
    recipe = str(manifest.recipe.get("summary", "")) or "unknown recipe"
    yield "model", f"{manifest.name} ({manifest.architecture}, {manifest.parameters / 1e6:,.0f} M parameters)"
    yield "bundle", f"{artifact}, {recipe}, {bytes_text(manifest.memory.weights)}, exported by {manifest.edgekit}"
    if measured.loaded is not None:
        yield "runner", measured.loaded.model.info.runner
        for name, text in _rejected(measured):
            yield name, _public(text, folder)


def _rejected(measured: Measured) -> Iterator[tuple[str, str]]:
    if measured.loaded is not None:
        for one in measured.loaded.model.info.rejected:
            yield f"not on {one.name}", one.reason


def _condition_rows(found: Conditions | None) -> Iterator[tuple[str, str]]:
    """What a Jetson's sensors read while it was measured."""
    if found is None:
        return
    if found.max_c is not None:
        yield (
            "temperature",
            f"{found.max_c:.0f} °C at most"
            + ("" if found.start_c is None else f", {found.start_c:.0f} °C at the start"),
        )
    if found.gpu_clock_hz is not None:
        limit = "" if found.gpu_max_clock_hz is None else f" of {found.gpu_max_clock_hz / 1e6:.0f} MHz"
        yield "GPU clock", f"{found.gpu_clock_hz / 1e6:.0f}{limit or ' MHz'} at most"
    if found.max_watts is not None:
        yield "power", f"{found.max_watts:.1f} W at most"
    events = ", ".join(f"{name} {count}×" for name, count in found.overcurrent_events.items())
    lowered = ", ".join((*(found.throttled_by or ()), *([events] if events else [])))
    if lowered:
        yield "throttling", f"clocks were lowered meanwhile ({lowered})"
    else:
        yield "throttling", "unknown" if found.throttled_by is None else "none meanwhile"


def _note(measured: Measured) -> str:
    done, wanted = len(measured.rounds), measured.wanted
    count = f"{done} round{'s' if done > 1 else ''}" + (f" of {wanted}: it was interrupted" if done < wanted else "")
    return _NOTE.format(count)


def _public(text: str, folder: Path | None) -> str:
    private = () if folder is None else (str(folder), str(folder.absolute()), str(folder.resolve()))
    return without_paths(text, *private)


def _cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return escape_controls(" ".join(text.split())).replace("|", "\\|")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
