"""Runs the build worker in a child process and follows it; nothing of it outlives the call.

Native code may crash, and its memory is returned to the system only when its process ends.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from edgekit.errors import EdgekitError, RunnerError
from edgekit.runners.tensorrt.build_progress import Pace
from edgekit.runners.tensorrt.library import LibraryName
from edgekit.runners.tensorrt.troubles import build_failed, killed

__all__ = ["run_worker"]

_WORKER = "edgekit.runners.tensorrt.build_worker"
_TICK_S = 0.5
_LAST = {"done", "failed", "refused"}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def run_worker(
    request: Mapping[str, object],
    *,
    prefer: LibraryName | None,
    progress: Callable[[float], None] | None = None,
    check: Callable[[], None] | None = None,
    needed_bytes: int = 0,
    expected_s: float = 60.0,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Answer one request in a child process.

    Args:
        request: See `build_worker`; without a graph it asks which library there is.
        prefer: The library, if several are installed.
        progress: Called with the finished share when the builder reports something, and about twice a second while the
            child computes. If it raises, the build is cancelled.
        check: Called at least twice a second, whatever the child does. If it raises, the build is cancelled.
        needed_bytes: The memory that the build is expected to need, for the error if the system kills it.
        expected_s: Its expected processor time, for the share while the builder reports nothing.
        timeout_s: Cancel the build after this time.

    Raises:
        EdgekitError: `missing_extra`, if the library is not installed.
        RunnerError: The build failed, crashed, was killed or took too long.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # Ctrl-C reaches this process alone, which ends the child.
            start_new_session=True,
        )
        try:
            request = {**request, "prefer": prefer, "parent": os.getpid()}
            reply = _follow(process, request, progress, check, pace=Pace(expected_s), timeout_s=timeout_s)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if reply is None:
            raise _crashed(process.returncode, errors, needed_bytes)
    if reply["event"] == "refused":
        raise EdgekitError(reply["error"], hint=reply["hint"], code=reply["code"])
    if reply["event"] == "failed":
        raise build_failed(reply["error"], reply["errno"])
    return reply


def _follow(
    process: subprocess.Popen[bytes],
    request: Mapping[str, object],
    progress: Callable[[float], None] | None,
    check: Callable[[], None] | None,
    *,
    pace: Pace,
    timeout_s: float | None,
) -> dict[str, Any] | None:
    """Return the last line of a worker; None if it ends without one."""
    assert process.stdin is not None  # noqa: S101  pipes, see above
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
    except BrokenPipeError:
        return None
    start, computed, rest = time.monotonic(), -1.0, b""
    channel = process.stdout.fileno()
    while True:
        if timeout_s is not None and time.monotonic() - start > timeout_s:
            raise RunnerError(f"TensorRT's builder did not finish within {timeout_s:g} s", code="build_failed")
        if check is not None:
            check()
        if not select.select([channel], [], [], _TICK_S)[0]:
            now = _cpu_seconds(process.pid)
            if progress is not None and now != computed:
                progress(pace.tick(now))
            computed = now
            continue
        data = os.read(channel, 1 << 16)
        if not data:
            process.wait()
            return None
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            event = _event(line)
            if event.get("event") in _LAST:
                return event
            if progress is not None and "share" in event:
                progress(pace.report(event["share"], event["until"], _cpu_seconds(process.pid)))


def _event(line: bytes) -> dict[str, Any]:
    """One line of a worker; empty for what Python itself may print before the worker begins."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _cpu_seconds(pid: int) -> float:
    """Time that a process computed; grows always where that is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    except (OSError, ValueError, IndexError):
        return time.monotonic()


def _crashed(status: int, errors: IO[bytes], needed_bytes: int) -> RunnerError:
    if status < 0:
        return killed(-status, needed_bytes)
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return build_failed(f"TensorRT's builder ended: {lines[-1] if lines else 'no reason given'}")
