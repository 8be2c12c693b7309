"""The streaming forward pass against the float32 reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.checkpoints import open_checkpoint
from edgekit.export.forward import CheckpointTensors, LayerRunner
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
