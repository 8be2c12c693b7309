"""Optimum's own graphs, in floating point: they compute what torch computes, and what our own graphs compute."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.optimum.exporter import check_graph, export_graph
from edgekit.export.optimum.source import Source
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.optimum import OptimumRunner
from tests.export.optimum.graphs import MODELS, checkpoint, float_graph
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.oracle import transformers_checkpoint, transformers_logits

pytestmark = pytest.mark.optimum

FloatArray = npt.NDArray[np.float32]
TOKENS = [int(token) for token in np.random.default_rng(13).integers(0, 512, 60)]


def logits(runner: Runner, pieces: list[int]) -> FloatArray:
    """Logits of TOKENS in pieces of these sizes."""
    rows, done = [], 0
    for count in pieces:
        rows.append(runner.run([Chunk(0, TOKENS[done : done + count], "all")])[0].copy())
        done += count
    runner.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_edgekit_does_not_know_computes_what_transformers_computes(name: str) -> None:
    folder = float_graph(name).folder
    expected = transformers_logits(checkpoint(name), TOKENS)
    assert np.ptp(expected) > 2
    for pieces in ([60], [1] * 60, [31, 9, 20]):
        np.testing.assert_allclose(logits(OptimumRunner(folder, threads=1), pieces), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_our_own_graph_and_optimums_compute_the_same(name: str, tmp_path: Path) -> None:
    source = checkpoint(name)
    OnnxWriter("onnxruntime")(tiny_decoder(source), TensorWeights(tiny_tensors(source)), tmp_path, lambda _: None)
    ours = logits(OnnxRuntimeRunner(tmp_path, threads=1), [40, *[1] * 20])
    theirs = logits(OptimumRunner(float_graph(name).folder, threads=1), [40, *[1] * 20])
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_the_check_finds_a_graph_with_other_weights(tmp_path: Path) -> None:
    graph = float_graph("gpt2")
    assert (check_graph(graph) or 0) < 1e-4
    shutil.copytree(graph.folder, tmp_path / "graph")
    data = np.memmap(tmp_path / "graph" / "model.onnx_data", np.float32, "r+")
    data[data.size // 2 : data.size // 2 + 2000] = 0
    data.flush()
    with pytest.raises(ExportError, match="does not compute what torch computes") as caught:
        check_graph(dataclasses.replace(graph, folder=tmp_path / "graph"))
    assert caught.value.code == "optimum_differs"


def test_a_graph_whose_weights_are_lost_is_told_from_one_that_is_wrong(tmp_path: Path) -> None:
    shutil.copy(float_graph("gpt2").folder / "model.onnx", tmp_path)
    with pytest.raises(ExportError, match="does not run: onnxruntime cannot load"):
        check_graph(dataclasses.replace(float_graph("gpt2"), folder=tmp_path))


@pytest.mark.parametrize(
    ("changes", "says", "hint"),
    [
        ({"model_type": "gpt_2"}, "does not know the architecture `gpt_2`", "did you mean `gpt2`"),
        ({"n_head": 5}, "cannot export this model: ValueError: `embed_dim` must be divisible", None),
    ],
)
def test_what_optimum_refuses_is_one_line(changes: dict[str, Any], says: str, hint: str | None, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("gpt2"), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ExportError) as caught:
        export_graph(source, tmp_path)
    assert says in caught.value.message
    if hint is not None:
        assert hint in str(caught.value.hint)


def test_code_that_a_checkpoint_brings_is_not_run() -> None:
    source = checkpoint("gpt2")
    assert float_graph("gpt2").tokens
    assert "theirs.Model" in (source / "config.json").read_text()
    assert not (source / "ran").exists()


# What else was seen to work; each takes a process with torch.
_LLAMA = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "intermediate_size": 192,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
}
_GPT = {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 96}
MORE: dict[str, dict[str, Any]] = {
    "codegen": {**_GPT, "rotary_dim": 16},
    "cohere": _LLAMA,
    "falcon": _LLAMA,
    "gemma": {**_LLAMA, "head_dim": 32},
    "gemma3_text": {**_LLAMA, "head_dim": 32, "sliding_window": 8},
    "gpt_bigcode": _GPT,
    "gpt_neox": _LLAMA,
    "gptj": {**_GPT, "rotary_dim": 16},
    "granite": _LLAMA,
    "helium": {**_LLAMA, "head_dim": 32},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "mpt": {"d_model": 128, "n_heads": 4, "n_layers": 2, "vocab_size": 512, "max_seq_len": 96},
    "olmo2": _LLAMA,
    # Optimum hands phi a cache as if every head had its own keys, which they have in every phi there is.
    "phi": {**_LLAMA, "num_key_value_heads": 4},
    "phi3": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 32},
    "qwen3_moe": {**_LLAMA, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_many_more_architectures_compute_what_transformers_computes(name: str, tmp_path: Path) -> None:
    source = transformers_checkpoint(tmp_path / "source", name, MORE[name])
    (tmp_path / "graph").mkdir()
    graph = export_graph(source, tmp_path / "graph")
    Source(graph.folder)
    expected = transformers_logits(source, TOKENS)
    np.testing.assert_allclose(logits(OptimumRunner(graph.folder, threads=1), [31, 9, *[1] * 20]), expected, atol=1e-3)
