"""Full exports of quantized checkpoints: the artifact has the same codes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.bundle.bundle import Bundle
from edgekit.errors import ExportError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.recipes.recipe import recipe_for
from edgekit.export.sources.open import open_checkpoint
from edgekit.target import load_target
from tests.export.checkpoints.packed_files import gptq_parts, pack_checkpoint, random_layer
from tests.export.test_pipeline import TOKENS, logits
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder
from tests.reference import forward

LAYERS = 2


def exported(checkpoint: Path, target: str, folder: Path) -> Bundle:
    return export_bundle(str(checkpoint), load_target(target), folder, ExportOptions(), lambda *_: None)


def packed(tmp_path: Path, method: str, **options: Any) -> tuple[Path, dict[str, npt.NDArray[np.float32]]]:
    folder = tiny_checkpoint(tmp_path / "model", layers=LAYERS)
    return folder, pack_checkpoint(folder, method, **options)


def stored_codes(bundle: Bundle, bits: int) -> bytes:
    """The codes of every layer in an artifact, one byte each and row after row, as its format lays them out."""
    if bundle.manifest.artifact.kind == "mlx":
        stored = load_file(bundle.path / "model.safetensors")
        words = [stored[name] for name in sorted(stored) if stored[name].dtype == np.uint32]
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        return b"".join(
            ((w[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint8).tobytes() for w in words
        )
    path = next(bundle.path.rglob("model.onnx"))
    rows = []
    for tensor in onnx.load(path).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT4:  # [in, out], less 8
            rows.append((onnx.numpy_helper.to_array(tensor).astype(np.int8).T + 8).astype(np.uint8))
        elif tensor.name.endswith(".qweight") and bits == 4:  # [out, blocks, bytes]
            data = onnx.numpy_helper.to_array(tensor)
            rows.append(np.stack([data & 15, data >> 4], axis=-1))
        elif tensor.name.endswith(".qweight"):
            rows.append(onnx.numpy_helper.to_array(tensor))
    return b"".join(np.ascontiguousarray(array).tobytes() for array in rows)


def check_codes(checkpoint: Path, bundle: Bundle, bits: int) -> None:
    found = stored_codes(bundle, bits)
    with closing(open_checkpoint(checkpoint)) as source:
        layers = [name for name in source.tensors if name.endswith("_proj.weight")]
        assert len(layers) == 7 * LAYERS
        for name in layers:
            tensor = source.read(name)
            assert isinstance(tensor, GroupedTensor)
            assert tensor.codes.tobytes() in found, name


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize(
    ("method", "symmetric"), [("gptq", True), ("gptq", False), ("awq", False)], ids=["gptq-sym", "gptq-asym", "awq"]
)
def test_codes_of_a_quantized_checkpoint_are_kept(method: str, symmetric: bool, target: str, tmp_path: Path) -> None:
    checkpoint, values = packed(tmp_path, method, symmetric=symmetric)
    bundle = exported(checkpoint, target, tmp_path / "bundle")
    # Zero points are integers in onnxruntime; offsets of MLX and TensorRT are float16, which rounds most products.
    exact = symmetric or target == "cpu"
    treatments = bundle.manifest.recipe["matrices"]
    assert treatments["exact 4-bit, group 32" if exact else "4-bit codes kept, group 32"] == 7 * LAYERS
    check_codes(checkpoint, bundle, 4)

    recipe = recipe_for(load_target(target), "auto", None)
    weights = TensorWeights(
        values, lambda linear, w: w if linear.name.endswith("_proj") else recipe.apply(linear, w, "F16")[0]
    )
    decoder = tiny_decoder(checkpoint)
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    # cpu rounds activations to 8 bits per group; m2 and orin keep them in floating point.
    assert np.abs(logits(bundle) - expected).max() < {"cpu": 0.3, "m2": 5e-2, "orin": 5e-2}[target]


@pytest.mark.parametrize("target", ["cpu", "m2"])
def test_8_bit_codes_are_kept(target: str, tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", bits=8, symmetric=True)
    bundle = exported(checkpoint, target, tmp_path / "bundle")
    assert bundle.manifest.recipe["matrices"]["exact 8-bit, group 32"] == 7 * LAYERS
    check_codes(checkpoint, bundle, 8)


def test_one_group_for_all_inputs_is_split_into_the_targets(tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", group_size=-1, symmetric=True)
    bundle = exported(checkpoint, "orin", tmp_path / "bundle")
    treatments = bundle.manifest.recipe["matrices"]
    assert sum(count for name, count in treatments.items() if name.startswith("exact 4-bit")) == 7 * LAYERS
    check_codes(checkpoint, bundle, 4)


def test_3_bit_codes_become_4_bit_codes_without_loss(tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", bits=3)
    bundle = exported(checkpoint, "cpu", tmp_path / "bundle")
    assert bundle.manifest.recipe["matrices"]["exact 4-bit, group 32"] == 7 * LAYERS
    check_codes(checkpoint, bundle, 4)


def test_a_layer_whose_inputs_were_reordered_gets_8_bits(tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", symmetric=True)
    stored = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.g_idx"
    stored[name] = stored[name][::-1].copy()
    save_file(stored, checkpoint / "model.safetensors")
    treatments = exported(checkpoint, "cpu", tmp_path / "bundle").manifest.recipe["matrices"]
    assert treatments["exact 4-bit, group 32"] == 7 * LAYERS - 1
    assert sum(count for words, count in treatments.items() if words.startswith("8-bit")) == 1


def test_a_bias_that_the_model_does_not_have_is_left_out_only_if_it_is_zero(tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", symmetric=True)
    stored = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.bias"
    assert not stored[name].any()
    stored[name][3] = 1e-4
    save_file(stored, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"does not use: model\.layers\.0\.mlp\.up_proj\.bias"):
        exported(checkpoint, "cpu", tmp_path / "bundle")


def test_a_norm_with_nan_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", symmetric=True)
    stored = load_file(checkpoint / "model.safetensors")
    stored["model.norm.weight"][5] = np.nan
    save_file(stored, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"`model\.norm\.weight` contains NaN or infinity"):
        exported(checkpoint, "cpu", tmp_path / "bundle")


def test_a_packed_layer_of_the_wrong_width_is_refused_before_any_work(tmp_path: Path) -> None:
    checkpoint, _ = packed(tmp_path, "gptq", symmetric=True)
    stored = load_file(checkpoint / "model.safetensors")
    stored |= gptq_parts("model.layers.1.mlp.up_proj", random_layer(192, 64))
    save_file(stored, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"up_proj\.weight` has shape \(192, 64\)"):
        exported(checkpoint, "cpu", tmp_path / "bundle")
