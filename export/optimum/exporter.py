"""Runs Optimum's ONNX exporter on a checkpoint folder, in Optimum's own environment, and checks what it made.

It knows how to talk to `worker` and nothing of graphs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, ExportError, RunnerError, nearest
from edgekit.export.child import ask_child
from edgekit.export.optimum.env import optimum_python

__all__ = ["FloatGraph", "check_graph", "export_graph"]

_CHECK_TOKENS = 24
# Of the spread of the logits; rounding in another order moves them by some 1e-6.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class FloatGraph:
    """What Optimum made of a checkpoint.

    Attributes:
        folder: Holds `model.onnx`, of dialect `optimum`, and the file with its weights.
        context_length: Longest sequence in tokens.
        tokens: A few tokens, and
        logits: what torch computed for them, float32 `[tokens, vocab]`.
    """

    folder: Path
    context_length: int
    tokens: tuple[int, ...]
    logits: npt.NDArray[np.float32]


def export_graph(checkpoint: Path, folder: Path) -> FloatGraph:
    """Export a checkpoint as a graph in float32 with a KV cache that is handed in and out.

    The exporter holds the model in float32 several times over: 2.9 GB at its peak for 135 million weights, 6.9 GB for
    330 million.

    Args:
        checkpoint: A folder that transformers can load.
        folder: Receives the graph; empty.

    Raises:
        EdgekitError: `missing_optimum`, if there is no environment with Optimum.
        ExportError: Optimum does not know the architecture, or failed.
    """
    request = {"folder": str(checkpoint.absolute()), "output": str(folder), "check_tokens": _CHECK_TOKENS}
    answer = _run_worker(optimum_python(), request)
    vocab = int(answer["vocab_size"])
    return FloatGraph(
        folder=folder,
        context_length=int(answer["context_length"]),
        tokens=tuple(answer["tokens"]),
        logits=np.fromfile(folder / "check.f32", np.float32).reshape(-1, vocab),
    )


def check_graph(graph: FloatGraph) -> float | None:
    """Compare the graph with torch, over a prompt in two chunks and then token by token.

    A trace is of one input; a branch the model takes for another is lost silently, and only running it shows that.

    Returns:
        The largest difference of a logit; None if onnxruntime is not installed here, so that nothing was compared.

    Raises:
        ExportError: `optimum_differs`: the graph computes something else, or does not run.
    """
    if find_spec("onnxruntime") is None:
        return None
    try:
        got = _run_in_pieces(graph)
    except RunnerError as error:
        raise ExportError(
            f"Optimum's graph of this model does not run: {error.message}",
            hint="Optimum does not export this model rightly; nothing was written",
            code="optimum_differs",
        ) from error
    difference = float(np.abs(got - graph.logits).max())
    # Written so that a NaN fails.
    if not difference <= _TOLERANCE * float(np.ptp(graph.logits)):
        raise ExportError(
            f"Optimum's graph of this model does not compute what torch computes: a logit differs by {difference:.3g}",
            hint="Optimum does not export this model rightly; nothing was written",
            code="optimum_differs",
        )
    return difference


def _run_in_pieces(graph: FloatGraph) -> npt.NDArray[np.float32]:
    from edgekit.runners.base import Chunk
    from edgekit.runners.optimum import OptimumRunner

    runner = OptimumRunner(graph.folder, context_length=len(graph.tokens))
    third = len(graph.tokens) // 3
    parts = [graph.tokens[:third], graph.tokens[third : 2 * third], *((token,) for token in graph.tokens[2 * third :])]
    try:
        return np.concatenate([runner.run([Chunk(0, part, "all")])[0] for part in parts if part])
    finally:
        runner.close()


def _run_worker(python: Path, request: Mapping[str, object]) -> dict[str, Any]:
    worker = Path(__file__).with_name("worker.py")
    with tempfile.TemporaryDirectory(prefix="edgekit-optimum-") as place:
        try:
            answer = ask_child(
                # Isolated: neither our modules nor the user's PYTHONPATH belong there.
                [str(python), "-I", "-W", "ignore", str(worker)],
                request,
                Path(place),
                who="Optimum's exporter",
                hint="is there enough free memory? at its peak it takes about five times the float32 weights",
                # The checkpoint is here already.
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
            )
        except OSError as error:
            raise EdgekitError(
                f"{python} cannot be run: {error.strerror}", hint="edgekit optimum install", code="missing_optimum"
            ) from error
    return _checked(answer, python)


def _checked(answer: dict[str, Any], python: Path) -> dict[str, Any]:
    if "missing" in answer:
        raise EdgekitError(
            f"{python} has no `{answer['missing']}`",
            hint="edgekit optimum install   (and unset EDGEKIT_OPTIMUM_PYTHON, if it is set)",
            code="missing_optimum",
        )
    if "unknown" in answer:
        near = nearest(answer["unknown"], answer["known"])
        raise ExportError(
            f"Optimum does not know the architecture `{answer['unknown']}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"it knows {', '.join(answer['known'])}",
            code="unsupported_architecture",
        )
    if "error" in answer:
        raise ExportError(f"Optimum cannot export this model: {answer['error'][:300]}", hint=answer.get("hint"))
    return answer
