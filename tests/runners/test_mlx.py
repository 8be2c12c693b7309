from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import ConfigError, EdgekitError, RunnerError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.writers.mlx import MlxWriter
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.mlx import MlxRunner
from tests.models import TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.reference import forward

mx = pytest.importorskip("mlx.core")

ModelType = Literal["qwen2", "llama"]
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 512, 48)]


def quantized(linear: Linear, weight: npt.NDArray[np.float32]) -> GroupedTensor:
    bits = 8 if "embed_tokens" in linear.name else 4
    return lsq(weight, Grid(bits, 32, Offset.FLOAT, np.float16))


def write(folder: Path, weights: TensorWeights, writer: MlxWriter) -> None:
    """Write the MLX artifact of the checkpoint in `folder` into `folder/mlx`."""
    (folder / "mlx").mkdir()
    artifact = writer(tiny_decoder(folder), weights, folder / "mlx", lambda _: None)
    (folder / "mlx" / "config.json").write_text(json.dumps(artifact.config), encoding="utf-8")


@pytest.fixture(autouse=True)
def on_the_cpu() -> None:
    """Also on a Mac: the figures below are float32's."""
    mx.set_default_device(mx.cpu)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized qwen2 model."""
    path = tiny_checkpoint(tmp_path_factory.mktemp("qwen2"))
    write(path, TensorWeights(tiny_tensors(path), quantized), MlxWriter())
    return path / "mlx"


@pytest.fixture(params=[None, 8], ids=["float cache", "8-bit cache"])
def runner(request: pytest.FixtureRequest, folder: Path) -> Runner:
    return MlxRunner(folder, context_length=64, sequence_slots=2, max_chunk=50, kv_bits=request.param)


def run(runner: Runner, tokens: list[int], slot: int = 0) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = runner.run([Chunk(slot, tokens, "all")])[0].copy()
    return logits


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_unquantized_logits_agree_with_the_reference(tmp_path: Path, model_type: ModelType, tied: bool) -> None:
    path = tiny_checkpoint(tmp_path, model_type=model_type, tied=tied)
    tensors = tiny_tensors(path)
    write(path, TensorWeights(tensors), MlxWriter(dtype="float32"))
    got = run(MlxRunner(path / "mlx", context_length=64), TOKENS)
    expected = forward(tiny_decoder(path), tensors.__getitem__, TOKENS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_logits_agree_with_the_reference_on_the_dequantized_weights(
    tmp_path: Path, model_type: ModelType, tied: bool
) -> None:
    # float16 represents these norms and biases exactly, so that only the quantization matters.
    path = tiny_checkpoint(tmp_path, model_type=model_type, tied=tied, dtype="float16")
    weights = TensorWeights(tiny_tensors(path), quantized)
    write(path, weights, MlxWriter())
    got = run(MlxRunner(path / "mlx", context_length=64), TOKENS)
    decoder = tiny_decoder(path)
    np.testing.assert_allclose(got, forward(decoder, weights.stored(decoder).__getitem__, TOKENS), atol=2e-3)
    # The quantization does have an effect.
    assert np.abs(got - forward(decoder, weights.tensors.__getitem__, TOKENS)).max() > 0.05


def test_a_prompt_in_one_chunk_equals_token_by_token(runner: Runner) -> None:
    full = run(runner, TOKENS)
    single = np.concatenate([run(runner, [token], slot=1) for token in TOKENS])
    np.testing.assert_allclose(single, full, atol=1e-4)
    assert runner.length(0) == runner.length(1) == len(TOKENS)


def test_logits_come_for_none_the_last_or_all_tokens(runner: Runner) -> None:
    everything = run(runner, TOKENS[:10])
    runner.truncate(0, 0)
    nothing, last = runner.run([Chunk(0, TOKENS[:5], "none"), Chunk(1, TOKENS[:10])])
    assert nothing.shape == (0, 512)
    assert last.shape == (1, 512)
    np.testing.assert_allclose(last[0], everything[9], atol=1e-4)
    np.testing.assert_allclose(run(runner, TOKENS[5:10]), everything[5:], atol=1e-4)


def test_sequence_slots_do_not_disturb_each_other(runner: Runner) -> None:
    alone = run(runner, TOKENS[:20])
    runner.truncate(0, 0)
    steps = ([Chunk(0, [token]), Chunk(1, [511 - token])] for token in TOKENS[:20])
    together = [runner.run(step)[0].copy() for step in steps]
    assert runner.length(1) == 20
    np.testing.assert_allclose(np.concatenate(together), alone, atol=1e-4)


def test_truncating_discards_only_what_follows(runner: Runner) -> None:
    expected = run(runner, TOKENS[:12])
    runner.truncate(0, 6)
    assert runner.length(0) == 6
    run(runner, [7, 8, 9])
    runner.truncate(0, 6)
    np.testing.assert_allclose(run(runner, TOKENS[6:12]), expected[6:], atol=1e-4)
    with pytest.raises(RunnerError, match="holds 12 tokens; it cannot be truncated to 13"):
        runner.truncate(0, 13)


def test_a_step_beyond_the_context_length_changes_no_slot(runner: Runner) -> None:
    run(runner, TOKENS)
    before = runner.read_kv(0, 0, 48)
    with pytest.raises(RunnerError, match=r"48 \+ 17 tokens do not fit the context of 64") as caught:
        runner.run([Chunk(1, [1, 2]), Chunk(0, TOKENS[:17])])
    assert caught.value.code == "context_length_exceeded"
    assert (runner.length(0), runner.length(1)) == (48, 0)
    assert runner.read_kv(0, 0, 48) == before
    runner.run([Chunk(0, TOKENS[:16])])
    assert runner.length(0) == 64


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([Chunk(0, [])], "a chunk must have 1 to 50 tokens, not 0"),
        ([Chunk(0, [1] * 51)], "a chunk must have 1 to 50 tokens, not 51"),
        ([Chunk(0, [512])], "token ids must be from 0 to 511"),
        ([Chunk(0, [-1])], "token ids must be from 0 to 511"),
        ([Chunk(2, [1])], "no sequence slot 2"),
        ([Chunk(0, [1]), Chunk(0, [2])], "at most one chunk per sequence slot"),
    ],
)
def test_a_malformed_step_is_refused_before_anything_runs(runner: Runner, chunks: list[Chunk], message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        runner.run([Chunk(1, [1]), *chunks])
    assert runner.length(1) == 0


def test_the_kv_cache_moves_to_another_slot_in_parts_without_a_changed_bit(runner: Runner) -> None:
    run(runner, TOKENS[:30])
    parts = [runner.read_kv(0, 0, 11), runner.read_kv(0, 11, 30)]
    assert len(parts[0]) == 11 * runner.limits.kv_bytes_per_token
    assert runner.write_kv(1, 0, parts[0]) == 11
    assert runner.write_kv(1, 11, parts[1]) == 30
    assert runner.read_kv(1, 0, 30) == runner.read_kv(0, 0, 30)
    ours, theirs = runner.run([Chunk(0, [5], "all"), Chunk(1, [5], "all")])
    np.testing.assert_array_equal(ours, theirs)


def test_a_kv_cache_that_does_not_fit_is_refused(runner: Runner) -> None:
    run(runner, TOKENS[:30])
    data = runner.read_kv(0, 0, 30)
    assert runner.write_kv(1, 0, b"") == 0
    with pytest.raises(RunnerError, match="do not fit this runner's KV cache"):
        runner.write_kv(1, 0, data[:-1])
    with pytest.raises(RunnerError, match="holds 0 tokens; position 3 does not follow"):
        runner.write_kv(1, 3, data)
    with pytest.raises(RunnerError, match="holds 30 tokens, not positions 0 to 31"):
        runner.read_kv(0, 0, 31)
    runner.write_kv(1, 0, data)
    runner.write_kv(1, 30, data)
    with pytest.raises(RunnerError, match="do not fit this runner's KV cache"):
        runner.write_kv(1, 60, data)
    assert runner.length(1) == 60


@pytest.mark.parametrize(("kv_bits", "per_head"), [(None, 32 * 4), (8, 32 + 2 * 4)])
def test_the_limits_follow_the_model_and_the_options(folder: Path, kv_bits: int | None, per_head: int) -> None:
    limits = MlxRunner(folder, context_length=64, sequence_slots=2, max_chunk=50, kv_bits=kv_bits).limits
    assert (limits.context_length, limits.sequence_slots, limits.max_chunk, limits.vocab_size) == (64, 2, 50, 512)
    # Keys and values of 3 layers with 2 heads of 32: 4 bytes per element (float32 on a CPU), or 1 byte per element, and
    # a scale and an offset per head.
    assert limits.kv_bytes_per_token == 2 * 3 * 2 * per_head


def test_any_chunks_give_the_bits_of_one_long_chunk_on_the_cpu(runner: Runner) -> None:
    full = run(runner, TOKENS)
    cache = runner.read_kv(0, 0, 48)
    rng = np.random.default_rng(5)
    for _ in range(4):
        runner.truncate(0, 0)
        while (at := runner.length(0)) < 48:
            count = min(int(rng.choice([1, 1, 2, 5, 16])), 48 - at)
            rows = runner.run([Chunk(1, [at]), Chunk(0, TOKENS[at : at + count], "all", exact=True)])
            np.testing.assert_array_equal(rows[1], full[at : at + count])
            if runner.length(1) == 60:
                runner.truncate(1, 3)
        assert runner.read_kv(0, 0, 48) == cache


def test_an_8_bit_cache_hardly_changes_the_logits(folder: Path) -> None:
    plain = run(MlxRunner(folder, context_length=64), TOKENS)
    kept = run(MlxRunner(folder, context_length=64, kv_bits=8), TOKENS)
    assert 0 < np.abs(kept - plain).max() < 0.05 * plain.std()
    assert np.mean(kept.argmax(-1) == plain.argmax(-1)) > 0.95


def test_a_cache_of_other_bits_or_with_heads_that_no_group_divides_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="4-bit KV cache") as caught:
        MlxRunner(folder, context_length=64, kv_bits=4)
    assert caught.value.hint
    path = tiny_checkpoint(tmp_path, heads=8, kv_heads=4)
    write(path, TensorWeights(tiny_tensors(path)), MlxWriter())
    with pytest.raises(ConfigError, match="heads of a multiple of 32 elements; this model's have 16"):
        MlxRunner(path / "mlx", context_length=64, kv_bits=8)


def test_a_long_prompt_is_prefilled_in_chunks(folder: Path) -> None:
    # Beyond mlx-lm's cache growth step of 256.
    tokens = [int(token) for token in np.random.default_rng(4).integers(0, 512, 600)]
    full = MlxRunner(folder, context_length=600, max_chunk=600)
    parts = MlxRunner(folder, context_length=600, max_chunk=100)
    for start in range(0, 500, 100):
        parts.run([Chunk(0, tokens[start : start + 100], "none")])
    last = parts.run([Chunk(0, tokens[500:])])[0]
    np.testing.assert_allclose(last, full.run([Chunk(0, tokens)])[0], atol=1e-3)


def test_a_runner_created_in_one_thread_works_in_another(runner: Runner) -> None:
    here = run(runner, TOKENS[:8])
    there: list[npt.NDArray[np.float32]] = []

    def work() -> None:
        runner.truncate(0, 4)
        there.append(run(runner, TOKENS[4:8]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_allclose(there[0], here[4:], atol=1e-4)


def test_a_closed_runner_says_so(folder: Path) -> None:
    runner = MlxRunner(folder, context_length=8)
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.run([Chunk(0, [1])])


def damaged(change: Callable[[Path], object], folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "config.json").unlink(),
        lambda path: (path / "model.safetensors").unlink(),
        lambda path: (path / "model.safetensors").write_bytes(b"\x10"),
        lambda path: (path / "config.json").write_text('{"model_type": "nonesuch"}'),
    ],
    ids=["no configuration", "no weights", "truncated weights", "unknown architecture"],
)
def test_a_damaged_folder_is_one_error_that_names_it(
    change: Callable[[Path], object], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunnerError, match="cannot load the MLX weights in") as caught:
        MlxRunner(damaged(change, folder, tmp_path), context_length=8)
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_loading_leaves_the_limit_of_open_files_alone(folder: Path) -> None:
    # In a process of its own: mlx_lm changes the limit when it is first imported.
    code = (
        "import resource, sys; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1500))\n"
        "from edgekit.runners.mlx import MlxRunner\n"
        "MlxRunner(Path(sys.argv[1]), context_length=8)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1000, 1500)"


def test_without_mlx_the_error_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(EdgekitError) as caught:
        MlxRunner(folder, context_length=8)
    assert caught.value.code == "missing_extra"
    assert caught.value.hint == "pip install 'edgekit-llm[mlx]'"
