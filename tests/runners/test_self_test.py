"""What a self-test accepts and what it sees: real runners of real exports, and runners that make one mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.self_test import SelfTest, read_self_test
from edgekit.errors import EdgekitError, RunnerError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.runners import open_runner
from edgekit.runners.base import Backend, Chunk, Limits, Runner
from edgekit.runners.candidates import LoadOptions, candidates
from edgekit.runners.self_test import Report, check_self_test, self_test
from edgekit.target import load_target
from tests.conftest import Export
from tests.export.checkpoints.gguf.files import write_gguf
from tests.export.checkpoints.packed_files import pack_checkpoint
from tests.models import tiny_checkpoint
from tests.ort_version import RUNS_NATIVE, WINDOWS_RUN
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]
# As tests/export/test_pipeline_architectures.py has them.
REFUSED = {("qwen2-window", "m2"), ("mistral-window", "m2"), ("phi3", "m2")}


def exported(checkpoint: Path, target: str, folder: Path, recipe: str = "lsq") -> Bundle:
    profile = load_target("rtx", dialect="native") if target == "rtx-native" else load_target(target)
    # Phi-3's window of 200 tokens is refused where the context is longer.
    context = 200 if target != "m2" and checkpoint.name == "phi3" else None
    return export_bundle(str(checkpoint), profile, folder, ExportOptions(recipe=recipe, context_length=context), silent)


def expected_of(bundle: Bundle) -> SelfTest:
    found = read_self_test(bundle)
    assert found is not None
    return found


def reports(bundle: Bundle, slots: int = 2) -> list[Report]:
    """The self-test on every runner that this machine has."""
    found = []
    artifact = bundle.manifest.artifact
    for candidate in candidates(artifact.kind, artifact.dialect):
        try:
            runner = candidate.offer(bundle.path, artifact.dialect).load(LoadOptions(64, sequence_slots=slots))
        except RunnerError:
            continue
        with closing(runner):
            found.append(self_test(runner, expected_of(bundle)))
    return found


@pytest.mark.parametrize("target", ["cpu", "m2", "orin", "rtx-native"])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_runner_passes_for_every_architecture(name: str, target: str, tmp_path: Path) -> None:
    if target == "rtx-native" and not RUNS_NATIVE:
        pytest.skip("onnxruntime before 1.24 reads no graph of opset 24")
    if target == "cpu" and name in {"qwen2-window", "mistral-window", "gemma3_text"} and not WINDOWS_RUN:
        pytest.skip("onnxruntime before 1.24 counts a sliding window one token short")
    source = variant(name, tmp_path / name)
    if (name, target) in REFUSED:
        pytest.skip("mlx-lm's class would ignore the sliding window")
    bundle = exported(source, target, tmp_path / "bundle")
    found = reports(bundle)
    assert len(found) >= (2 if target == "cpu" else 1)
    for report in found:
        assert report.ok, report
        # With half of the bounds to spare; FP16 is far below the bound of its runners.
        assert report.error < (report.max_error / 2 if target == "cpu" or report.runner.startswith("cpu") else 0.005), (
            report
        )
        assert report.kl < 0.01, report
        # Every row in both slots.
        assert report.rows == 2 * len(expected_of(bundle).rows)


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("name", ["qwen2-tied", "llama-biased", "phi3-partial"])
def test_floats_pass_too(name: str, target: str, tmp_path: Path) -> None:
    found = reports(exported(variant(name, tmp_path / name), target, tmp_path / "bundle", "none"))
    assert found
    assert all(report.ok and report.error < 0.005 for report in found)


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(recipe="gptq", calibration_windows=2),
        ExportOptions(recipe="awq", calibration_windows=2),
        ExportOptions(recipe="lsq", head_bits=16),
        ExportOptions(recipe="lsq", embedding_bits=16, head_bits=8),
    ],
    ids=["gptq", "awq", "float-head", "float-embedding"],
)
def test_every_recipe_passes(options: ExportOptions, target: str, tmp_path: Path) -> None:
    # Biases and separate matrices, which AWQ changes.
    source = variant("qwen2", tmp_path / "model", layers=2)
    found = reports(export_bundle(str(source), load_target(target), tmp_path / "bundle", options, silent))
    assert found
    assert all(
        report.ok
        and report.error < (report.max_error / 2 if target == "cpu" or report.runner.startswith("cpu") else 0.005)
        for report in found
    )


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("method", ["gptq", "awq", "gguf"])
def test_quantized_checkpoints_pass(method: str, target: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", layers=2)
    if method == "gguf":
        source = write_gguf(source, tmp_path / "model.gguf")
    else:
        pack_checkpoint(source, method, symmetric=False)
    found = reports(export_bundle(str(source), load_target(target), tmp_path / "bundle", ExportOptions(), silent))
    assert found
    assert all(
        report.ok
        and report.error < (report.max_error / 2 if target == "cpu" or report.runner.startswith("cpu") else 0.005)
        for report in found
    )


@pytest.mark.parametrize("target", ["cpu", "orin"])
def test_a_real_model_passes(target: str, export: Export) -> None:
    found = reports(open_bundle(export(target)))
    assert found
    for report in found:
        assert report.ok, report
        assert report.error < report.max_error / 2, report
        # Most rows have one token that is far more probable than the next.
        assert report.top1 >= 0.5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("mistakes")
    return exported(variant("qwen2", folder / "model"), "orin", folder / "bundle")


@pytest.fixture
def runner(bundle: Bundle) -> Iterator[Runner]:
    artifact = bundle.manifest.artifact
    with closing(
        open_runner(
            bundle.path, artifact.kind, artifact.dialect, context_length=64, sequence_slots=2, runner="onnxruntime"
        )
    ) as opened:
        yield opened


class Mistaken:
    """A runner that makes a mistake: before a step, or in the logits of one."""

    def __init__(
        self,
        runner: Runner,
        *,
        before: Callable[[Runner, Sequence[Chunk]], object] = lambda *_: None,
        after: Callable[[FloatArray], FloatArray] = lambda logits: logits,
    ) -> None:
        self._runner, self._before, self._after = runner, before, after

    @property
    def backend(self) -> Backend:
        return self._runner.backend

    @property
    def limits(self) -> Limits:
        return self._runner.limits

    def run(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        self._before(self._runner, chunks)
        return [self._after(logits.copy()) for logits in self._runner.run(chunks)]

    def length(self, slot: int) -> int:
        return self._runner.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        self._runner.truncate(slot, min(length, self._runner.length(slot)))

    def read_kv(self, slot: int, start: int, stop: int) -> bytes:
        return self._runner.read_kv(slot, start, stop)

    def write_kv(self, slot: int, start: int, data: bytes | memoryview) -> int:
        return self._runner.write_kv(slot, start, data)

    def close(self) -> None:
        self._runner.close()


def forget(runner: Runner, chunks: Sequence[Chunk]) -> None:
    """Every chunk starts at position 0."""
    for chunk in chunks:
        runner.truncate(chunk.slot, 0)


def overwrite_the_last(runner: Runner, chunks: Sequence[Chunk]) -> None:
    """A single token is put one position too early."""
    for chunk in chunks:
        if len(chunk.tokens) == 1:
            runner.truncate(chunk.slot, runner.length(chunk.slot) - 1)


def repeat(runner: Runner, chunks: Sequence[Chunk]) -> None:
    """A single token is put one position too late."""
    runner.run([chunk for chunk in chunks if len(chunk.tokens) == 1])


def mix_slots(runner: Runner, chunks: Sequence[Chunk]) -> None:
    """The second slot continues the first one's sequence."""
    if len(chunks) == 2 and runner.length(1) > 0:
        length = runner.length(1)
        runner.truncate(1, 0)
        runner.write_kv(1, 0, runner.read_kv(0, runner.length(0) - length, runner.length(0)))


@pytest.mark.parametrize("mistake", [forget, overwrite_the_last, repeat, mix_slots])
def test_a_kv_cache_that_is_continued_in_the_wrong_place_fails(
    mistake: Callable[[Runner, Sequence[Chunk]], None], bundle: Bundle, runner: Runner
) -> None:
    assert self_test(runner, expected_of(bundle)).ok
    report = self_test(Mistaken(runner, before=mistake), expected_of(bundle))
    assert not report.ok, report
    assert report.error > 2 * report.max_error


def one_token_wins(logits: FloatArray) -> FloatArray:
    """A token that is in no row of the self-test."""
    logits[:, 256 + 200] = 60.0
    return logits


@pytest.mark.parametrize(
    "mistake",
    [
        lambda logits: np.full_like(logits, np.nan),
        lambda logits: np.where(np.arange(logits.shape[1]) == 3, np.inf, logits),
        np.zeros_like,
        lambda logits: np.roll(logits, 1, axis=1),
        lambda logits: logits * 1.2,
        one_token_wins,
    ],
    ids=["NaN", "infinity", "zeros", "shifted", "scaled", "one-token-wins"],
)
def test_wrong_logits_fail(mistake: Callable[[FloatArray], FloatArray], bundle: Bundle, runner: Runner) -> None:
    assert not self_test(Mistaken(runner, after=mistake), expected_of(bundle)).ok


def test_the_slots_are_empty_again_even_if_a_step_fails(bundle: Bundle, runner: Runner) -> None:
    self_test(runner, expected_of(bundle))
    assert [runner.length(slot) for slot in (0, 1)] == [0, 0]

    def fail(_: Runner, chunks: Sequence[Chunk]) -> None:
        if len(chunks[0].tokens) == 1:
            raise RunnerError("no memory")

    with pytest.raises(RunnerError, match="no memory"):
        self_test(Mistaken(runner, before=fail), expected_of(bundle))
    assert [runner.length(slot) for slot in (0, 1)] == [0, 0]


def test_an_error_has_the_figures(bundle: Bundle, runner: Runner) -> None:
    assert check_self_test(runner, expected_of(bundle)).ok
    with pytest.raises(
        EdgekitError, match=r"error of the logits 100\.00% \(at most 3%\), KL divergence .* nats"
    ) as caught:
        check_self_test(Mistaken(runner, after=np.zeros_like), expected_of(bundle))
    assert caught.value.code == "self_test_failed"


def test_a_short_context_compares_the_rows_that_fit_and_short_chunks_compare_all(bundle: Bundle) -> None:
    expected = expected_of(bundle)
    artifact = bundle.manifest.artifact
    with closing(
        open_runner(
            bundle.path, artifact.kind, artifact.dialect, context_length=15, sequence_slots=1, runner="onnxruntime"
        )
    ) as runner:
        report = self_test(runner, expected)
        assert (report.ok, report.rows) == (True, 3)
    artifact = bundle.manifest.artifact
    with closing(
        open_runner(
            bundle.path, artifact.kind, artifact.dialect, context_length=5, sequence_slots=1, runner="onnxruntime"
        )
    ) as runner:
        report = self_test(runner, expected)
        assert (report.ok, report.rows) == (True, 0)
    from edgekit.runners.portable import PortableRunner

    with closing(PortableRunner(bundle.path, context_length=64, max_chunk=3)) as runner:
        report = self_test(runner, expected)
        assert (report.ok, report.rows) == (True, len(expected.rows))


def test_a_runner_with_a_smaller_vocabulary_is_refused(bundle: Bundle, runner: Runner) -> None:
    class Small(Mistaken):
        @property
        def limits(self) -> Limits:
            return Limits(64, 1, 16, 100, 8)

    with pytest.raises(RunnerError, match="vocabulary has 100 tokens"):
        self_test(Small(runner), expected_of(bundle))
