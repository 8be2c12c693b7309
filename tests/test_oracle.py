"""Two oracles without shared code, ours in numpy and torch's transformers, agree on the checkpoints of tests.models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.models import tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.oracle import transformers_logits
from tests.reference import forward

pytestmark = pytest.mark.optimum

TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 512, 40)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_the_reference_computes_what_transformers_computes(
    model_type: Literal["qwen2", "llama"], tied: bool, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path, model_type=model_type, tied=tied)
    theirs = transformers_logits(folder, TOKENS)
    ours = forward(tiny_decoder(folder), tiny_tensors(folder).__getitem__, TOKENS)
    assert theirs.shape == (len(TOKENS), 512)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
