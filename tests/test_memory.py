"""The memory planning that the command line, the export and the daemon share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.memory import GIB, RUNTIMES, Footprint, Plan, Shapes, tokens_per_s
from edgekit.profile import target_names
from edgekit.target import load_target

SIZES = st.integers(0, 1 << 36)
FOOTPRINTS = st.builds(
    Footprint,
    weights=SIZES,
    kv_per_token=st.integers(1, 1 << 22),
    activations=SIZES,
    activations_per_token=st.integers(0, 1 << 20),
    workspace=SIZES,
    windows=st.lists(st.tuples(st.integers(1, 1 << 16), st.integers(1, 8192)), max_size=3).map(tuple),
)


def test_each_part_is_counted_once_and_the_kv_cache_for_each_sequence() -> None:
    footprint = Footprint(weights=1000, kv_per_token=10, activations=7, activations_per_token=2, workspace=500)
    assert footprint.kv_cache(30) == 300
    assert footprint.total(30) == 1000 + 300 + 7 + 60 + 500
    assert footprint.total(30, 4) == 1000 + 4 * 300 + 7 + 60 + 500


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    footprint = Footprint(0, 10, 0, 0, 0, windows=((3, 100), (3, 100)))
    assert footprint.kv_cache(50) == 50 * 16
    assert footprint.kv_cache(1000) == 1000 * 10 + 2 * 300


@given(FOOTPRINTS, SIZES, st.integers(1, 1 << 20), st.integers(1, 16))
def test_the_longest_context_fits_and_the_next_step_does_not(
    footprint: Footprint, available: int, max_context: int, parallel: int
) -> None:
    longest = footprint.longest_context(available, max_context, parallel)
    assert 0 <= longest <= max_context
    assert longest == max_context or longest % 256 == 0
    if longest:
        assert footprint.total(longest, parallel) <= available
    if longest < max_context:
        assert footprint.total(min(longest + 256, max_context), parallel) > available


@given(FOOTPRINTS, SIZES, st.integers(1, 1 << 20))
def test_more_sequences_never_have_a_longer_context(footprint: Footprint, available: int, max_context: int) -> None:
    longest = [footprint.longest_context(available, max_context, parallel) for parallel in (1, 2, 3, 8)]
    assert longest == sorted(longest, reverse=True)


def test_the_memory_left_is_what_neither_the_system_nor_the_model_needs() -> None:
    footprint = Footprint(4 * GIB, 1 << 16, 0, 0, GIB)
    plan = Plan(footprint, 16384, 1, 32768, memory=8 * GIB, reserve=2 * GIB)
    assert (plan.needed, plan.available, plan.left, plan.fits) == (6 * GIB, 6 * GIB, 0, True)
    assert plan.longest_context() == 16384
    assert plan.longest_context(2) == 8192
    assert not Plan(footprint, 16385, 1, 32768, memory=8 * GIB, reserve=2 * GIB).fits


def test_without_a_known_memory_it_is_unknown_whether_the_model_fits() -> None:
    plan = Plan(Footprint(GIB, 1, 0, 0, 0), 10, 1, 10, memory=None, reserve=GIB)
    assert (plan.available, plan.left, plan.fits, plan.longest_context()) == (None, None, None, None)


@pytest.mark.parametrize("name", target_names())
def test_every_runner_of_every_target_has_figures_with_a_basis(name: str) -> None:
    for runner in load_target(name).runners:
        runtime, shapes = RUNTIMES[runner], Shapes(4096, 14336, 32, 128256)
        assert runtime.basis.startswith(("measured: ", "estimate: "))
        assert 0 < runtime.workspace(shapes) < GIB
        assert 0 < runtime.activations(shapes) < GIB


def test_attention_split_over_threads_and_queries_wider_than_the_stream_are_counted() -> None:
    cpu, onnxruntime = RUNTIMES["cpu"], RUNTIMES["onnxruntime"]
    narrow = Shapes(1024, 3072, 16, 1000, kv_heads=8, head_dim=64)
    wide = Shapes(1024, 3072, 16, 1000, kv_heads=8, head_dim=128)
    # Two more rows of the queries' width, which the residual stream's width covers in part.
    assert cpu.activations(wide) - cpu.activations(narrow) == 512 * 4 * 2 * 1024
    assert onnxruntime.activations(wide) == onnxruntime.activations(narrow)
    assert cpu.activations_per_token(wide, 1) == onnxruntime.activations_per_token(wide, 8) == 0
    # Eight threads split four rows of eight KV heads: a value per element of a head, and 40 bytes, per 256 tokens.
    assert cpu.activations_per_token(wide, 8) == -(-4 * 16 * (4 * 128 + 40) // 256)
    assert cpu.footprint(wide, weights=0, kv_per_token=1, threads=8).activations_per_token == 138


@pytest.mark.parametrize(("bandwidth", "expected"), [(204.8, 56), (102.4, 28), (68.25, 18.7)])
def test_the_ceiling_is_bandwidth_over_bytes_read(bandwidth: float, expected: float) -> None:
    assert tokens_per_s(bandwidth, 3.65e9) == pytest.approx(expected, rel=0.01)
