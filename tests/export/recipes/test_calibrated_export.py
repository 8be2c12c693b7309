"""Calibrated recipes on full models: every architecture, streamed as an export streams it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.bundle.bundle import Bundle, verify_bundle
from edgekit.errors import ConfigError
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.forward import CheckpointTensors, LayerRunner, Tensors
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.quantization.grid import as_floats
from edgekit.export.quantization.lsq import lsq
from edgekit.export.quantization.rtn import rtn
from edgekit.export.recipes import mixed_bits
from edgekit.export.recipes.calibrated import CalibratedWeights
from edgekit.export.recipes.calibration_text import calibration_text, choose_windows
from edgekit.export.recipes.mixed_bits import fit_to_size, measure_sensitivities
from edgekit.export.recipes.recipe import FORMATS, Recipe
from edgekit.export.recipes.streaming import CheckpointWeights
from edgekit.export.sources.open import open_checkpoint
from edgekit.export.writers.base import Weights
from edgekit.target import load_target
from tests.models import tiny_checkpoint, tiny_decoder
from tests.variants import VARIANTS, variant

# Each takes seconds: by default those that differ most run, an untied head, a sliding window, a norm around each block.
EVERY_VARIANT = [
    pytest.param(name, marks=() if name in {"qwen2", "mistral-window", "gemma3_text"} else pytest.mark.slow)
    for name in sorted(VARIANTS)
]

FloatArray = npt.NDArray[np.float32]
IDS = np.random.default_rng(0).integers(0, 500, (100, 40))
HELD_OUT = np.random.default_rng(1).integers(0, 500, (6, 40))


class WrittenTensors:
    """All of a model's weights as a writer reads them, for the forward pass."""

    def __init__(self, decoder: Decoder, weights: Weights) -> None:
        # As the MLX writer does: stored matrices layer by layer, and the norms at the end.
        linears = {linear.weight: linear for linear in (decoder.embedding, *decoder.stored_linears())}
        self._tensors = {
            name: as_floats(weights.matrix(linears[name])) if name in linears else weights.vector(name)
            for name in decoder.tensor_shapes()
        }

    def norm(self, name: str) -> FloatArray:
        return self._tensors[name]

    def bias(self, linear: Linear) -> FloatArray:
        return self._tensors[linear.stored.bias_name][linear.rows]

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        return self._tensors[linear.stored.weight][linear.rows][start:stop]


def outputs(decoder: Decoder, tensors: Tensors) -> FloatArray:
    """Logits, `[windows * tokens, vocab]`, for text that was not calibrated on."""
    return logits(decoder, tensors, HELD_OUT)


def logits(decoder: Decoder, tensors: Tensors, ids: npt.NDArray[np.int64]) -> FloatArray:
    """Logits, `[windows * tokens, vocab]`."""
    runner = LayerRunner(decoder, threads=1)
    hidden = runner.embed(tensors, ids)
    for layer in decoder.layers:
        runner.run(layer, tensors, hidden, out=hidden)
    return runner.logits(tensors, hidden.reshape(-1, hidden.shape[-1]))


def loss(decoder: Decoder, checkpoint: Checkpoint, weights: Weights) -> float:
    expected = outputs(decoder, CheckpointTensors(checkpoint))
    found = outputs(decoder, WrittenTensors(decoder, weights))
    return float(np.square(found - expected).sum() / np.square(expected).sum())


def recipe(method: str, **chosen: int) -> Recipe:
    return Recipe(method, FORMATS["mlx"], (32,), chosen)


def with_large_inputs(folder: Path) -> Path:
    """Enlarge some inputs of a tiny model's matrices, as in trained models."""
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name][::16] *= 6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", EVERY_VARIANT)
def test_gptq_keeps_more_of_every_architecture_than_a_recipe_without_data(name: str, tmp_path: Path) -> None:
    folder = variant(name, tmp_path)
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    plain = loss(decoder, checkpoint, CheckpointWeights(checkpoint, recipe("lsq")))
    calibrated = CalibratedWeights(checkpoint, decoder, recipe("gptq"), IDS)
    assert loss(decoder, checkpoint, calibrated) < 0.9 * plain
    matrices = 7 * len(decoder.layers) + (not decoder.tied)
    assert calibrated.used["gptq 4-bit, group 32"] == matrices
    assert sum(calibrated.used.values()) == matrices + 1


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_short_text_does_not_lead_gptq_astray(name: str, tmp_path: Path) -> None:
    """Three tokens for each input of the widest matrix: hardly more than chance."""
    folder = variant(name, tmp_path)
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    plain = loss(decoder, checkpoint, CheckpointWeights(checkpoint, recipe("lsq")))
    assert loss(decoder, checkpoint, CalibratedWeights(checkpoint, decoder, recipe("gptq"), IDS[:15])) < plain


@pytest.mark.parametrize("name", EVERY_VARIANT)
def test_awq_moves_scales_between_tensors_and_changes_nothing_else(name: str, tmp_path: Path) -> None:
    folder = variant(name, tmp_path)
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    wide = {linear.stored.name: 16 for linear in (decoder.embedding, *decoder.linears())}
    scaled = CalibratedWeights(checkpoint, decoder, recipe("awq", **wide), IDS)
    written = WrittenTensors(decoder, scaled)
    before, after = outputs(decoder, CheckpointTensors(checkpoint)), outputs(decoder, written)
    assert np.abs(after - before).max() < 2e-3
    norms = [norm for layer in decoder.layers for norm in (layer.input_norm, layer.mlp_norm)]
    assert max(np.abs(written.norm(norm) - as_floats(checkpoint.read(norm))).max() for norm in norms) > 0.01


@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "mistral"])
def test_awq_keeps_more_of_a_model_with_some_large_inputs_than_a_recipe_without_data(name: str, tmp_path: Path) -> None:
    folder = with_large_inputs(variant(name, tmp_path))
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    plain = loss(decoder, checkpoint, CheckpointWeights(checkpoint, recipe("lsq")))
    assert loss(decoder, checkpoint, CalibratedWeights(checkpoint, decoder, recipe("awq"), IDS)) < 0.8 * plain


@pytest.mark.parametrize(("method", "max_ratio"), [("gptq", 0.6), ("awq", 0.8)])
def test_an_untied_output_head_is_calibrated_on_its_inputs(method: str, max_ratio: float, tmp_path: Path) -> None:
    folder = with_large_inputs(variant("mistral", tmp_path))
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    wide = {linear.stored.name: 16 for linear in (decoder.embedding, *decoder.linears()) if linear != decoder.head}
    plain = loss(decoder, checkpoint, CheckpointWeights(checkpoint, recipe("lsq", **wide)))
    calibrated = CalibratedWeights(checkpoint, decoder, recipe(method, **wide), IDS)
    assert loss(decoder, checkpoint, calibrated) < max_ratio * plain
    assert calibrated.used[f"{method} 4-bit, group 32"] == 1


def test_layers_may_be_read_in_any_order_with_the_same_result(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    forth, back = (CalibratedWeights(checkpoint, decoder, recipe("gptq"), IDS) for _ in range(2))
    for weights in (forth, back):
        weights.matrix(decoder.embedding)
    linears = [linear for layer in decoder.layers for linear in layer.linears()]
    first = {linear.name: as_floats(forth.matrix(linear)) for linear in linears}
    for linear in reversed(linears):
        np.testing.assert_array_equal(as_floats(back.matrix(linear)), first[linear.name])


def exported(checkpoint: Path, target: str, folder: Path, **options: Any) -> Bundle:
    return export_bundle(str(checkpoint), load_target(target), folder, ExportOptions(**options), silent)


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_every_artifact_takes_a_calibrated_recipe(method: str, target: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 200, encoding="utf-8")
    folder = tiny_checkpoint(tmp_path / "model", layers=2)
    bundle = exported(folder, target, tmp_path / "bundle", recipe=method, calibrate_on=text)
    assert verify_bundle(bundle) == []
    recorded = bundle.manifest.recipe
    assert recorded["method"] == method
    assert any(name.startswith(f"{method} 4-bit") for name in recorded["matrices"])
    calibration = recorded["calibration"]
    assert calibration["text"] == "text.txt"
    assert calibration["tokens_per_window"] == 256
    assert len(calibration["sha256"]) == 64


def test_the_output_head_and_the_embedding_get_the_bits_they_are_given(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tied=False, layers=1)
    bundle = exported(folder, "m2", tmp_path / "bundle", recipe="lsq", head_bits=8, embedding_bits=16)
    assert bundle.manifest.recipe["matrices"] == {
        "lsq 4-bit, group 64": 7,
        "lsq 8-bit, group 128": 1,
        "floating point": 1,
    }
    tied = tiny_checkpoint(tmp_path / "tied", tied=True, layers=1)
    bundle = exported(tied, "cpu", tmp_path / "tied-bundle", recipe="rtn", head_bits=8)
    assert bundle.manifest.recipe["matrices"]["rtn 8-bit, group 128"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "lsq", "head_bits": 5}, "`head_bits=5`"),
        ({"recipe": "lsq", "head_bits": 4, "embedding_bits": 8}, "output head is tied to its embedding"),
        ({"recipe": "none", "head_bits": 8}, "floating point"),
        ({"recipe": "lsq", "calibrate_on": Path("some.txt")}, "takes no calibration text"),
        ({"recipe": "auto", "fit_bytes": 1 << 20}, "`fit_bytes` chooses bits"),
        ({"recipe": "gptq", "fit_bytes": 1 << 10}, r"which exceeds the 0\.0 MiB of `fit_bytes`"),
        ({"recipe": "gptq", "calibrate_on": Path("missing.txt")}, "missing.txt"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tied=True, layers=1)
    with pytest.raises(ConfigError, match=words):
        exported(folder, "m2", tmp_path / "bundle", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def weights(bundle: Bundle) -> int:
    """Bytes of an artifact's weights, without its graph."""
    return sum(file.size for file in bundle.manifest.files if file.path.endswith((".safetensors", ".data")))


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("tied", [True, False])
def test_fit_spends_its_bytes_and_not_more(target: str, tied: bool, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tied=tied, layers=3, hidden=256, intermediate=512)
    small, large = (
        exported(folder, target, tmp_path / name, recipe="lsq", head_bits=bits, embedding_bits=bits)
        for name, bits in (("small", 4), ("large", 8))
    )
    min_bytes = weights(small)
    budget = min_bytes + 500_000
    bundle = exported(folder, target, tmp_path / "fit", recipe="lsq", fit_bytes=budget)
    assert budget - 150_000 < weights(bundle) <= budget
    assert min_bytes < weights(large)
    kinds = Counter(name.split()[1] for name in bundle.manifest.recipe["matrices"])
    assert set(kinds) == {"4-bit,", "8-bit,"}


def test_a_matrix_that_loses_nothing_is_the_last_to_get_more_bits(tmp_path: Path) -> None:
    """Weights that are on a 4-bit grid already need no more than 4 bits."""
    folder = tiny_checkpoint(tmp_path, tied=False, layers=3)
    decoder, checkpoint = tiny_decoder(folder), open_checkpoint(folder)
    down, plain = decoder.layers[1].down, recipe("gptq")

    class OnTheGrid(CheckpointTensors):
        def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
            values = super().matrix(linear, start, stop)
            return rtn(values, plain.grid(linear, 4)).dequantize() if linear == down else values

    tensors = OnTheGrid(checkpoint)
    sensitivities = measure_sensitivities(plain, decoder, tensors, IDS, silent)
    # The embedding, four groups in each of three layers, the head.
    assert len(sensitivities) == 14
    assert int(np.argmin(sensitivities)) == 1 + 4 + 3
    assert min(sensitivities) < 0.1 * np.median(sensitivities)
    everything = replace(plain, chosen_bits={linear.name: 8 for linear in (decoder.embedding, *decoder.linears())})
    size = int((mixed_bits._SizePredictor(decoder, tensors, "mlx")(everything) + 23 * 2048 - 100) / 0.999)
    chosen = fit_to_size(plain, decoder, tensors, IDS, size=size, artifact_format="mlx", report=silent).chosen_bits
    assert down.name not in chosen
    assert len(chosen) == 22


class Quantized4Bit(CheckpointTensors):
    """A checkpoint with some matrices in 4 bits."""

    def __init__(self, checkpoint: Checkpoint, plain: Recipe, linears: list[Linear]) -> None:
        super().__init__(checkpoint)
        self._plain, self._names = plain, {linear.stored.name for linear in linears}

    def matrix(self, linear: Linear, start: int = 0, stop: int | None = None) -> FloatArray:
        values = super().matrix(linear, start, stop)
        return lsq(values, self._plain.grid(linear, 4)).dequantize() if linear.stored.name in self._names else values


def divergence(decoder: Decoder, reference: Tensors, other: Tensors, ids: npt.NDArray[np.int64]) -> float:
    """Mean divergence of one full model from another, in nats, from all logits in float64."""
    p, q = (logits(decoder, tensors, ids).astype(np.float64) for tensors in (reference, other))
    p -= np.log(np.exp(p).sum(axis=1, keepdims=True))
    q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("name", ["qwen2", "mistral", "qwen3"])
def test_a_groups_sensitivity_is_the_divergence_of_the_model_with_that_group_in_4_bits(
    name: str, tmp_path: Path
) -> None:
    folder = with_large_inputs(variant(name, tmp_path))
    decoder, checkpoint, plain = tiny_decoder(folder), open_checkpoint(folder), recipe("lsq")
    tensors, groups = CheckpointTensors(checkpoint), mixed_bits._groups(plain, decoder)
    sensitivities = measure_sensitivities(plain, decoder, tensors, IDS, silent)
    changed = [Quantized4Bit(checkpoint, plain, group) for group in groups]
    same = [divergence(decoder, tensors, one, IDS[-2:]) for one in changed]
    np.testing.assert_allclose(sensitivities, same, rtol=1e-4)
    # Measuring on a few tokens gives about the same sizes and order as measuring on a longer text.
    elsewhere = [divergence(decoder, tensors, one, HELD_OUT) for one in changed]
    assert np.abs(np.log(np.array(sensitivities) / elsewhere)).max() < np.log(2)
    ranks, others = (np.argsort(np.argsort(values)) for values in (sensitivities, elsewhere))
    assert np.corrcoef(ranks, others)[0, 1] > 0.9


@pytest.mark.parametrize(("method", "max_ratio"), [("gptq", 0.6), ("awq", 0.85)])
def test_sensitivity_is_measured_with_the_recipe_of_the_export(method: str, max_ratio: float, tmp_path: Path) -> None:
    folder = with_large_inputs(variant("mistral", tmp_path))
    decoder, tensors = tiny_decoder(folder), CheckpointTensors(open_checkpoint(folder))
    sensitivities, plain = (
        measure_sensitivities(recipe(name), decoder, tensors, IDS, silent) for name in (method, "lsq")
    )
    assert sensitivities[0] == plain[0], "the embedding is quantized without data"
    assert sum(sensitivities[1:-1]) < max_ratio * sum(plain[1:-1])
    assert sensitivities[-1] < plain[-1]


def test_windows_are_chosen_from_the_whole_text_and_the_same_ones_each_time(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    tokenizer_json = (folder / "tokenizer.json").read_bytes()
    text = calibration_text(None)
    first, again = (choose_windows(tokenizer_json, text, windows=8, length=64) for _ in range(2))
    other = choose_windows(tokenizer_json, text, windows=8, length=64, seed=1)
    assert first.ids.shape == (8, 64)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert not np.array_equal(first.ids, other.ids)
    assert len(np.unique(first.ids, axis=0)) == 8
    assert len(text.contents) > 200_000
