"""GGUF files of every architecture are the checkpoint that they were made from: same description, same tensors."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ExportError
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from tests.export.checkpoints.gguf.files import rope_tables, write_gguf
from tests.models import tiny_tensors
from tests.variants import variant

# Values that llama.cpp's code sets and no key states: see `_Translation._gemma3`.
GEMMA = {"query_pre_attn_scalar": 64, "sliding_window_pattern": 6, "layers": 7, "layer_types": None}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3", {}),
        ("phi3", {}),
        ("phi3-longrope", {}),
        ("phi3-partial", {}),
        ("gemma3_text", GEMMA),
    ],
)
def test_a_gguf_file_is_the_checkpoint_it_was_made_from(name: str, options: dict[str, object], tmp_path: Path) -> None:
    folder = variant(name, tmp_path / "hf", **options)
    config = json.loads((folder / "config.json").read_text())
    path = write_gguf(folder, tmp_path / "model.gguf", extra_tensors=rope_tables(config))
    with closing(GgufCheckpoint(path)) as checkpoint:
        read, expected = describe(checkpoint.config), describe(config)
        assert without_float32_rounding(read) == without_float32_rounding(expected)
        for rope, other in zip(
            [layer.rope for layer in read.layers], [layer.rope for layer in expected.layers], strict=True
        ):
            # The factors are float32 in the file.
            np.testing.assert_allclose(rope.frequencies, other.frequencies, rtol=1e-6)
            assert (rope.kind, rope.attention_factor) == (other.kind, other.attention_factor)
        for tensor, values in tiny_tensors(folder).items():
            found = checkpoint.read(tensor)
            assert isinstance(found, np.ndarray)
            np.testing.assert_allclose(found, values, atol=2e-7 if name == "gemma3_text" else 0)


def without_float32_rounding(decoder: Decoder) -> Decoder:
    plain = replace(decoder.rope, frequencies=(), scaling={}, kind="default")
    return replace(decoder, config={}, layers=tuple(replace(layer, rope=plain) for layer in decoder.layers))


def test_a_window_shorter_than_the_context_is_refused_where_the_file_does_not_state_its_layers(
    tmp_path: Path,
) -> None:
    folder = variant("llama", tmp_path / "hf")
    path = write_gguf(folder, tmp_path / "short.gguf", metadata={"llama.attention.sliding_window": 64})
    with pytest.raises(ExportError, match="sliding_window: 64"):
        GgufCheckpoint(path)
    path = write_gguf(folder, tmp_path / "long.gguf", metadata={"llama.attention.sliding_window": 4096})
    with closing(GgufCheckpoint(path)) as checkpoint:
        assert not describe(checkpoint.config).windowed
