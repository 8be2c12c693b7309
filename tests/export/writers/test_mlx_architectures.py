"""Every architecture as MLX weights: mlx-lm's own model classes compute what the reference computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.mlx import MlxWriter
from edgekit.runners.base import Chunk
from edgekit.runners.mlx import MlxRunner
from tests.models import TensorWeights, tiny_tensors
from tests.reference import forward
from tests.variants import VARIANTS, variant

TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 500, 150)]
# mlx-lm would load these and attend to more than the window.
WITHOUT_WINDOWS = {"qwen2-window", "mistral-window", "phi3"}
FAITHFUL = sorted(VARIANTS.keys() - WITHOUT_WINDOWS)


def described(folder: Path, context_length: int | None = None) -> Decoder:
    return describe(json.loads((folder / "config.json").read_text(encoding="utf-8")), context_length=context_length)


def write(decoder: Decoder, weights: TensorWeights, folder: Path) -> Path:
    folder.mkdir()
    artifact = MlxWriter(dtype="float32")(decoder, weights, folder, lambda _: None)
    (folder / "config.json").write_text(json.dumps(artifact.config), encoding="utf-8")
    return folder


def logits(folder: Path, chunks: list[int]) -> npt.NDArray[np.float32]:
    runner, done, rows = MlxRunner(folder, context_length=200), 0, []
    for count in chunks:
        rows.append(runner.run([Chunk(0, TOKENS[done : done + count], "all")])[0])
        done += count
    runner.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("count", [40, 150])
@pytest.mark.parametrize("name", FAITHFUL)
def test_mlx_lm_computes_the_references_logits(name: str, count: int, tmp_path: Path) -> None:
    source = variant(name, tmp_path / "hf")
    decoder, tensors = described(source, count), tiny_tensors(source)
    folder = write(decoder, TensorWeights(tensors), tmp_path / "mlx")
    expected = forward(decoder, tensors.__getitem__, TOKENS[:count])
    np.testing.assert_allclose(logits(folder, [count]), expected, atol=2e-3)
    np.testing.assert_allclose(logits(folder, [count - 20, *[1] * 20]), expected, atol=2e-3)


@pytest.mark.parametrize("name", FAITHFUL)
def test_quantized_weights_give_the_logits_of_the_dequantized_model(name: str, tmp_path: Path) -> None:
    def quantized(linear: Linear, weight: npt.NDArray[np.float32]) -> GroupedTensor:
        return lsq(weight, Grid(8 if "embed_tokens" in linear.name else 4, 32, Offset.FLOAT, np.float16))

    source = variant(name, tmp_path / "hf")
    decoder, weights = described(source), TensorWeights(tiny_tensors(source), quantized)
    folder = write(decoder, weights, tmp_path / "mlx")
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS[:40])
    np.testing.assert_allclose(logits(folder, [40]), expected, atol=3e-3)


@pytest.mark.parametrize("name", sorted(WITHOUT_WINDOWS))
def test_a_window_that_mlx_lm_would_not_see_is_refused_unless_the_context_is_within_it(
    name: str, tmp_path: Path
) -> None:
    source = variant(name, tmp_path / "hf")
    window = 200 if name == "phi3" else 12
    with pytest.raises(ExportError, match=f"cannot compute a sliding window of {window} tokens") as caught:
        write(described(source), TensorWeights(tiny_tensors(source)), tmp_path / "refused")
    assert caught.value.hint is not None
    assert f"`context_length={window}`" in caught.value.hint
    decoder, tensors = described(source, window), tiny_tensors(source)
    folder = write(decoder, TensorWeights(tensors), tmp_path / "mlx")
    expected = forward(decoder, tensors.__getitem__, TOKENS[:window])
    np.testing.assert_allclose(logits(folder, [len(TOKENS[:window])]), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("phi3", {"sliding_window": None, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "`yarn`"),
        ("phi3", {"sliding_window": None, "head_dim": 64}, "head_dim"),
    ],
)
def test_configurations_that_mlx_lm_silently_ignores_are_refused(
    name: str, keys: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = variant(name, tmp_path / "hf", **keys)
    with pytest.raises(ExportError, match=message):
        write(described(source), TensorWeights(tiny_tensors(source)), tmp_path / "mlx")


class Late:
    """The empty cache of a layer at position 40,000."""

    offset = 40_000

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        return keys, values

    def make_mask(self, *_: Any, **__: Any) -> str:
        return "causal"


def test_yarn_beyond_32768_positions_is_what_the_reference_computes(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load_model

    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    source = variant("qwen2-yarn", tmp_path / "hf", max_position=32768, rope_scaling=scaling)
    decoder, tensors = described(source), tiny_tensors(source)
    assert decoder.max_position == 131_072
    folder = write(decoder, TensorWeights(tensors), tmp_path / "mlx")
    got = np.array(load_model(folder)[0](mx.array([TOKENS[:40]]), cache=[Late()] * 3)[0])
    # MLX computes RoPE angles in float32: at this position they are off by up to 0.002.
    np.testing.assert_allclose(got, forward(decoder, tensors.__getitem__, TOKENS[:40], first=40_000), atol=2e-2)
    plain = described(variant("qwen2", tmp_path / "plain"))
    assert np.abs(got - forward(plain, tensors.__getitem__, TOKENS[:40], first=40_000)).max() > 0.5
