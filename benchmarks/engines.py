"""What building a TensorRT engine takes, and what it runs in a step, for every model of the catalogue.

    scripts/bench engines                                every model in both dialects, as many segments as memory needs
    scripts/bench engines --model qwen2.5-7b-instruct    one of them; needs 30 GB of disk
    scripts/bench engines --segments 1                   whole

TensorRT for RTX builds on the CPU. The two models that come as files are exported with their own weights, the others
with random weights of their exact shape. Each step is a process of `edgekit export` or `edgekit build`, as typed. The
time is that of the build alone; the peak of memory is that of its largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inputs.make_checkpoint import write_checkpoint
from quick import parse

from edgekit.export.sources.catalog import Entry, catalog, find_entry

GIB = 1 << 30
# The options of `edgekit export` by dialect.
DIALECTS = {"portable": (), "native": ("--jetpack", "7.2", "--dialect", "native")}


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        graph_bytes: Weights of the graph.
        kernels: Launched in a step of one token.
        chunk_kernels: Launched in a step of a prefill chunk.
        int4: Matrix products of a step that read INT4.
        expanded: ONNX nodes of those that do not.
        cache_copies: Kernels that copy the KV cache in a step of one token.
        scratch_bytes: Memory that a step needs beside inputs and outputs.
        seconds: Time to parse and build.
        peak_memory_bytes: Of the largest build process.
    """

    model: str
    dialect: str
    capability: str
    segments: int
    graph_bytes: int
    engine_bytes: int
    kernels: int
    chunk_kernels: int
    int4: int
    expanded: tuple[str, ...]
    cache_copies: int
    scratch_bytes: int
    seconds: float
    peak_memory_bytes: int


def edgekit(*arguments: str | Path) -> str:
    """Run the command line and return what it prints."""
    done = subprocess.run([sys.executable, "-m", "edgekit", *map(str, arguments)], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"edgekit {' '.join(map(str, arguments))} failed")
    return done.stdout.decode()


def source(entry: Entry, work: Path) -> str:
    """Return what `edgekit export` takes: a name, or a folder with random weights."""
    if not isinstance(entry.source, str):
        return entry.name
    return str(write_checkpoint(work / f"{entry.name}-random", entry.shape))


def measure(entry: Entry, dialect: str, work: Path, *, capability: str, options: tuple[str, ...]) -> Row:
    """Export a model, unless that is done, and build its engine."""
    bundle, engine = work / f"{entry.name}-{dialect}", work / "engine"
    if not bundle.exists():
        edgekit("export", source(entry, work), "--target", "orin", *DIALECTS[dialect], "-o", bundle)
    shutil.rmtree(engine, ignore_errors=True)
    text = edgekit("build", bundle, "--compute-capability", capability, "--output", engine, *options, "--json")
    shutil.rmtree(engine, ignore_errors=True)
    report: dict[str, Any] = json.loads(text)["build"]
    decode, prefill = report["decode"], report["prefill"]
    return Row(
        model=entry.name if not isinstance(entry.source, str) else f"{entry.name}, random weights",
        dialect=dialect,
        capability=report["built_for"],
        segments=len(report["segments"]),
        graph_bytes=report["graph_bytes"],
        engine_bytes=report["engine_bytes"],
        kernels=decode["kernels"],
        chunk_kernels=prefill["kernels"],
        int4=decode["int4"],
        expanded=tuple(decode["expanded"]),
        cache_copies=len(decode["cache_copies"]),
        scratch_bytes=report["scratch_bytes"],
        seconds=report["seconds"],
        peak_memory_bytes=report["peak_memory_bytes"],
    )


def shown(row: Row) -> str:
    """One line of the table."""
    cells = (
        row.model, row.dialect, row.segments, f"{row.graph_bytes / GIB:.2f}", f"{row.engine_bytes / GIB:.2f}",
        row.kernels, row.chunk_kernels, f"{row.int4} of {row.int4 + len(row.expanded)}", row.cache_copies,
        f"{row.scratch_bytes / (1 << 20):.0f}", f"{row.seconds:.0f}", f"{row.peak_memory_bytes / GIB:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Build every engine, and print a row as each is done."""
    names = [entry.name for entry in catalog()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where checkpoints and bundles go, and stay")
    parser.add_argument("--model", action="append", choices=names, help="only this one [all]")
    parser.add_argument("--dialect", action="append", choices=DIALECTS, help="only this one [both]")
    parser.add_argument("--compute-capability", default="8.7", help="of the GPU to build for [8.7]")
    parser.add_argument("--context", type=int, default=4096, help="tokens of a sequence [4096]")
    parser.add_argument("--segments", type=int, help="of each engine [as memory requires]")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, {"model": ["smollm2-135m-instruct"], "dialect": ["portable"]})
    arguments.work.mkdir(parents=True, exist_ok=True)
    options = ("--context", str(arguments.context))
    if arguments.segments is not None:
        options += ("--segments", str(arguments.segments))
    if not arguments.json:
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print("| model | dialect | segments | graph, GiB | engine, GiB | kernels, one token | kernels, a chunk "
              "| INT4 products | cache copied by | scratch, MiB | time, s | peak, GiB |")  # fmt: skip
        print(f"|{'---|' * 12}", flush=True)
    for name in arguments.model or names:
        entry = find_entry(name)
        assert entry is not None
        for dialect in arguments.dialect or DIALECTS:
            row = measure(entry, dialect, arguments.work, capability=arguments.compute_capability, options=options)
            print(json.dumps(asdict(row)) if arguments.json else shown(row), flush=True)


if __name__ == "__main__":
    main()
