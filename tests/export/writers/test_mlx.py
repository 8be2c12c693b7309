from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.quantization.rtn import rtn
from edgekit.export.writers.base import Artifact
from edgekit.export.writers.mlx import MlxWriter
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors

FOUR = Grid(4, 32, Offset.FLOAT, np.float16)
EIGHT = Grid(8, 64, Offset.FLOAT, np.float16)


def four_bits(_: Linear, weight: npt.NDArray[np.float32]) -> GroupedTensor:
    return lsq(weight, FOUR)


def four_bits_and_8_bit_embedding(linear: Linear, weight: npt.NDArray[np.float32]) -> GroupedTensor:
    return lsq(weight, EIGHT if "embed_tokens" in linear.name else FOUR)


def write(
    source: Path, folder: Path, weights: TensorWeights | None = None, writer: MlxWriter | None = None
) -> Artifact:
    folder.mkdir(exist_ok=True)
    weights = weights or TensorWeights(tiny_tensors(source))
    artifact = (writer or MlxWriter())(tiny_decoder(source), weights, folder, lambda _: None)
    (folder / "config.json").write_text(json.dumps(artifact.config), encoding="utf-8")
    return artifact


def unpack(words: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    """Unpack codes according to the format's description: the first code in the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes: npt.NDArray[np.uint32] = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return codes.reshape(words.shape[0], -1)


def test_codes_scales_and_biases_are_laid_out_as_mlx_reads_them(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    mx.set_default_device(mx.cpu)
    source = tiny_checkpoint(tmp_path / "hf")
    decoder, tensors = tiny_decoder(source), tiny_tensors(source)
    weights = TensorWeights(tensors, four_bits_and_8_bit_embedding)
    write(source, tmp_path / "mlx", weights)
    stored = load_file(tmp_path / "mlx" / "model.safetensors")
    for linear, grid in ((decoder.layers[1].down, FOUR), (decoder.embedding, EIGHT)):
        expected = weights.matrix(linear)
        assert isinstance(expected, GroupedTensor)
        packed, scales, biases = (stored[f"{linear.name}.{part}"] for part in ("weight", "scales", "biases"))
        assert packed.dtype == np.uint32
        assert packed.shape == (linear.out_features, linear.in_features * grid.bits // 32)
        assert scales.dtype == biases.dtype == np.float16
        np.testing.assert_array_equal(unpack(packed, grid.bits), expected.codes)
        by_mlx = mx.dequantize(
            mx.array(packed),
            mx.array(scales.astype(np.float32)),
            mx.array(biases.astype(np.float32)),
            group_size=grid.group_size,
            bits=grid.bits,
        )
        np.testing.assert_array_equal(np.array(by_mlx), expected.dequantize())


def test_vectors_are_stored_in_the_writers_dtype_under_their_own_names(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    write(source, tmp_path / "mlx", TensorWeights(tiny_tensors(source), four_bits))
    stored = load_file(tmp_path / "mlx" / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.0.self_attn.k_proj.bias"):
        np.testing.assert_array_equal(stored[name], tiny_tensors(source)[name].astype(np.float16))


def test_the_configuration_has_the_keys_that_mlx_lm_and_transformers_read(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", model_type="llama", tied=True)
    config = write(source, tmp_path / "mlx", TensorWeights(tiny_tensors(source), four_bits)).config
    original = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in original.keys() - {"bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype"}:
        assert config[key] == original[key], key
    assert config["rope_parameters"] == {"rope_theta": 50_000.0, "rope_type": "default"}
    assert config["torch_dtype"] == "float16"
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert config["quantization_config"] == config["quantization"]


def test_a_module_on_another_grid_is_an_override_in_the_configuration(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), four_bits_and_8_bit_embedding)
    config: dict[str, Any] = write(source, tmp_path / "mlx", weights).config
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 64, "bits": 8, "mode": "affine"},
    }


def test_an_unquantized_model_has_no_quantization_in_its_configuration(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    artifact = write(source, tmp_path / "mlx")
    assert "quantization" not in artifact.config
    stored = load_file(tmp_path / "mlx" / "model.safetensors")
    assert stored.keys() == tiny_tensors(source).keys()
    assert {value.dtype for value in stored.values()} == {np.dtype(np.float16)}


def test_one_file_and_its_index_list_every_tensor(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), four_bits)
    artifact = write(source, tmp_path / "mlx", weights)
    assert artifact.files == ("model.safetensors", "model.safetensors.index.json")
    index = json.loads((tmp_path / "mlx" / artifact.files[1]).read_text(encoding="utf-8"))
    stored = load_file(tmp_path / "mlx" / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(sorted(stored), "model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
    assert index["metadata"]["total_parameters"] == sum(value.size for value in tiny_tensors(source).values())
    with safe_open(tmp_path / "mlx" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "mlx"}


def test_a_large_model_is_cut_into_shards_that_mlx_lm_loads(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    full = write(source, tmp_path / "full")
    parts = write(source, tmp_path / "parts", writer=MlxWriter(max_shard_bytes=200_000))
    assert full.files[0] == "model.safetensors"
    assert len(parts.files) > 4
    count = len(parts.files) - 1
    assert parts.files[:-1] == tuple(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {*parts.files, "config.json"}
    gathered: dict[str, npt.NDArray[np.float16]] = {}
    for name in parts.files[:-1]:
        shard = load_file(tmp_path / "parts" / name)
        assert len(shard) == 1 or sum(value.nbytes for value in shard.values()) <= 200_000
        assert not gathered.keys() & shard.keys()
        gathered |= shard
    expected = load_file(tmp_path / "full" / "model.safetensors")
    assert gathered.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(gathered[name], value)


def test_progress_names_each_tensor_of_the_checkpoint_once(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf", tied=True)
    seen: list[str] = []
    weights = TensorWeights(tiny_tensors(source), four_bits)
    MlxWriter()(tiny_decoder(source), weights, tmp_path, seen.append)
    assert seen == list(tiny_decoder(source).tensor_shapes())


def test_a_failure_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")

    def fail_late(linear: Linear, weight: npt.NDArray[np.float32]) -> GroupedTensor:
        if "layers.2" in linear.name:
            raise ExportError("no more")
        return lsq(weight, FOUR)

    with pytest.raises(ExportError, match="no more"):
        write(source, tmp_path / "mlx", TensorWeights(tiny_tensors(source), fail_late))
    assert list((tmp_path / "mlx").iterdir()) == []


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(4, 16, Offset.FLOAT, np.float16), "does not support 4-bit codes in groups of 16"),
        (Grid(5, 32, Offset.FLOAT, np.float16), "does not support 5-bit codes"),
        (Grid(4, 32, Offset.FLOAT, np.float32), "would change when stored as float16"),
    ],
)
def test_a_grid_that_mlx_does_not_support_is_refused(tmp_path: Path, grid: Grid, message: str) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    weights = TensorWeights(tiny_tensors(source), lambda _, weight: rtn(weight, grid))
    with pytest.raises(ExportError, match=message):
        write(source, tmp_path / "mlx", weights)


def test_a_weight_too_large_for_float16_is_reported_by_name(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "hf")
    tensors = tiny_tensors(source)
    tensors["model.norm.weight"][3] = 1e6
    with pytest.raises(ExportError, match=r"`model\.norm\.weight` has values out of float16's range"):
        write(source, tmp_path / "mlx", TensorWeights(tensors))


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_mlx_lm_opens_the_folder_unmodified(tmp_path: Path, model_type: Literal["qwen2", "llama"], tied: bool) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    source = tiny_checkpoint(tmp_path / "hf", model_type=model_type, tied=tied)
    folder = tmp_path / "mlx"
    write(source, folder, TensorWeights(tiny_tensors(source), four_bits_and_8_bit_embedding))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    model, tokenizer = mlx_lm.load(str(folder))
    assert model.args.rope_theta == 50_000.0
    assert model.model.embed_tokens.bits == 8
    assert model.model.layers[0].mlp.up_proj.bits == 4
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    assert isinstance(mlx_lm.generate(model, tokenizer, prompt, max_tokens=4), str)
