"""`edgekit export --exporter optimum`: from a checkpoint that edgekit does not support to an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.bundle.bundle import open_bundle, verify_bundle
from edgekit.errors import ConfigError, EdgekitError, ExportError
from edgekit.export.optimum import artifact
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.quantization.grid import as_floats
from edgekit.export.sources.open import open_checkpoint
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk
from edgekit.target import load_target
from tests.cli.test_errors import refused
from tests.conftest import SMALL, edgekit
from tests.export.checkpoints.gguf.files import write_gguf
from tests.export.optimum.graphs import checkpoint, float_graph
from tests.models import tiny_checkpoint
from tests.oracle import transformers_logits

TOKENS = [int(token) for token in np.random.default_rng(19).integers(0, 512, 50)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt2, unquantized, exported as a user would."""
    folder = tmp_path_factory.mktemp("optimum") / "bundle"
    options = ("--target", "cpu", "--exporter", "optimum", "--recipe", "none", "--name", "tiny")
    done = edgekit("export", checkpoint("gpt2"), *options, "-o", folder)
    assert "tiny: floating point" in done.stderr
    return folder


@pytest.mark.optimum
def test_the_bundle_computes_what_transformers_computes(bundle: Path) -> None:
    written = open_bundle(bundle).manifest.artifact
    runner = open_runner(bundle, written.kind, written.dialect, context_length=60, threads=1)
    rows = [runner.run([Chunk(0, TOKENS[:30], "all")])[0].copy()]
    rows += [runner.run([Chunk(0, [token])])[0].copy() for token in TOKENS[30:]]
    runner.close()
    np.testing.assert_allclose(np.concatenate(rows), transformers_logits(checkpoint("gpt2"), TOKENS), atol=1e-3)


@pytest.mark.optimum
def test_the_manifest_describes_the_bundle(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    verify_bundle(open_bundle(bundle))
    assert (manifest.artifact.kind, manifest.artifact.dialect) == ("onnx", "optimum")
    assert (manifest.name, manifest.architecture, manifest.context_length) == ("tiny", "gpt2", 96)
    # Two layers, keys and values, four heads of 32 numbers of 4 bytes.
    assert manifest.memory.kv_cache_per_token == 2 * 2 * 4 * 32 * 4
    sizes = [(bundle / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert manifest.memory.weights == sum(sizes)
    per_layer = 128 * 384 + 384 + 128 * 128 + 128 + 128 * 512 + 512 + 512 * 128 + 128 + 4 * 128
    assert manifest.parameters == 512 * 128 + 96 * 128 + 2 * per_layer + 2 * 128
    assert manifest.recipe["matrices"] == {"floating point": 10}
    assert sorted(path.name for path in bundle.iterdir()) == sorted(
        [entry.path for entry in manifest.files] + ["manifest.json"]
    )
    config = json.loads((bundle / "config.json").read_text())
    assert config == json.loads((checkpoint("gpt2") / "config.json").read_text())


@pytest.mark.optimum
def test_it_answers(bundle: Path) -> None:
    sampling = ("--max-tokens", "8", "--temperature", "1", "--seed", "3")
    done = edgekit("run", bundle, "the capital of France", *sampling)
    again = edgekit("run", bundle, "the capital of France", *sampling)
    assert done.stdout.strip()
    assert done.stdout == again.stdout


@pytest.mark.optimum
def test_a_model_that_optimum_cannot_export_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("gpt2"), source)
    config = {
        "model_type": "bloom",
        "hidden_size": 128,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 512,
        "eos_token_id": 2,
    }
    (source / "config.json").write_text(json.dumps(config))
    stderr = refused("export", source, "--target", "cpu", "--exporter", "optimum", "-o", tmp_path / "out", status=1)
    assert "states no maximum context length" in stderr
    assert "max_position_embeddings" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.optimum
def test_the_context_can_be_shorter_than_the_models_and_not_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = float_graph("gpt2")
    # The exporter takes seconds, and this graph exists already.
    monkeypatch.setattr(artifact, "export_graph", lambda *_, **__: graph)
    export(checkpoint("gpt2"), tmp_path / "out", context_length=40)
    manifest = open_bundle(tmp_path / "out").manifest
    assert (manifest.context_length, manifest.recipe["matrices"]) == (40, {"lsq 4-bit, group 32": 9})
    with pytest.raises(ExportError, match="context is 96 tokens; it cannot be exported for 97"):
        export(checkpoint("gpt2"), tmp_path / "more", context_length=97)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("option", ["--yarn", "--eval"])
def test_options_of_edgekits_own_exporter_are_refused(option: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model")
    (tmp_path / "4").write_text("text to measure on")
    value = "4" if option == "--yarn" else str(tmp_path / "4")
    options = ("--target", "cpu", "--exporter", "optimum", option, value, "-o", tmp_path / "out")
    assert f"{option} is for edgekit's own exporter" in refused("export", source, *options, status=2)


@pytest.mark.parametrize("target", ["orin", "m2"])
def test_a_target_that_needs_another_artifact_is_refused(target: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match=f"target `{target}.*which Optimum does not write") as caught:
        export(source, tmp_path / "out", target=target)
    assert "cpu" in str(caught.value.hint)


def test_a_gguf_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tiny_checkpoint(tmp_path / "model"), tmp_path / "model.gguf")
    with pytest.raises(EdgekitError, match="Optimum cannot read") as caught:
        export(path, tmp_path / "out")
    assert "leave out `exporter='optimum'`" in str(caught.value.hint)


def test_the_error_for_an_unsupported_architecture_points_to_optimum(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    stderr = refused("export", source, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "unsupported architecture `gpt2`" in stderr
    assert "--exporter optimum" in stderr


@pytest.mark.slow
@pytest.mark.optimum
def test_a_real_model_answers_through_optimum(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    model = open_checkpoint(SMALL)
    tensors = {name: as_floats(model.read(name)) for name in model.tensors}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    text = model.tokenizer()
    (source / "tokenizer.json").write_bytes(text.tokenizer_json)
    write(source / "config.json", model.config)
    write(source / "tokenizer_config.json", {"chat_template": text.chat_template, **text.special})
    write(source / "generation_config.json", {"eos_token_id": list(text.eos_token_ids)})
    model.close()
    edgekit("export", source, "--target", "cpu", "--exporter", "optimum", "-o", tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest.memory.weights < 95e6
    assert "Paris" in edgekit("run", tmp_path / "out", "What is the capital of France?", "--max-tokens", "20").stdout


def export(source: Path, output: Path, target: str = "cpu", context_length: int | None = None) -> None:
    options = ExportOptions(exporter="optimum", context_length=context_length)
    export_bundle(str(source), load_target(target), output, options, lambda *_: None)


def write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value)), encoding="utf-8")
