"""Finds the interpreters in which peers are installed: llama.cpp, onnxruntime-genai and mlx-lm, each optional.

A flag (`--llama-python`) or an environment variable (`EDGEKIT_BENCH_LLAMA_PYTHON`) names a peer's interpreter; the
default is the one that runs the benchmark. `scripts/bench --peers` installs the peers and sets the variables.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass

__all__ = ["GENAI", "GENAI_BUILDER", "LLAMA", "MLX", "Peer", "add_peers", "interpreter"]


@dataclass(frozen=True)
class Peer:
    """A program to compare with.

    Attributes:
        name: Its name in tables and messages.
        key: Its name in `--KEY-python` and `EDGEKIT_BENCH_KEY_PYTHON`.
        modules: The modules that it needs.
    """

    name: str
    key: str
    modules: tuple[str, ...]

    @property
    def variable(self) -> str:
        """The environment variable that names the interpreter."""
        return f"EDGEKIT_BENCH_{self.key.upper()}_PYTHON"


LLAMA = Peer("llama.cpp", "llama", ("llama_cpp",))
MLX = Peer("mlx-lm", "mlx", ("mlx_lm",))
GENAI = Peer("onnxruntime-genai", "genai", ("onnxruntime_genai",))
# Needs torch, onnx-ir and a transformers that has the models it knows.
GENAI_BUILDER = Peer("onnxruntime-genai", "genai", ("onnxruntime_genai.models.builder",))


def add_peers(parser: argparse.ArgumentParser, *peers: Peer) -> None:
    """Add the flags that name the peers' interpreters."""
    for peer in peers:
        parser.add_argument(
            f"--{peer.key}-python",
            default=os.environ.get(peer.variable) or sys.executable,
            metavar="PYTHON",
            help=f"interpreter with {peer.name} [${peer.variable}, else this one]",
        )


def interpreter(peer: Peer, arguments: argparse.Namespace) -> str | None:
    """Return the peer's interpreter, or report that the peer is left out, and return None."""
    python = str(getattr(arguments, f"{peer.key}_python"))
    try:
        command = [python, "-c", f"import {', '.join(peer.modules)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        hint = f"--{peer.key}-python names an interpreter with {peer.name}"
        sys.exit(f"error: {python}: {error.strerror}\n\nhint: {hint}")
    if done.returncode == 0:
        return python
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    print(f"{peer.name} is left out: {python}: {reason} (`scripts/bench --peers` installs it)", file=sys.stderr)
    return None
