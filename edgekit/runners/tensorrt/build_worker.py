"""The child process of a build: the only code that runs NVIDIA's builder.

    python -m edgekit.runners.tensorrt.build_worker < REQUEST.json

It parses one graph, whose weights lie beside the requested model, builds it, and writes one JSON object per line:
`progress` as it goes, and in the end `done` or `failed`. The library may print to its own output, which goes to stderr.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from edgekit.atomic_file import replace_file
from edgekit.errors import EdgekitError
from edgekit.machine import peak_memory_bytes
from edgekit.runners.tensorrt.build_progress import PhaseShares
from edgekit.runners.tensorrt.layers import is_report
from edgekit.runners.tensorrt.library import Messages, NvidiaLibrary, find_library

__all__ = ["main"]

_INTERVAL_S = 0.25
_PR_SET_PDEATHSIG = 1
_NICE = 10
_SYNC_BYTES = 64 << 20
_NO_DRIVER = "cudaError 35"


def main() -> None:
    """Answer one request."""
    channel = _private_stdout()

    def send(event: str, **fields: object) -> None:
        channel.write(json.dumps({"event": event, **fields}) + "\n")
        channel.flush()

    request = json.loads(sys.stdin.read())
    _end_with(request["parent"])
    try:
        library = find_library(request["prefer"])
        if "graph" in request:
            if request["background"]:
                with suppress(OSError):
                    os.nice(_NICE)
            send("done", **_build(library, request, send))
        else:
            send("done", library=library.name, version=library.version, capabilities=library.capabilities())
    except _FailedError as error:
        send("failed", error=str(error), errno=error.errno)
    except EdgekitError as error:
        send("refused", error=error.message, hint=error.hint, code=error.code)


class _FailedError(Exception):
    """The build failed; the message says why."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class _Output:
    """Writes the engine to a file, or nowhere, and hashes it on the way."""

    def __init__(self, path: str | None) -> None:
        self.size = 0
        self.error: OSError | None = None
        self._digest = hashlib.sha256()
        self._file = None if path is None else Path(path).open("xb", buffering=0)  # noqa: SIM115  closed by `close`
        self._unsynced = 0

    def write(self, data: memoryview) -> None:
        self._digest.update(data)
        self.size += len(data)
        if self._file is None:
            return
        try:
            rest = data
            while rest:
                rest = rest[self._file.write(rest) :]
            self._unsynced += len(data)
            # Little by little: dirty pages take memory that the builder needs.
            if self._unsynced >= _SYNC_BYTES:
                self._sync()
        except OSError as error:
            self.error = error
            raise

    def close(self) -> str:
        """Store everything on disk and return the SHA-256."""
        if self._file is not None:
            self._sync()
            self._file.close()
        return self._digest.hexdigest()

    def _sync(self) -> None:
        assert self._file is not None  # noqa: S101  only called with a file
        os.fsync(self._file.fileno())
        self._unsynced = 0


class _Progress:
    """Reports the finished share of a build, when it grows and four times a second while the builder reports anything.

    Its methods are called on threads of the builder.
    """

    def __init__(self, shares: PhaseShares, send: Callable[..., None]) -> None:
        self._shares = shares
        self._send = send
        self._lock = threading.Lock()
        self._said = (0.0, 0.0)
        self._sent = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._shares.start(phase, parent, steps)
            self._report()

    def step(self, phase: str, index: int) -> bool:
        with self._lock:
            self._shares.step(phase, index)
            self._report()
        return True

    def finish(self, phase: str) -> None:
        """Do nothing: a phase that fails is finished too."""

    def _report(self) -> None:
        now, reached = time.monotonic(), (round(self._shares.share, 3), round(self._shares.until, 3))
        # A silent step begins with a share of its own: that report must not be left out.
        if reached != self._said or now - self._sent >= _INTERVAL_S:
            self._said, self._sent = reached, now
            self._send("progress", share=reached[0], until=reached[1])


def _build(library: NvidiaLibrary, request: Mapping[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    start = time.perf_counter()
    reports: list[str] = []
    messages = Messages(lambda text: reports.append(text) if is_report(text) else None)
    trt, logger = library.module, library.logger(messages)
    builder = trt.Builder(logger)
    network = library.create_network(builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(base64.b64decode(request["graph"]), request["model"]):
        raise _FailedError(f"TensorRT refuses the graph: {_parser_errors(parser) or _reason(messages)}")
    library.allow_decomposed_attention(network)
    config = builder.create_builder_config()
    if request["capability"]:
        library.set_capability(config, request["capability"])
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT for RTX may allocate memory in an execution otherwise, which a CUDA graph cannot capture.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    # Otherwise some builds wait for one another hundreds of times in a step.
    config.max_aux_streams = 0
    # Lists the kernels in the log.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["workspace_bytes"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for tensor, (min_shape, opt_shape, max_shape) in shapes.items():
            profile.set_shape(tensor, min_shape, opt_shape, max_shape)
        config.add_optimization_profile(profile)
    progress = _Progress(PhaseShares(len(request["profiles"])), send)
    # Kept in a variable: the library holds only a pointer.
    monitor = library.monitor(progress.start, progress.step, progress.finish)
    config.progress_monitor = monitor
    timings = Path(request["timing_cache"]) if request["timing_cache"] and library.times_kernels else None
    cache = None if timings is None else library.load_timing_cache(config, _bytes_of(timings))
    output = _Output(request["engine"])
    try:
        built = library.serialize(builder, network, config, output.write)
        sha256 = output.close()
    except OSError as error:
        raise _FailedError(f"the engine cannot be written: {error.strerror}", error.errno) from error
    if output.error is not None:
        raise _FailedError(f"the engine cannot be written: {output.error.strerror}", output.error.errno)
    if not built:
        raise _FailedError(_reason(messages, has_gpu=not request["capability"]))
    if timings is not None and cache is not None:
        with suppress(OSError):  # the next build takes longer
            replace_file(timings, library.timings(config))
    return {
        "version": library.version,
        "library": library.name,
        "size": output.size,
        "sha256": sha256,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time(),
        "peak_memory_bytes": peak_memory_bytes(),
        "warnings": list(messages.warnings),
        "reports": reports,
    }


def _reason(messages: Messages, *, has_gpu: bool = True) -> str:
    errors = messages.take_errors()
    if not has_gpu:
        # After any failure, building for another machine complains that this one has no driver.
        errors = [error for error in errors if _NO_DRIVER not in error] or errors
    return "; ".join(errors[:3]) or "the builder gave no reason"


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(min(parser.num_errors, 3))]
    return "; ".join(
        f"node `{error.node_name()}` ({error.node_operator()}): {error.desc()}" if error.node_name() else error.desc()
        for error in errors
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _private_stdout() -> TextIO:
    """Return stdout for this program alone; what libraries print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _end_with(parent: int) -> None:
    """Have the system end this process with its parent's thread, and first if memory is short."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main()
