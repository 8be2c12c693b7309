from __future__ import annotations

import json
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.quantization.grid import GroupedTensor
from tests.export.checkpoints.gguf.files import permuted, write_gguf
from tests.models import tiny_checkpoint, tiny_decoder, tiny_tensors

Kind = Literal["qwen2", "llama"]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder; two heads share a key, so that q and k are ordered differently."""
    return tiny_checkpoint(tmp_path_factory.mktemp(request.param), model_type=request.param)


def opened(source: Path, tmp_path: Path, **options: Any) -> GgufCheckpoint:
    return GgufCheckpoint(write_gguf(source, tmp_path / "tiny.gguf", **options))


def test_a_reader_is_a_checkpoint(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, tmp_path)) as reader:
        checkpoint: Checkpoint = reader
        assert (checkpoint.name, checkpoint.id, checkpoint.licence) == ("tiny", "tiny.gguf", "Apache-2.0")


def test_floats_come_back_under_their_hugging_face_names_and_in_their_row_order(source: Path, tmp_path: Path) -> None:
    expected = tiny_tensors(source)
    with closing(opened(source, tmp_path)) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for name, values in expected.items():
            assert checkpoint.tensors[name].shape == values.shape
            np.testing.assert_array_equal(checkpoint.read(name), values, err_msg=name)


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_with_scales_come_back_in_row_order_without_loss(source: Path, tmp_path: Path, encoding: str) -> None:
    kind = gguf.GGMLQuantizationType[encoding]
    with closing(opened(source, tmp_path, encoding=encoding)) as checkpoint:
        for name, values in tiny_tensors(source).items():
            found = checkpoint.read(name)
            if values.ndim == 1:
                np.testing.assert_array_equal(found, values)
                continue
            assert isinstance(found, GroupedTensor)
            assert (found.bits, found.group_size) == (8 if encoding == "Q8_0" else 4, 32)
            # Rows are quantized one by one, so their order and the quantization commute.
            np.testing.assert_array_equal(found.dequantize(), dequantize(quantize(values, kind), kind), err_msg=name)


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q5_0", "Q5_1"])
def test_other_encodings_come_back_as_float32(source: Path, tmp_path: Path, encoding: str) -> None:
    kind = gguf.GGMLQuantizationType[encoding]
    name = "model.layers.1.self_attn.k_proj.weight"
    values = tiny_tensors(source)[name]
    with closing(opened(source, tmp_path, encoding=encoding)) as checkpoint:
        found = checkpoint.read(name)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, dequantize(quantize(values, kind), kind).reshape(values.shape))


@pytest.mark.parametrize("named", [1, 2, 3])
def test_any_part_of_a_split_model_opens_the_model(source: Path, tmp_path: Path, named: int) -> None:
    path = write_gguf(source, tmp_path / "Split-Q8_0.gguf", parts=3, encoding="Q8_0")
    full = opened(source, tmp_path, encoding="Q8_0")
    paths = sorted(tmp_path.glob("Split*.gguf"))
    assert [part.name for part in paths] == [f"Split-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert not path.exists()
    with closing(GgufCheckpoint(paths[named - 1])) as checkpoint:
        assert (checkpoint.name, checkpoint.id) == ("split", "Split-Q8_0-00001-of-00003.gguf")
        assert checkpoint.config == full.config
        assert checkpoint.tensors == full.tensors
        for name in full.tensors:
            assert same(checkpoint.read(name), full.read(name)), name
        assert checkpoint.tokenizer() == full.tokenizer()
        assert [file.name for file in checkpoint.source()] == [part.name for part in paths]


def test_a_part_that_is_missing_renamed_or_of_another_model_is_named(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "m.gguf", parts=3)
    one, two, three = sorted(tmp_path.glob("m-*.gguf"))
    kept = two.read_bytes()
    two.write_bytes(three.read_bytes())
    with pytest.raises(ExportError, match=r"m-00002-of-00003\.gguf does not state that it is part 2 of 3"):
        GgufCheckpoint(one)
    two.unlink()
    with pytest.raises(ExportError, match=r"m-00002-of-00003\.gguf is missing"):
        GgufCheckpoint(three)
    two.write_bytes(kept)
    with pytest.raises(ExportError, match="one part of a split") as caught:
        GgufCheckpoint(one.rename(tmp_path / "x.gguf"))
    assert "model-00001-of-00003.gguf" in str(caught.value.hint)
    with pytest.raises(ExportError, match="impossible part number"):
        GgufCheckpoint(two.rename(tmp_path / "m-00009-of-00003.gguf"))


def test_parts_with_fewer_tensors_than_stated_are_refused(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "m.gguf", parts=2)
    first = min(tmp_path.glob("m-*.gguf"))
    data = first.read_bytes()
    at = data.index(b"split.tensors.count") + len("split.tensors.count") + 4
    first.write_bytes(data[:at] + bytes([data[at] + 1]) + data[at + 1 :])
    with pytest.raises(ExportError, match="tensors, not"):
        GgufCheckpoint(first)


@pytest.mark.parametrize("encoding", ["F32", "BF16", "Q4_0", "Q5_1", "Q8_0"])
def test_ranges_of_rows_make_up_the_whole(source: Path, tmp_path: Path, encoding: str) -> None:
    with closing(opened(source, tmp_path, encoding=encoding)) as checkpoint:
        for name, info in checkpoint.tensors.items():
            full, rows = checkpoint.read(name), info.shape[0]
            cuts = [0, 0, 1, rows // 3, rows // 3 + 2, rows - 1, rows]  # within heads, and across them
            parts = [checkpoint.read(name, start, stop) for start, stop in pairwise(cuts)]
            assert same(joined(parts), full), name


def joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    arrays = {key: np.concatenate([getattr(part, key) for part in parts]) for key in ("codes", "scales", "offsets")}
    return GroupedTensor(**arrays, bits=parts[0].bits)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one.view(np.uint32), other.view(np.uint32))
    fields = ("codes", "scales", "offsets")
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in fields) and one.bits == other.bits


def test_a_vector_in_blocks_is_cut_anywhere(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "q")
    values = np.random.default_rng(2).standard_normal(96).astype(np.float32)
    with closing(opened(folder, tmp_path, encoding="Q8_0", quantized_vectors={"v.weight": values})) as checkpoint:
        full = checkpoint.read("v.weight")
        assert isinstance(full, np.ndarray)
        parts = [checkpoint.read("v.weight", start, stop) for start, stop in pairwise([0, 1, 31, 40, 96])]
        assert same(joined(parts), full)


def test_a_range_reads_no_more_than_its_heads(source: Path, tmp_path: Path) -> None:
    checkpoint = opened(source, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = tiny_tensors(source)[name]
    tensor = checkpoint._tensors[name]
    with checkpoint._file.path.open("r+b") as stream:
        stream.truncate(tensor.offset + expected.nbytes // 2)
    half = len(expected) // 2
    np.testing.assert_array_equal(checkpoint.read(name, 3, half), expected[3:half])
    with pytest.raises(ExportError, match="truncated"):
        checkpoint.read(name, half, half + 1)
    with pytest.raises(ExportError, match="rows"):
        checkpoint.read(name, 0, len(expected) + 1)


def test_the_configuration_describes_the_same_model(source: Path, tmp_path: Path) -> None:
    expected = describe(json.loads((source / "config.json").read_text()))
    with closing(opened(source, tmp_path)) as checkpoint:
        assert describe(checkpoint.config) == expected
        assert checkpoint.config["rms_norm_eps"] in (1e-6, 1e-5)
        assert checkpoint.config["eos_token_id"] == 2


def test_a_file_without_output_weight_is_tied(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tied", tied=True)
    with closing(opened(folder, tmp_path)) as checkpoint:
        assert checkpoint.config["tie_word_embeddings"] is True
        assert "lm_head.weight" not in checkpoint.tensors


def test_a_tensor_larger_than_a_chunk_is_put_together_in_order(tmp_path: Path) -> None:
    big = np.random.default_rng(0).standard_normal((3000, 512)).astype(np.float32)
    folder = tiny_checkpoint(tmp_path / "q")
    with closing(opened(folder, tmp_path, extra_tensors={"big.weight": big})) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("big.weight"), big)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.attn_factor": 0.5}, "unsupported key `attn_factor`"),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "asks for `rope.scaling.yarn_log_multiplier"),
        ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 4.0}, "RoPE scaling `dynamic`"),
        ({"llama.rope.scaling.type": "yarn"}, "`factor` of the RoPE scaling must be a positive number"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.attention.sliding_window": 64}, "sliding_window"),
        ({"llama.logit_scale": 0.5}, "logit_scale"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, "wrong type"),
        ({"llama.attention.head_count": None}, "head_count` is None"),
        ({"split.count": 3}, "split"),
    ],
)
def test_a_computation_that_is_not_supported_is_refused_by_name(tmp_path: Path, metadata: Any, message: str) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", model_type="llama")
    with pytest.raises(ExportError, match=message):
        describe(opened(folder, tmp_path, metadata=metadata).config)


def test_yarns_own_numbers_are_carried_over(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "attn_factor": 0.5, "yarn_beta_fast": 16.0, "yarn_ext_factor": 1.0}
    metadata = {f"llama.rope.scaling.{key}": value for key, value in yarn.items()}
    folder = tiny_checkpoint(tmp_path / "llama", model_type="llama")
    rope = describe(opened(folder, tmp_path, metadata=metadata).config).rope
    assert rope.attention_factor == pytest.approx(0.5 * (0.1 * np.log(4) + 1))
    assert rope.scaling["beta_fast"] == 16.0


@pytest.mark.parametrize(
    ("metadata", "kind", "factor"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "yarn", 4.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, "linear", 2.0),
        ({"llama.rope.scale_linear": 2.0}, "linear", 2.0),
    ],
)
def test_rope_scaling_is_carried_over(tmp_path: Path, metadata: Any, kind: str, factor: float) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", model_type="llama")
    rope = describe(opened(folder, tmp_path, metadata=metadata).config).rope
    assert (rope.kind, rope.scaling["factor"]) == (kind, factor)


def test_rope_factors_are_recognised_as_llama_3_scaling_unless_they_are_all_one(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", model_type="llama", rope_theta=500_000.0)
    ones = np.ones(16, dtype=np.float32)
    assert "rope_scaling" not in opened(folder, tmp_path, extra_tensors={"rope_freqs.weight": ones}).config
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    original = tiny_checkpoint(tmp_path / "hf", model_type="llama", rope_theta=500_000.0, rope_scaling=scaling)
    rope, plain = tiny_decoder(original).rope, tiny_decoder(folder).rope
    factors = (np.array(plain.frequencies) / np.array(rope.frequencies)).astype(np.float32)
    read = describe(opened(folder, tmp_path, extra_tensors={"rope_freqs.weight": factors}).config).rope
    assert read == rope
    with pytest.raises(ExportError, match=r"not those of Llama 3\.1 or 3\.2"):
        describe(opened(folder, tmp_path, extra_tensors={"rope_freqs.weight": 8 * ones}).config)


def test_a_head_width_that_is_given_is_kept(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", model_type="llama")
    metadata = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    assert opened(folder, tmp_path, metadata=metadata).config["head_dim"] == 32


def test_an_unknown_architecture_is_refused_by_the_architectures(tmp_path: Path) -> None:
    path = opened(tiny_checkpoint(tmp_path / "q"), tmp_path)._file.path
    path.write_bytes(path.read_bytes().replace(b"qwen2", b"qwerk"))
    with pytest.raises(ExportError, match="unsupported architecture `qwerk`") as caught:
        describe(GgufCheckpoint(path).config)
    assert "qwen2" in str(caught.value.hint)


def test_an_encoding_that_is_not_read_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "iq.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    for key in ("embedding_length", "attention.head_count", "feed_forward_length", "block_count", "context_length"):
        writer.add_uint32(f"qwen2.{key}", 32)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    kind = gguf.GGMLQuantizationType.IQ3_S
    writer.add_tensor("token_embd.weight", np.zeros((4, 110), dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = GgufCheckpoint(path)
    with pytest.raises(ExportError, match=r"`token_embd\.weight` of iq\.gguf is stored as IQ3_S"):
        checkpoint.read("model.embed_tokens.weight")


def test_a_truncated_file_names_itself_and_the_tensor_it_ends_in(source: Path, tmp_path: Path) -> None:
    path = opened(source, tmp_path)._file.path
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ExportError, match=r"tiny\.gguf is truncated.*tensor `") as caught:
        GgufCheckpoint(path)
    assert "fetch it again" in str(caught.value.hint)


def test_a_file_cut_short_after_opening_is_an_error_and_not_a_crash(source: Path, tmp_path: Path) -> None:
    checkpoint = opened(source, tmp_path)
    path = checkpoint._file.path
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    with pytest.raises(ExportError, match="truncated"):
        [checkpoint.read(name) for name in checkpoint.tensors]


def test_a_scale_that_is_not_finite_is_refused(source: Path, tmp_path: Path) -> None:
    checkpoint = opened(source, tmp_path, encoding="Q4_0")
    tensor = checkpoint._tensors["model.layers.0.mlp.up_proj.weight"]
    with checkpoint._file.path.open("r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(b"\x00\x7c")
    with pytest.raises(ExportError, match="contains NaN or infinity"):
        checkpoint.read("model.layers.0.mlp.up_proj.weight")


def test_the_row_order_is_undone_for_biases_too(tmp_path: Path) -> None:
    bias = np.arange(128, dtype=np.float32)
    folder = tiny_checkpoint(tmp_path / "llama", model_type="llama")
    with closing(opened(folder, tmp_path, extra_tensors={"blk.0.attn_q.bias": permuted(bias, 4)})) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("model.layers.0.self_attn.q_proj.bias"), bias)
        assert checkpoint.config["attention_bias"] is True


def test_a_file_that_changed_since_it_was_pinned_is_refused(source: Path, tmp_path: Path) -> None:
    path = opened(source, tmp_path)._file.path
    with pytest.raises(ExportError, match="SHA-256 has changed"):
        GgufCheckpoint(path, sha256="0" * 64).source()


def test_the_name_leaves_the_quantization_out(source: Path, tmp_path: Path) -> None:
    for stem in ("My-Model-Q4_K_M", "My-Model.q8_0", "my-model-F16", "My-Model.IQ4_XS"):
        path = write_gguf(source, tmp_path / f"{stem}.gguf")
        with closing(GgufCheckpoint(path)) as checkpoint:
            assert checkpoint.name == "my-model"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "truncated"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(40), "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16 + bytes(40), "truncated"),
    ],
)
def test_a_file_that_is_not_gguf_is_refused_with_the_reason(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(contents)
    with pytest.raises(ExportError, match=message):
        GgufCheckpoint(tmp_path / "x.gguf")
