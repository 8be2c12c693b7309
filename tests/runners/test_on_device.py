"""The runners that keep the KV cache on a device. Without a GPU: the CPU is the device, through the same code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime import get_available_providers

from edgekit.errors import BundleError, RunnerError
from edgekit.export.quantization.grid import Grid, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners import LoadOptions, choose_runner, cuda_provider, on_device
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.checking import CheckingRunner
from edgekit.runners.native import NativeRunner
from edgekit.runners.on_device import NativeOnDevice, OnDeviceRunner, PortableOnDevice
from edgekit.runners.portable import PortableRunner
from edgekit.runners.session import CPU, CUDA, operators
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.ort_version import RUNS_NATIVE
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]
Dialect = Literal["portable", "native"]

RUNNERS: dict[Dialect, type[OnDeviceRunner]] = {"portable": PortableOnDevice, "native": NativeOnDevice}
CHECKERS: dict[Dialect, type[CheckingRunner]] = {"portable": PortableRunner, "native": NativeRunner}
DIALECTS: list[Dialect] = ["portable", "native"] if RUNS_NATIVE else ["portable"]
TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 512, 700)]
# Both compute the same graph; but sums over more padding are taken in other orders.
ROUNDING = 5e-3


def write(folder: Path, dialect: Dialect, name: str = "qwen2", **options: Any) -> Path:
    source = variant(name, folder / "hf", **options)
    weights = TensorWeights(tiny_tensors(source), lambda _, w: lsq(w, Grid(4, 32, Offset.SYMMETRIC, np.float16)))
    (folder / "onnx").mkdir()
    OnnxWriter(dialect)(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return folder / "onnx"


@pytest.fixture(scope="module", params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, dialect: Dialect) -> Path:
    return write(tmp_path_factory.mktemp(dialect), dialect, max_position=700)


def on_the_cpu(folder: Path, dialect: Dialect, *, slots: int = 1) -> OnDeviceRunner:
    return RUNNERS[dialect](folder, device=CPU, threads=1, sequence_slots=slots)


def in_chunks(runner: Runner, counts: Sequence[int], slot: int = 0) -> FloatArray:
    """Logits of the next tokens of a slot, in chunks."""
    got = []
    for count in counts:
        done = runner.length(slot)
        got.append(runner.run([Chunk(slot, TOKENS[done : done + count], "all")])[0].copy())
    return np.concatenate(got)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_gives_the_checkers_logits(tmp_path: Path, name: str, dialect: Dialect) -> None:
    folder = write(tmp_path, dialect, name)
    expected = CHECKERS[dialect].logits(folder, TOKENS[:37], threads=1)
    runner = on_the_cpu(folder, dialect)
    for counts in ([37], [20, 1, 1, 15]):
        runner.truncate(0, 0)
        np.testing.assert_allclose(in_chunks(runner, counts), expected, atol=ROUNDING)


def test_a_sequence_that_outgrows_its_buffers_keeps_its_cache(folder: Path, dialect: Dialect) -> None:
    runner, checker = on_the_cpu(folder, dialect), CHECKERS[dialect](folder, threads=1)
    counts = [128, 127, 1, 1, 1, 128, 126, 1, 1, 30]  # across 256 and 512 tokens, the ends of the first buckets
    expected = in_chunks(checker, [*([64] * 8), 32])
    np.testing.assert_allclose(in_chunks(runner, counts), expected, atol=ROUNDING)
    assert runner.limits.max_chunk == 128


def test_slots_do_not_touch_each_other_and_truncated_tokens_leave_no_trace(folder: Path, dialect: Dialect) -> None:
    runner = on_the_cpu(folder, dialect, slots=3)
    alone = in_chunks(runner, [40, 20], slot=0)
    for slot in (1, 2):
        runner.run([Chunk(slot, [7] * (50 * slot))])
    runner.truncate(2, 40)
    runner.truncate(2, 0)
    runner.truncate(1, 10)
    first = runner.run([Chunk(2, TOKENS[:40], "all"), Chunk(1, [9] * 5)])[0]
    second = runner.run([Chunk(1, [9]), Chunk(2, TOKENS[40:60], "all")])[1]
    np.testing.assert_array_equal(np.concatenate([first, second]), alone)
    assert [runner.length(slot) for slot in range(3)] == [60, 16, 60]
    assert runner.run([Chunk(0, [1], "none")])[0].shape == (0, 512)


def test_cache_that_is_read_and_written_elsewhere_continues_the_sequence(folder: Path, dialect: Dialect) -> None:
    runner, checker = on_the_cpu(folder, dialect, slots=2), CHECKERS[dialect](folder, threads=1)
    in_chunks(runner, [128, 128, 44])
    data = runner.read_kv(0, 0, 290)
    assert len(data) == 290 * runner.limits.kv_bytes_per_token
    assert runner.read_kv(0, 133, 133) == b""
    for start, stop in ((0, 32), (32, 64), (64, 290)):
        assert runner.write_kv(1, start, runner.read_kv(0, start, stop)) == stop
    assert runner.read_kv(1, 0, 290) == data
    runner.truncate(0, 290)
    np.testing.assert_array_equal(in_chunks(runner, [1, 20], slot=0), in_chunks(runner, [1, 20], slot=1))
    # The checkers' layout is the same.
    checker.write_kv(0, 0, data)
    runner.truncate(0, 290)
    np.testing.assert_allclose(in_chunks(runner, [5]), in_chunks(checker, [5]), atol=ROUNDING)


def test_memory_is_taken_when_a_slot_is_used_and_given_back(folder: Path, dialect: Dialect) -> None:
    runner = on_the_cpu(folder, dialect, slots=2)
    cache = runner._kv
    assert (cache.stride(0), cache.stride(1)) == (0, 0)
    in_chunks(runner, [1])
    assert (cache.stride(0), cache.stride(1)) == (256, 0)
    addresses = [value.data_ptr() for value in cache.values(0)]
    in_chunks(runner, [1, 128])
    assert [value.data_ptr() for value in cache.values(0)] == addresses, "the cache was copied"
    in_chunks(runner, [128])
    assert cache.stride(0) == 512
    runner.truncate(0, 0)
    assert (cache.stride(0), cache.values(0)) == (0, [])


def test_a_graph_that_is_partly_computed_elsewhere_is_refused(
    folder: Path, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = on_the_cpu(folder, dialect)
    computed = operators(runner._session)
    assert computed is None or set(computed) <= {CPU.provider}
    elsewhere = {"Shape": 1, "Concat": 2}
    monkeypatch.setattr(on_device, "operators", lambda _: {CPU.provider: {"MatMul": 3}, "Another": elsewhere})
    on_the_cpu(folder, dialect).close()
    elsewhere["Attention"] = 30
    with pytest.raises(RunnerError, match="no kernel for Attention of this graph on the GPU"):
        on_the_cpu(folder, dialect)


def test_a_graph_that_computes_nan_is_refused(folder: Path, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNNERS[dialect], "_append", lambda *_: np.full((1, 512), np.nan, np.float32))
    with pytest.raises(RunnerError, match="computes NaN or infinity"):
        on_the_cpu(folder, dialect)


@pytest.mark.skipif(CUDA.provider in get_available_providers(), reason="this onnxruntime has the provider")
def test_a_provider_that_cannot_load_the_graph_after_all_leaves_it_to_the_next_runner(
    folder: Path, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_provider, "cuda_provider", lambda: cuda_provider.CudaProvider(None, version="1.0"))
    with pytest.warns(UserWarning, match=CUDA.provider):
        choice = choose_runner(folder, "onnx", dialect, LoadOptions(64, threads=1))
    (cuda,) = [one for one in choice.rejected if one.name == "cuda"]
    assert cuda.reason.endswith("onnxruntime cannot load CUDAExecutionProvider")
    assert not isinstance(choice.runner, OnDeviceRunner)


@pytest.mark.gpu
def test_a_gpu_gives_the_checkers_logits(folder: Path, dialect: Dialect) -> None:
    if (reason := cuda_provider.cuda_provider().reason) is not None:
        pytest.skip(reason)
    expected = CHECKERS[dialect].logits(folder, TOKENS[:300], threads=1)
    runner = RUNNERS[dialect](folder)
    for counts in ([128, 128, 44], [100, *([1] * 200)]):
        runner.truncate(0, 0)
        np.testing.assert_allclose(in_chunks(runner, counts), expected, atol=3e-2)


def test_other_dialects_are_refused(folder: Path, dialect: Dialect) -> None:
    other: Dialect = "portable" if dialect == "native" else "native"
    with pytest.raises(BundleError, match=f"written in the `{dialect}` dialect"):
        on_the_cpu(folder, other)
