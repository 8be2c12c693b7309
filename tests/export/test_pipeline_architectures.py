"""Full exports of every architecture for every kind of artifact, run by the runner that opens it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner
from edgekit.target import load_target
from tests.models import tiny_tensors
from tests.ort_version import RUNS_NATIVE, WINDOWS_RUN
from tests.reference import forward
from tests.variants import VARIANTS, variant

TOKENS = [int(token) for token in np.random.default_rng(13).integers(0, 400, 90)]
# Sliding windows of 12 tokens that mlx-lm's classes would ignore; tests/export/writers/test_mlx_architectures.py.
REFUSED = {("qwen2-window", "m2"), ("mistral-window", "m2"), ("phi3", "m2")}


@pytest.mark.parametrize("target", ["cpu", "m2", "orin", "rtx-native"])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_architecture_is_exported_for_every_target_and_runs(name: str, target: str, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf")
    profile = load_target("rtx", dialect="native") if target == "rtx-native" else load_target(target)
    options = ExportOptions(recipe="none", context_length=200 if name == "phi3" and target != "m2" else None)
    if (name, target) in REFUSED:
        with pytest.raises(ExportError, match="sliding window"):
            export_bundle(str(source), profile, tmp_path / "bundle", options, lambda *_: None)
        return
    if target == "cpu" and name in {"qwen2-window", "mistral-window", "gemma3_text"} and not WINDOWS_RUN:
        pytest.skip("onnxruntime before 1.24 counts a sliding window one token short")
    if target == "rtx-native" and not RUNS_NATIVE:
        pytest.skip("onnxruntime before 1.24 reads no graph of opset 24")
    bundle = export_bundle(str(source), profile, tmp_path / "bundle", options, lambda *_: None)
    artifact = bundle.manifest.artifact
    runner = open_runner(bundle.path, artifact.kind, artifact.dialect, context_length=128, threads=1)
    got = np.concatenate([runner.run([Chunk(0, TOKENS[:80], "all")])[0], *_one_by_one(runner, TOKENS[80:])])
    runner.close()
    config = json.loads((source / "config.json").read_text())
    decoder = describe(config, context_length=options.context_length)
    expected = forward(decoder, tiny_tensors(source).__getitem__, TOKENS)
    scale = np.abs(expected).max()
    # A Jetson's graph computes in FP16, 11 bits through some ten roundings a layer; MLX's weights are FP16.
    tolerance = 1e-3 if target == "cpu" else 5e-3 if target == "m2" else 2e-2
    assert np.abs(got - expected).max() < tolerance * scale
    # The bundle's own config.json describes the same model.
    again = describe(json.loads((bundle.path / "config.json").read_text()), context_length=options.context_length)
    assert (again.layers, again.final_norm, again.tied) == (decoder.layers, decoder.final_norm, decoder.tied)


def _one_by_one(runner: Runner, tokens: list[int]) -> list[npt.NDArray[np.float32]]:
    return [np.array(runner.run([Chunk(0, [token], "all")])[0]) for token in tokens]
