"""Optimum's own graphs, in floating point, compute what torch computes, and what our own graphs compute."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from edgekit.errors import ExportError
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.optimum.exporter import check_graph, check_reference, export_graph
from edgekit.export.optimum.source import Source
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.optimum import OptimumRunner
from tests.conftest import edgekit
from tests.export.optimum.graphs import MODELS, checkpoint, float_graph
from tests.export.optimum.test_older_config import as_transformers_5_writes_it
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.oracle import transformers_checkpoint, transformers_logits
from tests.reference import forward
from tests.variants import variant

pytestmark = pytest.mark.optimum

FloatArray = npt.NDArray[np.float32]
TOKENS = [int(token) for token in np.random.default_rng(13).integers(0, 512, 60)]


def _slow(*values: object) -> Any:
    """A case whose process imports torch for what another one shows in the same way."""
    return pytest.param(*values, marks=pytest.mark.slow)


def logits(runner: Runner, chunks: list[int]) -> FloatArray:
    """Logits of TOKENS in chunks of these sizes."""
    rows, done = [], 0
    for count in chunks:
        rows.append(runner.run([Chunk(0, TOKENS[done : done + count], "all")])[0].copy())
        done += count
    runner.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_edgekit_does_not_know_computes_what_transformers_computes(name: str) -> None:
    folder = float_graph(name).folder
    expected = transformers_logits(checkpoint(name), TOKENS)
    assert np.ptp(expected) > 2
    for chunks in ([60], [1] * 60, [31, 9, 20]):
        np.testing.assert_allclose(logits(OptimumRunner(folder, threads=1), chunks), expected, atol=1e-3)


@pytest.mark.parametrize("name", [_slow("qwen2"), "llama"])
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


def test_a_graph_whose_weights_are_missing_is_distinguished_from_one_that_is_wrong(tmp_path: Path) -> None:
    shutil.copy(float_graph("gpt2").folder / "model.onnx", tmp_path)
    with pytest.raises(ExportError, match="does not run: onnxruntime cannot load"):
        check_graph(dataclasses.replace(float_graph("gpt2"), folder=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"attention_multiplier": 2.0}, "`attention_multiplier: 2.0` is not a key that transformers 4", "ignore_keys"),
        _slow({"n_layer": 3}, "the tensor `transformer.h.2.", None),
        _slow({"n_layer": 1}, "the tensor `transformer.h.1.", None),
        _slow({"model_type": "gpt_2"}, "does not support the architecture `gpt_2`", "did you mean `gpt2`"),
        _slow({"n_head": 5}, "cannot export this model: ValueError: `embed_dim` must be divisible", None),
    ],
)
def test_a_refusal_of_optimum_is_a_one_line_error(
    changes: dict[str, Any], message: str, hint: str | None, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("gpt2"), source)
    config = json.loads((source / "config.json").read_text())
    with pytest.raises(ExportError) as caught:
        export_graph(source, config | changes, tmp_path)
    assert message in caught.value.message
    if hint is not None:
        assert hint in str(caught.value.hint)


def test_code_that_a_checkpoint_brings_is_not_run() -> None:
    source = checkpoint("gpt2")
    assert float_graph("gpt2").tokens
    assert "theirs.Model" in (source / "config.json").read_text()
    assert not (source / "ran").exists()


@pytest.mark.parametrize("name", ["llama-nested-rope", _slow("gemma3_text")])
def test_a_checkpoint_of_transformers_5_is_exported_as_edgekit_computes_it(name: str, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "source")
    config = as_transformers_5_writes_it(json.loads((source / "config.json").read_text()))
    (source / "config.json").write_text(json.dumps(config))
    edgekit("export", source, "--target", "cpu", "--exporter", "optimum", "--recipe", "none", "-o", tmp_path / "out")
    expected = forward(tiny_decoder(source), tiny_tensors(source).__getitem__, TOKENS)
    np.testing.assert_allclose(logits(OptimumRunner(tmp_path / "out", threads=1), [31, 29]), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Of another base.
        ({"rope_theta": 9_000.0}, "a rotary embedding has other frequencies"),
        # transformers reads it, and adds a window.
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "a logit differs by"),
    ],
)
def test_torch_is_compared_with_edgekits_own_forward_pass(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    graph, source = float_graph("qwen2"), tmp_path / "source"
    with closing(FolderCheckpoint(checkpoint("qwen2"))) as same:
        assert (check_reference(graph, same) or 0) < 1e-3
    shutil.copytree(checkpoint("qwen2"), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with closing(FolderCheckpoint(source)) as other, pytest.raises(ExportError, match=message) as caught:
        check_reference(graph, other)
    assert caught.value.code == "optimum_differs"


@pytest.mark.slow
def test_a_head_beside_a_tied_embedding_must_be_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("gpt2"), source)
    config, tensors = json.loads((source / "config.json").read_text()), tiny_tensors(source)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"ties the output head to the embedding, but `lm_head\.weight` is another"):
        export_graph(source, config, tmp_path)


# Other architectures that work; each takes a process with torch.
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
    "falcon": {key: value for key, value in _LLAMA.items() if key not in {"intermediate_size", "num_key_value_heads"}},
    "gemma": {**_LLAMA, "head_dim": 32},
    "gemma3_text": {**_LLAMA, "head_dim": 32, "sliding_window": 8},
    "gpt_bigcode": _GPT,
    "gpt_neox": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "gptj": {**_GPT, "rotary_dim": 16},
    "granite": _LLAMA,
    "helium": {**_LLAMA, "head_dim": 32},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "mpt": {"d_model": 128, "n_heads": 4, "n_layers": 2, "vocab_size": 512, "max_seq_len": 96},
    "olmo2": _LLAMA,
    # Optimum gives phi a cache with keys for every head, which is right for every published phi.
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
    graph = export_graph(source, json.loads((source / "config.json").read_text()), tmp_path / "graph")
    Source(graph.folder)
    expected = transformers_logits(source, TOKENS)
    np.testing.assert_allclose(logits(OptimumRunner(graph.folder, threads=1), [31, 9, *[1] * 20]), expected, atol=1e-3)
