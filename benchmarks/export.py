"""Time and memory of exporting a 7B model: edgekit, mlx-lm's converter and onnxruntime-genai's builder, in one run.

    scripts/bench export                 creates the checkpoint (15.2 GB) and exports it; needs 40 GB of disk
    scripts/bench export --shape 0.5b    a small one, for trying out

Every tool runs alone in its own process, with no page of the checkpoint in the page cache; its output is deleted before
the next one starts. Memory is the process's peak resident set size; "private" excludes pages mapped from files, which
the system could reclaim. A tool that exceeds its limit of time or private memory is terminated and reported. Peers are
optional (`peers.py`). edgekit also hashes its input and output; the peers do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from inputs.make_checkpoint import SHAPES, make_checkpoint
from peers import GENAI_BUILDER, MLX, Peer, add_peers, interpreter
from quick import parse

GIB = 1 << 30
# Importing these compiles kernels, once per installation.
KERNELS = "import edgekit.export.quantization.kernels, edgekit.export.writers.nibbles"


@dataclass(frozen=True)
class Tool:
    """One way to convert the checkpoint.

    Attributes:
        name: Name in the table.
        arguments: Arguments of the Python interpreter.
        peer: None: edgekit.
    """

    name: str
    arguments: tuple[str, ...]
    peer: Peer | None = None


@dataclass(frozen=True)
class Result:
    """Time and memory of a run; sizes in bytes."""

    name: str
    wall_s: float
    cpu_s: float
    peak_rss: int
    peak_private: int
    written: int
    outcome: str


def tools(checkpoint: Path, out: Path, work: Path) -> list[Tool]:
    """Return edgekit with both of its formats, then the peers."""
    edgekit = ("-m", "edgekit", "export", str(checkpoint), "-o", str(out))
    mlx = ("-m", "mlx_lm", "convert", "--hf-path", str(checkpoint), "-q", "--mlx-path", str(out))
    genai = ("-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out))
    genai += ("-p", "int4", "-e", "cpu", "-c", str(work / "cache"))
    genai += ("--extra_options", "int4_accuracy_level=4", "int4_block_size=32", "hf_token=false")
    return [
        Tool("edgekit m2", (*edgekit, "--target", "m2")),
        Tool("edgekit orin", (*edgekit, "--target", "orin")),
        Tool("mlx_lm.convert", mlx, MLX),
        Tool("onnxruntime-genai", genai, GENAI_BUILDER),
    ]


def drop_page_cache(folder: Path) -> None:
    """Drop a folder's files from the page cache, if the system supports it."""
    if hasattr(os, "posix_fadvise"):
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(tool: Tool, python: str, out: Path, log: Path, *, limit_s: float, limit_bytes: float) -> Result:
    """Run a tool with this interpreter, and record its time and memory."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with log.open("wb") as output:
        start = time.monotonic()
        process = subprocess.Popen([python, *tool.arguments], stdout=output, stderr=output, env=environment)
        watched = psutil.Process(process.pid)
        peak_rss = peak_private = 0
        cpu_s = 0.0
        outcome = ""
        while process.poll() is None:
            rss, private, cpu = _usage(watched)
            peak_rss, peak_private, cpu_s = max(peak_rss, rss), max(peak_private, private), max(cpu_s, cpu)
            if private > limit_bytes:
                outcome = f"out of memory: more than {limit_bytes / GIB:.0f} GiB"
            elif time.monotonic() - start > limit_s:
                outcome = f"not done after {limit_s:.0f} s"
            if outcome:
                _end(watched)
                process.wait()
            time.sleep(0.05)
        wall_s = time.monotonic() - start
    if not outcome and process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        outcome = f"failed: {' '.join(last)[:100]}"
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.exists() else 0
    return Result(tool.name, wall_s, cpu_s, peak_rss, peak_private, written, outcome)


def _usage(process: psutil.Process) -> tuple[int, int, float]:
    """Resident and private bytes, and processor seconds, of a process and its children."""
    rss = private = 0
    cpu_s = 0.0
    with contextlib.suppress(psutil.Error):
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory, times = member.memory_info(), member.cpu_times()
                rss += memory.rss
                private += memory.rss - getattr(memory, "shared", 0)
                cpu_s += times.user + times.system
    return rss, private, cpu_s


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        for member in (*process.children(recursive=True), process):
            member.kill()


def _print(results: Sequence[Result]) -> None:
    print(f"{'':20}{'wall s':>9}{'CPU s':>9}{'peak GiB':>10}{'private':>9}{'written':>9}")
    for run in results:
        if run.outcome:
            print(f"{run.name:20}{run.outcome} (after {run.wall_s:.0f} s, {run.peak_private / GIB:.1f} GiB private)")
            continue
        sizes = f"{run.peak_rss / GIB:10.2f}{run.peak_private / GIB:9.2f}{run.written / GIB:9.2f}"
        print(f"{run.name:20}{run.wall_s:9.1f}{run.cpu_s:9.1f}{sizes}")
    peers = [run for run in results if not run.name.startswith("edgekit") and not run.outcome]
    if not peers:
        return
    fastest, leanest = min(peers, key=lambda run: run.wall_s), min(peers, key=lambda run: run.peak_rss)
    for run in results:
        if run.name.startswith("edgekit") and not run.outcome:
            print(
                f"{run.name} / fastest peer ({fastest.name}): {run.wall_s / fastest.wall_s:.2f}x time; "
                f"/ leanest peer ({leanest.name}): {run.peak_rss / leanest.peak_rss:.2f}x memory"
            )


def main() -> None:
    """Create the checkpoint, run every installed tool, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where checkpoint and outputs go")
    parser.add_argument("--checkpoint", type=Path, help="use this checkpoint folder instead of creating one")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    add_peers(parser, MLX, GENAI_BUILDER)
    parser.add_argument("--only", action="append", metavar="WORD", help="run only tools with this word in their name")
    parser.add_argument("--limit-s", type=float, default=900, help="time limit of each tool")
    parser.add_argument("--limit-gib", type=float, default=20, help="limit of private memory of each tool")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, {"shape": "tiny"})
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.checkpoint or make_checkpoint(arguments.work / f"qwen2.5-{arguments.shape}", arguments.shape)
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", KERNELS], check=True)
    print(f"edgekit's kernels were loaded (or compiled, the first time) in {time.monotonic() - start:.1f} s; ", end="")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    results = []
    for tool in tools(checkpoint, arguments.work / "out", arguments.work):
        if arguments.only and not any(word in tool.name for word in arguments.only):
            continue
        python = interpreter(tool.peer, arguments) if tool.peer else sys.executable
        if python is None:
            continue
        out = arguments.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        drop_page_cache(checkpoint)
        log = arguments.work / f"{tool.name.replace(' ', '-')}.log"
        limits = {"limit_s": arguments.limit_s, "limit_bytes": arguments.limit_gib * GIB}
        results.append(measure(tool, python, out, log, **limits))
        print(f"{tool.name}: {results[-1].outcome or f'{results[-1].wall_s:.1f} s'}", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(arguments.work / "cache", ignore_errors=True)
    if arguments.json:
        print(json.dumps([asdict(run) for run in results]))
    else:
        _print(results)


if __name__ == "__main__":
    main()
