"""The order in which matrices are read, and how those that come too early wait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.recipes.held_matrix import HeldMatrix
from edgekit.export.recipes.reading_order import held_bytes, reading_order
from edgekit.export.recipes.recipe import Recipe, recipe_for
from edgekit.export.sources.open import open_checkpoint
from edgekit.target import load_target
from tests.models import tiny_checkpoint, tiny_decoder

LAYERS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("sorted"), layers=LAYERS)


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


def recipe(method: str = "lsq") -> Recipe:
    return recipe_for(load_target("orin"), method, None)


def linears(decoder: Decoder) -> list[Linear]:
    return [decoder.embedding, *decoder.linears()]


def layers_of(order: object) -> list[int]:
    """The layers in the order of their first matrix."""
    assert isinstance(order, list)
    names = [linear.name.split(".")[2] for linear in order if linear.name.startswith("model.layers.")]
    return [int(name) for name in dict.fromkeys(names)]


def test_matrices_are_read_in_the_order_of_the_files(folder: Path, checkpoint: Checkpoint) -> None:
    decoder = tiny_decoder(folder)
    order = reading_order(decoder, linears(decoder), checkpoint, recipe())
    assert layers_of(order) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    position = {name: number for number, name in enumerate(checkpoint.tensors)}
    assert [linear.weight for linear in order] == sorted((linear.weight for linear in order), key=position.__getitem__)


def test_layers_are_read_in_order_where_too_many_would_wait(folder: Path, checkpoint: Checkpoint) -> None:
    decoder = tiny_decoder(folder)
    order = reading_order(decoder, linears(decoder), checkpoint, recipe(), limit=100_000)
    assert order[0] == decoder.embedding
    assert layers_of(order) == list(range(LAYERS))
    assert order[-1] == decoder.head
    assert held_bytes(decoder, order, checkpoint, recipe()) == 0
    # Within a layer, the files' order is kept.
    first = [linear.name.rpartition(".")[2] for linear in order[1:8]]
    assert first == ["down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]


def test_what_waits_is_two_layers_and_the_head(folder: Path, checkpoint: Checkpoint) -> None:
    decoder = tiny_decoder(folder)
    order = reading_order(decoder, linears(decoder), checkpoint, recipe())
    layer = sum(linear.in_features * linear.out_features for linear in decoder.layers[0].linears())
    # safetensors sorts `lm_head` before `model`.
    waiting = 2 * layer + decoder.vocab_size * decoder.hidden_size
    assert held_bytes(decoder, order, checkpoint, recipe()) == int(0.65 * waiting)
    assert held_bytes(decoder, order, checkpoint, recipe("none")) == int(4 * waiting)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offset", list(Offset))
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_held_matrix_is_unchanged(bits: int, offset: Offset, dtype: type[np.float16 | np.float32]) -> None:
    weight = np.random.default_rng(0).standard_normal((50, 96), dtype=np.float32)
    tensor = lsq(weight, Grid(bits, 32, offset, dtype))
    held = HeldMatrix.of(tensor)
    assert held.shape == tensor.shape
    parts = [held.rows(0, 7), held.rows(7, 50)]
    for name in ("codes", "scales", "offsets"):
        again, before = np.concatenate([getattr(part, name) for part in parts]), getattr(tensor, name)
        assert again.dtype == before.dtype
        assert np.array_equal(again, before)
    assert held.codes.nbytes == tensor.codes.nbytes * bits // 8
    assert held.scales.dtype == dtype
    assert (held.offsets is None) == (offset is Offset.SYMMETRIC)
    # It is a copy: the writer's memory is used again.
    assert not np.shares_memory(held.codes, tensor.codes)
    assert not np.shares_memory(held.scales, tensor.scales)
