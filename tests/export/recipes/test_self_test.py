"""The logits that an export keeps, against the float32 reference; and the faults of an artifact that they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.bundle.self_test import SelfTest
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.lsq import lsq
from edgekit.export.recipes.self_test import ObservedWeights, Prompt, self_test_prompt
from edgekit.export.writers.mlx import MlxWriter
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.runners.portable import PortableRunner
from edgekit.runners.self_test import Report, self_test
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.reference import forward
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]
Matrix = GroupedTensor | FloatArray
Quantize = Callable[[Linear, FloatArray], Matrix]


def quantize(linear: Linear, weight: FloatArray) -> GroupedTensor:  # noqa: ARG001
    return lsq(weight, Grid(4, 32 if weight.shape[1] % 32 == 0 else 16, Offset.SYMMETRIC, np.float16))


def prompt_of(folder: Path, decoder: Decoder) -> Prompt:
    return self_test_prompt((folder / "tokenizer.json").read_bytes(), decoder)


def computed(weights: TensorWeights, decoder: Decoder, prompt: Prompt, folder: Path, *, mlx: bool = False) -> SelfTest:
    folder.mkdir()
    writer = MlxWriter(dtype="float32") if mlx else OnnxWriter(dialect="portable")
    with ObservedWeights(weights, decoder, prompt) as observed:
        writer(decoder, observed, folder, lambda _: None)
        found = observed.result()
    assert found is not None
    return found


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_the_logits_are_those_of_the_reference_with_the_quantized_weights(
    name: str, quantized: bool, tmp_path: Path
) -> None:
    folder = variant(name, tmp_path / "model")
    decoder = tiny_decoder(folder)
    weights = TensorWeights(tiny_tensors(folder), quantize if quantized else None)
    prompt = prompt_of(folder, decoder)
    found = computed(weights, decoder, prompt, tmp_path / "onnx")
    logits = forward(decoder, weights.stored(decoder).__getitem__, prompt.tokens).astype(np.float64)
    assert found.tokens == prompt.tokens
    assert len(prompt.tokens) == sum(prompt.chunks) == 18
    assert [row.position for row in found.rows] == [7, 13, 14, 15, 16, 17]
    for row in found.rows:
        expected = logits[row.position]
        scale = np.abs(expected).max()
        assert np.abs(row.logits - expected[row.ids]).max() < 1e-4 * scale
        assert row.log_sum_exp == pytest.approx(np.log(np.exp(expected).sum()), rel=1e-5)
        # The largest first, no id twice.
        assert row.ids[0] == expected.argmax()
        assert set(row.ids[:64].tolist()) == set(np.argsort(-expected)[:64].tolist())
        assert len(set(row.ids.tolist())) == len(row.ids) == 256


@pytest.mark.parametrize("name", ["qwen2-tied", "llama", "phi3"])
def test_the_order_of_reading_and_the_writer_make_no_difference(name: str, tmp_path: Path) -> None:
    folder = variant(name, tmp_path / "model")
    decoder = tiny_decoder(folder)
    tensors, prompt = tiny_tensors(folder), prompt_of(folder, decoder)
    linears = list(decoder.linears())
    found = [
        computed(TensorWeights(tensors, quantize, order), decoder, prompt, tmp_path / str(number)).to_json()
        for number, order in enumerate(((), (decoder.embedding, *linears), (*linears[::-1], decoder.embedding)))
    ]
    assert found[0] == found[1] == found[2]


def test_mlx_keeps_fused_matrices_and_computes_the_same(tmp_path: Path) -> None:
    folder = variant("phi3-partial", tmp_path / "model")
    decoder, tensors = tiny_decoder(folder), tiny_tensors(folder)
    prompt = prompt_of(folder, decoder)
    whole = computed(TensorWeights(tensors), decoder, prompt, tmp_path / "mlx", mlx=True)
    parts = computed(TensorWeights(tensors), decoder, prompt, tmp_path / "onnx")
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert a.ids[0] == b.ids[0]
        assert a.log_sum_exp == pytest.approx(b.log_sum_exp, abs=1e-3)


def test_a_model_that_overflows_has_no_self_test(tmp_path: Path) -> None:
    folder = variant("qwen2", tmp_path / "model")
    decoder, tensors = tiny_decoder(folder), tiny_tensors(folder)
    tensors[decoder.final_norm] = np.full_like(tensors[decoder.final_norm], 3e38)
    (tmp_path / "mlx").mkdir()
    with ObservedWeights(TensorWeights(tensors), decoder, prompt_of(folder, decoder)) as observed:
        MlxWriter(dtype="float32")(decoder, observed, tmp_path / "mlx", lambda _: None)
        assert observed.result() is None


def test_a_short_context_has_a_shorter_prompt(tmp_path: Path) -> None:
    folder = variant("qwen2", tmp_path / "model")
    prompt = prompt_of(folder, replace(tiny_decoder(folder), max_position=15))
    assert prompt.chunks == (8, 6, 1)
    assert len(prompt.tokens) == 15


class Faulty:
    """Faults of an artifact: of its wiring, or of the tensors in it."""

    def __init__(self, folder: Path) -> None:
        self.decoder = tiny_decoder(folder)
        self.tensors = tiny_tensors(folder)
        self.middle = self.decoder.layers[1]
        self.faults: dict[str, tuple[Decoder, Mapping[str, FloatArray], Quantize]] = {}
        for name, change in {
            "one row has a scale a thousand times too large": lambda t: _scaled(t, slice(3, 4), 1000),
            "all scales are twice too large": lambda t: _scaled(t, slice(None), 2),
            "the nibbles of a byte are swapped": _nibbles_swapped,
            "rows are shifted by one": lambda t: replace(t, codes=np.roll(t.codes, 1, axis=0)),
            "scales are those of the next group": lambda t: replace(t, scales=np.roll(t.scales, 1, axis=1)),
            "the matrix is zero": lambda t: _scaled(t, slice(None), 0),
        }.items():
            self.faults[name] = (self.decoder, self.tensors, self._in(self.middle.down, change))
        self._add("two layers are swapped", tensors=self._swapped())
        self._add("a layer's norm is missing", tensors={self.middle.input_norm: np.ones(self.decoder.hidden_size)})
        self._add("a bias is dropped", tensors={self.middle.v.bias_name: np.zeros(self.middle.v.out_features)})
        self._add("the heads of k are shifted", tensors=self._rolled(self.middle.k))
        self._add("RoPE has another theta", decoder=self._rope(lambda i, dim: 5 ** (2 * i / dim)))
        self._add("RoPE is not scaled", decoder=self._rope(lambda *_: 1 / 8))
        self._add("the activation is another", decoder=replace(self.decoder, activation="gelu_tanh"))
        self._add("norms have an offset", decoder=replace(self.decoder, norm_offset=1.0))
        self._add(
            "attention has another scale",
            decoder=replace(self.decoder, attention_scale=self.decoder.attention_scale * 1.25),
        )

    def _add(
        self,
        name: str,
        *,
        tensors: Mapping[str, npt.NDArray[np.floating]] | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        changed = {name: np.asarray(values, np.float32) for name, values in (tensors or {}).items()}
        self.faults[name] = (decoder or self.decoder, {**self.tensors, **changed}, quantize)

    @staticmethod
    def _in(target: Linear, change: Callable[[GroupedTensor], GroupedTensor]) -> Quantize:
        def changed(linear: Linear, weight: FloatArray) -> GroupedTensor:
            tensor = quantize(linear, weight)
            return change(tensor) if linear == target else tensor

        return changed

    def _swapped(self) -> dict[str, FloatArray]:
        prefixes = [f"model.layers.{number}." for number in (1, 2)]
        swapped = {}
        for own, other in (prefixes, prefixes[::-1]):
            for name, values in self.tensors.items():
                if name.startswith(own):
                    swapped[other + name.removeprefix(own)] = values
        return swapped

    def _rolled(self, linear: Linear) -> dict[str, FloatArray]:
        return {linear.weight: np.roll(self.tensors[linear.weight], 1, axis=0)}

    def _rope(self, factor: Callable[[int, int], float]) -> Decoder:
        def changed(layer: Layer) -> Layer:
            rope = layer.rope
            frequencies = tuple(value * factor(i, rope.dim) for i, value in enumerate(rope.frequencies))
            return replace(layer, rope=replace(rope, frequencies=frequencies))

        return replace(self.decoder, layers=tuple(map(changed, self.decoder.layers)))


def _scaled(tensor: GroupedTensor, rows: slice, factor: float) -> GroupedTensor:
    scales, offsets = tensor.scales.copy(), tensor.offsets.copy()
    # TensorRT has no scale of zero.
    scales[rows] *= np.float32(factor or 2**-12)
    offsets[rows] *= np.float32(factor or 2**-12)
    return replace(tensor, scales=scales, offsets=offsets)


def _nibbles_swapped(tensor: GroupedTensor) -> GroupedTensor:
    pairs = tensor.codes.reshape(len(tensor.codes), -1, 2)
    return replace(tensor, codes=np.ascontiguousarray(pairs[:, :, ::-1]).reshape(tensor.codes.shape))


def _run(decoder: Decoder, weights: TensorWeights, expected: SelfTest, folder: Path) -> Report:
    folder.mkdir()
    OnnxWriter(dialect="portable")(decoder, weights, folder, lambda _: None)
    with closing(PortableRunner(folder, context_length=64, threads=1)) as runner:
        return self_test(runner, expected)


def test_faults_of_an_artifact_are_seen(tmp_path: Path) -> None:
    faulty = Faulty(variant("qwen2", tmp_path / "model"))
    decoder, weights = faulty.decoder, TensorWeights(faulty.tensors, quantize)
    expected = computed(weights, decoder, prompt_of(tmp_path / "model", decoder), tmp_path / "sound")
    assert _run(decoder, weights, expected, tmp_path / "again").error < 0.005
    missed = []
    for number, (name, (wiring, tensors, quantized)) in enumerate(faulty.faults.items()):
        report = _run(wiring, TensorWeights(tensors, quantized), expected, tmp_path / str(number))
        if report.ok:
            missed.append(f"{name}: {report}")
    assert len(faulty.faults) == 15
    assert missed == []
