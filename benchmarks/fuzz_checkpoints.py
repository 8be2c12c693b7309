"""Reads damaged and hostile checkpoints by the thousand, across processes, and counts what came of it.

    python benchmarks/fuzz_checkpoints.py --inputs 20000

Every input is read in full under a limit of memory and of time. An input ends in values (`read`) or in an error of
edgekit's own (`refused`); anything else is a finding, printed with what makes it again, and the exit status is 1. How
inputs are made stands in `tests/export/checkpoints/fuzzing.py`.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.export.checkpoints.fuzzing import (
    KINDS,
    PATIENCE_S,
    ROOM,
    Input,
    TooSlow,
    attempt,
    bounds,
    run,
    seeded,
    write_seeds,
)

_BATCH = 100


@dataclass
class Findings:
    """What came of one batch.

    Attributes:
        outcomes: How often each outcome was, by kind.
        broken: Inputs that ended in anything but values or an error of edgekit's, with the last lines of the trace.
        slowest_s: The longest an input took.
        peak_mib: The most memory the process had.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[tuple[Input, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    peak_mib: float = 0.0


def batch(inputs: Sequence[Input]) -> Findings:
    """Run some inputs in this process."""
    found = Findings()
    # A loop in C does not see the alarm: then the process ends, and the pool reports it.
    faulthandler.dump_traceback_later(PATIENCE_S * _BATCH, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        for kind in {which.kind for which in inputs}:
            assert attempt(Path(folder) / kind, seeded(0)) == "read", kind
        with bounds():
            for which in inputs:
                start = time.perf_counter()
                try:
                    outcome = run(which, Path(folder))
                except (Exception, TooSlow) as error:  # noqa: BLE001  whatever it is, it is a finding
                    outcome = f"broken: {type(error).__name__}"
                    found.broken.append((which, "".join(traceback.format_exception(error)[-3:])))
                found.outcomes[which.kind, outcome] += 1
                found.slowest_s = max(found.slowest_s, time.perf_counter() - start)
    faulthandler.cancel_dump_traceback_later()
    found.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> int:
    """Run the inputs asked for and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many, over all kinds (20000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind (0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    each = -(-options.inputs // len(KINDS))
    inputs = [Input(kind, number) for kind in KINDS for number in range(options.first, options.first + each)]
    batches = [inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH)]
    start = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        results = list(pool.map(batch, batches))
    elapsed = time.perf_counter() - start

    total: Counter[tuple[str, str]] = Counter()
    for result in results:
        total += result.outcomes
    outcomes = sorted({outcome for _, outcome in total})
    print(f"{'':36}" + "".join(f"{kind:>12}" for kind in KINDS))
    for outcome in outcomes:
        print(f"{outcome:36}" + "".join(f"{total[kind, outcome]:>12}" for kind in KINDS))
    print(
        f"{len(inputs)} inputs in {elapsed:.0f} s on {options.processes} processes; slowest "
        f"{max(result.slowest_s for result in results):.2f} s (limit {PATIENCE_S}); largest process "
        f"{max(result.peak_mib for result in results):.0f} MiB (limit: {ROOM >> 20} MiB more than at the start)"
    )
    broken = [one for result in results for one in result.broken]
    for which, trace in broken[:20]:
        print(f"\n{which}\n{trace}")
    print(f"{len(broken)} findings")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
