"""Runs Optimum's ONNX exporter on a checkpoint folder, in Optimum's own environment, and checks the graph."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, ExportError, RunnerError, nearest, option
from edgekit.export.architectures import describe
from edgekit.export.architectures.config import HARMLESS_KEYS, unread_key
from edgekit.export.architectures.unsupported import is_misspelling, refuse_encoder
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.forward import CheckpointTensors, LayerRunner
from edgekit.export.optimum.env import optimum_python
from edgekit.export.optimum.older_config import older_config
from edgekit.export.subprocess_json import ask_child

__all__ = ["FloatGraph", "check_graph", "check_reference", "export_graph"]

_CHECK_TOKENS = 24
# Relative to the range of the logits; another order of rounding changes them by about 1e-6.
_TOLERANCE = 1e-3
# Of older releases and of other tools, besides those that no model computes with.
_HARMLESS_KEYS = frozenset(
    ["_num_labels", "gradient_checkpointing", "n_ctx", "num_local_experts", "num_nextn_predict_layers"]
)


@dataclass(frozen=True, slots=True)
class FloatGraph:
    """A graph that Optimum exported.

    Attributes:
        folder: Contains `model.onnx`, of dialect `optimum`, and the file with its weights.
        context_length: Longest sequence in tokens.
        tokens: A few tokens to check the graph with.
        logits: torch's logits for them, float32 `[tokens, vocab]`.
        rope_frequencies: Of each rotary embedding of torch's model, in radians per position.
    """

    folder: Path
    context_length: int
    tokens: tuple[int, ...]
    logits: npt.NDArray[np.float32]
    rope_frequencies: tuple[tuple[float, ...], ...] = ()


def export_graph(
    checkpoint: Path, config: Mapping[str, Any], folder: Path, *, ignore: Iterable[str] = ()
) -> FloatGraph:
    """Export a checkpoint as a float32 graph with the KV cache as inputs and outputs.

    The exporter keeps several copies of the float32 model: its peak is 2.9 GB for 135 million weights, 6.9 GB for 330
    million.

    Args:
        checkpoint: A folder that transformers can load.
        config: Its `config.json`, written by any version of transformers.
        folder: Receives the graph; empty.
        ignore: Keys of the configuration that the user declares harmless.

    Raises:
        EdgekitError: `missing_optimum`, if there is no environment with Optimum.
        ExportError: It is no chat model, Optimum does not support the architecture, transformers in its environment
            does not read the configuration or the weights fully, or the export failed.
    """
    refuse_encoder(config)
    request = {
        "folder": str(checkpoint.absolute()),
        "config": older_config(config),
        "ignore": list(ignore),
        "harmless": sorted(HARMLESS_KEYS | _HARMLESS_KEYS),
        "output": str(folder),
        "check_tokens": _CHECK_TOKENS,
    }
    reply = _run_worker(optimum_python(), request)
    vocab = int(reply["vocab_size"])
    return FloatGraph(
        folder=folder,
        context_length=int(reply["context_length"]),
        tokens=tuple(reply["tokens"]),
        logits=np.fromfile(folder / "check.f32", np.float32).reshape(-1, vocab),
        rope_frequencies=tuple(map(tuple, reply["rope_frequencies"])),
    )


def check_graph(graph: FloatGraph) -> float | None:
    """Compare the graph with torch, on a prompt in two chunks and then token by token.

    Tracing follows one input; a branch that the model takes for another is lost silently, and only a run shows it.

    Returns:
        The largest difference of a logit; None if onnxruntime is not installed, so that nothing was compared.

    Raises:
        ExportError: `optimum_differs`: the graph computes something else, or does not run.
    """
    if find_spec("onnxruntime") is None:
        return None
    try:
        got = _run_in_chunks(graph)
    except RunnerError as error:
        raise ExportError(
            f"Optimum's graph of this model does not run: {error.message}",
            hint="Optimum does not export this model correctly; nothing was written",
            code="optimum_differs",
        ) from error
    difference = float(np.abs(got - graph.logits).max())
    # Written so that a NaN fails.
    if not difference <= _TOLERANCE * float(np.ptp(graph.logits)):
        raise ExportError(
            f"Optimum's graph of this model does not compute what torch computes: a logit differs by {difference:.3g}",
            hint="Optimum does not export this model correctly; nothing was written",
            code="optimum_differs",
        )
    return difference


def check_reference(graph: FloatGraph, checkpoint: Checkpoint, ignore: Iterable[str] = ()) -> float | None:
    """Compare torch's logits with edgekit's own forward pass, for an architecture that edgekit describes.

    torch and the graph read the configuration through the same version of transformers, which may read a newer one
    differently; this forward pass does not.

    Returns:
        The largest difference of a logit; None if onnxruntime is not installed, so that nothing was compared.

    Raises:
        ExportError: `optimum_differs`: they differ, or edgekit does not describe the model.
    """
    if find_spec("onnxruntime") is None:
        return None
    decoder = describe(checkpoint.config, context_length=graph.context_length, ignore=ignore)
    ours = {layer.rope.frequencies for layer in decoder.layers}
    # A few tokens do not show a scaling that changes distant positions only.
    for one, others in ((ours, graph.rope_frequencies), (graph.rope_frequencies, ours)):
        for rope in one:
            if others and not any(len(rope) == len(other) and np.allclose(rope, other, rtol=1e-4) for other in others):
                raise _misread("a rotary embedding has other frequencies")
    layers, tensors = LayerRunner(decoder), CheckpointTensors(checkpoint)
    hidden = layers.embed(tensors, np.array([graph.tokens]))
    for layer in decoder.layers:
        layers.run(layer, tensors, hidden, out=hidden)
    difference = float(np.abs(layers.logits(tensors, hidden[0]) - graph.logits).max())
    if not difference <= _TOLERANCE * float(np.ptp(graph.logits)):
        raise _misread(f"a logit differs by {difference:.3g}")
    return difference


def _misread(how: str) -> ExportError:
    return ExportError(
        f"transformers in Optimum's environment reads this model differently from edgekit: {how}",
        hint=f"leave out {option('exporter', 'optimum')}: edgekit's own exporter supports this architecture",
        code="optimum_differs",
    )


def _run_in_chunks(graph: FloatGraph) -> npt.NDArray[np.float32]:
    from edgekit.runners.base import Chunk
    from edgekit.runners.optimum import OptimumRunner

    runner = OptimumRunner(graph.folder, context_length=len(graph.tokens))
    third = len(graph.tokens) // 3
    chunks = [graph.tokens[:third], graph.tokens[third : 2 * third], *((token,) for token in graph.tokens[2 * third :])]
    try:
        return np.concatenate([runner.run([Chunk(0, tokens, "all")])[0] for tokens in chunks if tokens])
    finally:
        runner.close()


def _run_worker(python: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    worker = Path(__file__).with_name("worker.py")
    with tempfile.TemporaryDirectory(prefix="edgekit-optimum-") as temporary:
        try:
            reply = ask_child(
                # Isolated: neither our modules nor the user's PYTHONPATH belong there.
                [str(python), "-I", "-W", "ignore", str(worker)],
                request,
                Path(temporary),
                program="Optimum's exporter",
                hint="is there enough free memory? at its peak it takes about five times the float32 weights",
                # The checkpoint is local.
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
            )
        except OSError as error:
            raise EdgekitError(
                f"{python} cannot be run: {error.strerror}", hint="edgekit optimum install", code="missing_optimum"
            ) from error
    return _checked(reply, python, request["config"])


def _checked(reply: dict[str, Any], python: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if "missing" in reply:
        raise EdgekitError(
            f"{python} has no `{reply['missing']}`",
            hint="edgekit optimum install   (and unset EDGEKIT_OPTIMUM_PYTHON, if it is set)",
            code="missing_optimum",
        )
    if "unknown" in reply:
        near = nearest(reply["unknown"], reply["known"])
        near = near if near and is_misspelling(reply["unknown"], near) else None
        raise ExportError(
            f"Optimum does not support the architecture `{reply['unknown']}`",
            hint=(f"did you mean `{near}`? " if near else "") + f"supported: {', '.join(reply['known'])}",
            code="unsupported_architecture",
        )
    if "unread" in reply:
        key, version = reply["unread"], reply["transformers"]
        raise unread_key(
            key, config.get(key), f"transformers {version}, in Optimum's environment, reads for this model"
        )
    if "error" in reply:
        raise ExportError(f"Optimum cannot export this model: {reply['error'][:300]}", hint=reply.get("hint"))
    return reply
