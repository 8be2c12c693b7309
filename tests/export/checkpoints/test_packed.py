from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.errors import ExportError
from edgekit.export.checkpoints.awq import Awq
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.checkpoints.gptq import Gptq
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.checkpoints.packed import PackedShards
from edgekit.export.checkpoints.safetensors import Shards
from edgekit.export.quantization.grid import GroupedTensor, as_floats
from tests.export.checkpoints.packed_files import (
    SCALE_TYPES,
    Packed,
    awq_parts,
    gptq_parts,
    pack_checkpoint,
    random_layer,
)
from tests.models import tiny_checkpoint


def opened(folder: Path, parts: dict[str, Any], layout: Gptq | Awq) -> PackedShards:
    save_file(parts, folder / "model.safetensors")
    return PackedShards(Shards(folder), layout)


def gptq(bits: int = 4, group_size: int = 32, **settings: Any) -> Gptq:
    return Gptq.of({"bits": bits, "group_size": group_size, **settings})


def check(shards: PackedShards, layer: Packed, *, grouped: bool = True) -> None:
    """Every way of reading gives the same values, which are the format's."""
    full = shards.read("x.weight")
    expected = layer.weight()
    assert isinstance(full, GroupedTensor) == grouped
    if isinstance(full, GroupedTensor):
        assert full.codes.dtype == np.uint8
        np.testing.assert_array_equal(full.codes, layer.codes)
        np.testing.assert_array_equal(full.scales, layer.scales.astype(np.float32))
        assert full.bits == layer.bits
    np.testing.assert_array_equal(as_floats(full), expected)
    out = len(expected)
    for start, stop in ((0, 0), (0, 1), (1, out // 2 + 3), (out // 2 + 3, out), (0, None)):
        found = shards.read("x.weight", start, stop)
        assert isinstance(found, GroupedTensor) == grouped
        np.testing.assert_array_equal(as_floats(found), expected[start:stop])


@pytest.mark.parametrize("v2", [False, True], ids=["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_weights_are_the_formats_bit_for_bit(
    tmp_path: Path, bits: int, group_size: int, symmetric: bool, v2: bool
) -> None:
    layer = random_layer(96, 256, bits=bits, group_size=group_size, symmetric=symmetric)
    layout = gptq(bits, group_size, checkpoint_format="gptq_v2" if v2 else "gptq", desc_act=False)
    check(opened(tmp_path, gptq_parts("x", layer, v2=v2), layout), layer)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_awq_weights_are_the_formats_bit_for_bit(tmp_path: Path, group_size: int) -> None:
    layer = random_layer(104, 256, group_size=group_size)
    layer.zeros[::5] = 0
    check(opened(tmp_path, awq_parts("x", layer), Awq.of({"group_size": group_size, "version": "GEMM"})), layer)


def test_zero_points_of_zero_are_read_as_they_were_written(tmp_path: Path) -> None:
    layer = random_layer(64, 64)
    layer.zeros[::3] = 0
    parts = gptq_parts("x", layer, v2=True)
    # GPTQModel turns its second format into the first by subtracting one from every code of a word at once.
    parts["x.qzeros"] = (parts["x.qzeros"].view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    check(opened(tmp_path, parts, gptq()), layer)


@pytest.mark.parametrize("encoding", ["F16", "BF16"])
def test_scales_of_sixteen_bits_keep_a_tensor_on_its_grid(tmp_path: Path, encoding: str) -> None:
    layer = random_layer(32, 64, dtype=SCALE_TYPES[encoding])
    check(opened(tmp_path, gptq_parts("x", layer), gptq()), layer)


def test_scales_too_fine_for_a_grid_give_the_exact_values_as_floats(tmp_path: Path) -> None:
    layer = random_layer(32, 64, dtype=np.float32)
    check(opened(tmp_path, gptq_parts("x", layer), gptq()), layer, grouped=False)


def test_reordered_inputs_are_read_as_floats(tmp_path: Path) -> None:
    layer = random_layer(32, 128)
    layer = replace(layer, groups_of=np.random.default_rng(3).permutation(layer.groups_of))
    check(opened(tmp_path, gptq_parts("x", layer), gptq(desc_act=True)), layer, grouped=False)


def test_desc_act_without_reordering_changes_nothing(tmp_path: Path) -> None:
    layer = random_layer(32, 128)
    check(opened(tmp_path, gptq_parts("x", layer), gptq(desc_act=True)), layer)


@pytest.mark.parametrize("index", [None, 0])
def test_an_index_that_is_left_out_or_empty_means_groups_in_order(tmp_path: Path, index: int | None) -> None:
    layer = random_layer(32, 128)
    parts = gptq_parts("x", layer, index=False)
    if index is not None:
        parts["x.g_idx"] = np.full(128, index, dtype=np.int32)
    check(opened(tmp_path, parts, gptq()), layer)


@pytest.mark.parametrize("index", [None, 0])
def test_reordered_inputs_without_their_index_are_refused(tmp_path: Path, index: int | None) -> None:
    layer = random_layer(32, 128)
    parts = gptq_parts("x", layer, index=False)
    if index is not None:
        parts["x.g_idx"] = np.full(128, index, dtype=np.int32)
    with pytest.raises(ExportError, match=r"`x` is damaged: its inputs are reordered \(desc_act\)"):
        opened(tmp_path, parts, gptq(desc_act=True)).read("x.weight")
    check(opened(tmp_path, parts, gptq(desc_act=True, static_groups=True)), layer)


@pytest.mark.parametrize("index", [True, False])
def test_a_last_group_that_is_short_is_read_as_floats(tmp_path: Path, index: bool) -> None:
    layer = random_layer(32, 96, group_size=64)
    check(opened(tmp_path, gptq_parts("x", layer, index=index), gptq(group_size=64)), layer, grouped=False)


def test_a_module_may_have_bits_and_groups_of_its_own(tmp_path: Path) -> None:
    layer = random_layer(32, 128, bits=8, group_size=64)
    check(opened(tmp_path, gptq_parts("x", layer), gptq(dynamic={".*": {"bits": 8, "group_size": 64}})), layer)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_folder_shows_weights_in_place_of_their_parts(tmp_path: Path, method: str) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    expected = pack_checkpoint(folder, method)
    with closing(FolderCheckpoint(folder)) as reader:
        checkpoint: Checkpoint = reader
        assert set(checkpoint.tensors) >= set(expected)
        assert not any(name.endswith(("qweight", "qzeros", "scales", "g_idx")) for name in checkpoint.tensors)
        for name, values in expected.items():
            info = checkpoint.tensors[name]
            assert info.shape == values.shape
            assert info.encoding == (method.upper() if name.endswith("_proj.weight") else "F16")
            found = checkpoint.read(name)
            assert isinstance(found, GroupedTensor) == name.endswith("_proj.weight")
            np.testing.assert_array_equal(as_floats(found), values, err_msg=name)


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("quantize_config.json", "gptq", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
        ("quant_config.json", "awq", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
    ],
)
def test_early_checkpoints_keep_their_settings_in_a_file_of_their_own(
    tmp_path: Path, name: str, method: str, settings: dict[str, Any]
) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny", layers=1)
    expected = pack_checkpoint(folder, method)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps(settings))
    with closing(FolderCheckpoint(folder)) as checkpoint:
        weight = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_array_equal(as_floats(checkpoint.read(weight)), expected[weight])
        assert name in {file.name for file in checkpoint.source()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 5}, "GPTQ codes of 5 bits"),
        ({"quant_method": "gptq", "bits": "4"}, "GPTQ codes of 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group size is 0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 1e9}, "group size is 1000000000"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ format is `marlin`"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "GPTQ format is `marlin`"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": ["gptq"]}, "GPTQ format is"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ layout is `gemv`"),
        ({"quant_method": "awq", "bits": 4, "version": "GEMV_fast"}, "AWQ layout is `gemv_fast`"),
        ({"quant_method": "awq", "bits": 4, "version": "marlin"}, "AWQ layout is `marlin`"),
        ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, "AWQ layout is `llm-awq`"),
        ({"quant_method": "awq", "bits": 8}, "AWQ codes of 8 bits"),
        ({"quant_method": "awq", "group_size": None}, "AWQ group size is None"),
        ({"quant_method": "compressed-tensors"}, "already .compressed-tensors."),
        ({"quant_method": ["gptq"]}, "quantized already"),
        ({"bits": 4}, "already .mlx."),
        ("yes", "already .unknown."),
    ],
)
def test_a_layout_that_is_not_read_is_named(tmp_path: Path, settings: Any, message: str) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny", layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(ExportError, match=message):
        FolderCheckpoint(folder)


def changed(**parts: Any) -> dict[str, Any]:
    """The parts of a valid layer, some replaced or (None) left out."""
    every = gptq_parts("x", random_layer(32, 128)) | {f"x.{name}": value for name, value in parts.items()}
    return {name: value for name, value in every.items() if value is not None}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (changed(qzeros=None), "no `x.qzeros`"),
        (changed(scales=None), "no `x.scales`"),
        (changed(scales=np.ones((4, 32), np.int32)), r"`scales` is I32 with shape \[4, 32\]"),
        (changed(scales=np.ones(4, np.float16)), "`scales` is F16"),
        (changed(scales=np.ones((4, 64), np.float16)), "zero points do not match"),
        (changed(scales=np.ones((5, 32), np.float16)), "zero points do not match"),
        (changed(qweight=np.ones((16, 32), np.float32)), "`qweight` is F32"),
        (changed(qweight=np.ones((7, 32), np.int32)), "no bit width fits"),
        (changed(qzeros=np.ones((4, 5), np.int32)), "no bit width fits"),
        (changed(g_idx=np.zeros((1, 128), np.int32)), "`g_idx` is I32"),
        (changed(g_idx=np.zeros(64, np.int32)), "no bit width fits"),
        (changed(g_idx=np.full(128, 4, np.int32)), "beyond its 4"),
        (changed(g_idx=np.full(128, -1, np.int32)), "beyond its 4"),
        (changed(scales=np.full((4, 32), np.nan, np.float16)), "contains NaN"),
        (changed(scales=np.ones((3, 32), np.float16), qzeros=np.ones((3, 4), np.int32)), "do not make 3 groups"),
        (changed(weight=np.ones((32, 128), np.float16)), "both packed and unpacked"),
    ],
)
def test_parts_that_contradict_each_other_are_refused_by_name(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        opened(tmp_path, parts, gptq()).read("x.weight")


def test_awq_parts_that_contradict_each_other_are_refused_by_name(tmp_path: Path) -> None:
    parts = awq_parts("x", random_layer(32, 128))
    with pytest.raises(ExportError, match="128 inputs do not make 4 groups of 64"):
        opened(tmp_path, parts, Awq.of({"group_size": 64}))
    with pytest.raises(ExportError, match="zero points do not match"):
        opened(tmp_path, parts | {"x.qzeros": np.zeros((4, 3), np.int32)}, Awq.of({"group_size": 32}))


def test_rows_that_a_packed_weight_does_not_have_are_refused(tmp_path: Path) -> None:
    shards = opened(tmp_path, gptq_parts("x", random_layer(32, 128)), gptq())
    with pytest.raises(ExportError, match=r"tensor `x\.weight` has 32 rows"):
        shards.read("x.weight", 0, 33)
