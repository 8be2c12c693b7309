"""The streaming forward pass against the float32 reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.forward import CheckpointTensors, LayerRunner
from edgekit.export.sources.open import open_checkpoint
from tests.models import tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.reference import forward
from tests.variants import VARIANTS, variant

IDS = np.random.default_rng(5).integers(0, 500, (3, 40))
FloatArray = npt.NDArray[np.float32]


def streamed(runner: LayerRunner, tensors: CheckpointTensors, ids: npt.NDArray[np.int64]) -> FloatArray:
    """Logits of all windows, `[windows, tokens, vocab]`."""
    hidden = runner.embed(tensors, ids)
    for layer in runner.decoder.layers:
        runner.run(layer, tensors, hidden, out=hidden)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return runner.logits(tensors, flat).reshape(*ids.shape, -1)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_it_computes_what_the_reference_computes(name: str, tmp_path: Path) -> None:
    folder = variant(name, tmp_path)
    decoder, tensors = tiny_decoder(folder), tiny_tensors(folder)
    # Two windows fit in a run and the third needs one of its own.
    ours = streamed(LayerRunner(decoder, tokens_per_run=80), CheckpointTensors(open_checkpoint(folder)), IDS)
    for window, ids in zip(ours, IDS, strict=True):
        expected = forward(decoder, tensors.__getitem__, ids.tolist())
        assert np.abs(window - expected).max() < 1e-4
        assert np.abs(expected).max() > 2


def test_it_returns_the_inputs_of_the_four_groups_of_matrices(tmp_path: Path) -> None:
    folder = variant("llama-biased", tmp_path)
    decoder, values = tiny_decoder(folder), tiny_tensors(folder)
    tensors, runner = CheckpointTensors(open_checkpoint(folder)), LayerRunner(decoder, tokens_per_run=40)
    layer, hidden = decoder.layers[0], runner.embed(tensors, IDS)
    after, inputs = runner.run_with_inputs(layer, tensors, hidden)

    def norm(x: FloatArray, name: str) -> FloatArray:
        mean_square = np.mean(x * x, axis=-1, keepdims=True) + np.float32(decoder.rms_norm_eps)
        return np.asarray(x / np.sqrt(mean_square) * values[name], np.float32)

    def branch(part: str, name: str) -> FloatArray:
        return np.asarray(inputs[part] @ values[f"{name}.weight"].T + values[f"{name}.bias"], np.float32)

    middle = hidden + branch("o", layer.o.name)
    assert np.abs(inputs["attention"] - norm(hidden, layer.input_norm)).max() < 1e-4
    assert np.abs(inputs["mlp"] - norm(middle, layer.mlp_norm)).max() < 1e-4
    assert np.abs(after - (middle + branch("down", layer.down.name))).max() < 1e-4
    assert np.array_equal(after, runner.run(layer, tensors, hidden))


def test_windows_do_not_see_each_other_and_may_be_replaced_in_place(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    decoder = tiny_decoder(folder)
    tensors, runner = CheckpointTensors(open_checkpoint(folder)), LayerRunner(decoder)
    hidden = runner.embed(tensors, IDS)
    alone = runner.run(decoder.layers[0], tensors, hidden[1:2])
    mapped = np.lib.format.open_memmap(tmp_path / "hidden.npy", "w+", np.float32, hidden.shape)
    mapped[...] = hidden
    assert runner.run(decoder.layers[0], tensors, mapped, out=mapped) is mapped
    assert np.abs(mapped[1] - alone[0]).max() < 1e-5


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    runner = LayerRunner(tiny_decoder(folder))
    with pytest.raises(ExportError, match=r"token 512 is outside the model's vocabulary of 512"):
        runner.embed(CheckpointTensors(open_checkpoint(folder)), np.array([[1, 512]]))
