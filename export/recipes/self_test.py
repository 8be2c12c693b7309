"""Computes a bundle's self-test from the tensors that its writer reads, as they pass.

`ObservedWeights` stands between the weights and the writer. Once all matrices of a layer have passed, a thread runs the
prompt through the layer while the writer goes on. Matrices may pass in any order: those whose layer's turn has not come
are kept packed. In the order of the layers, two layers at most are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.bundle.self_test import ExpectedRow, SelfTest
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.checkpoints.tokenizer_files import read_tokenizer
from edgekit.export.forward.few_tokens import FewTokens, Matrix
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.recipes.held_matrix import HeldMatrix
from edgekit.export.writers.base import Weights

__all__ = ["ObservedWeights", "Prompt", "self_test_prompt"]

FloatArray = npt.NDArray[np.float32]

# Repeated: predicting a repetition takes attention to the tokens of earlier chunks.
_TEXT = "Anna has 7 green pens. "
# Chunks and single tokens: the KV cache is continued in both ways. Every token costs time.
_CHUNKS = (8, 6, 1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a self-test: token ids, and how many of them are computed at a time."""

    tokens: tuple[int, ...]
    chunks: tuple[int, ...]


def self_test_prompt(tokenizer_json: bytes, decoder: Decoder) -> Prompt:
    """Return the prompt in a model's own tokens, beginning as its tokenizer begins a text.

    Args:
        tokenizer_json: Contents of `tokenizer.json`.
        decoder: The model.
    """
    tokenizer = read_tokenizer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    chunks, length = [], 0
    for chunk in _CHUNKS:
        # A model with a very short context.
        chunks += [chunk] if length + chunk <= decoder.max_position else []
        length = sum(chunks)
    ids = tokenizer.encode(_TEXT * length).ids[:length] or [0]
    tokens = [ids[i % len(ids)] % decoder.vocab_size for i in range(length)]
    return Prompt(tuple(tokens), tuple(chunks))


class ObservedWeights:
    """The `Weights` of a writer. Use it as a context manager: leaving it ends its threads.

    Args:
        weights: The weights.
        decoder: The model.
        prompt: The prompt.
    """

    def __init__(self, weights: Weights, decoder: Decoder, prompt: Prompt) -> None:
        self._w = weights
        self._d = decoder
        self._prompt = prompt
        self._pass = FewTokens(decoder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="self-test")
        self._positions = np.cumsum(prompt.chunks) - 1
        self._parts: dict[str, list[Linear]] = {}
        for layer in decoder.layers:
            for part in layer.linears():
                for linear in {part, part.stored}:
                    self._parts.setdefault(linear.name, []).append(part)
        self._ready: dict[str, Matrix] = {}
        self._next = 0
        self._hidden: Future[FloatArray] | None = None
        self._logits: FloatArray | None = None
        self._head: Matrix | FloatRows | None = None

    def __enter__(self) -> ObservedWeights:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._pass.__exit__()

    @property
    def order(self) -> Sequence[Linear]:
        """See `Weights.order`."""
        return self._w.order

    def vector(self, name: str) -> FloatArray:
        """See `Weights.vector`."""
        return self._w.vector(name)

    def matrix(self, linear: Linear) -> GroupedTensor | FloatArray:
        """See `Weights.matrix`."""
        tensor = self._w.matrix(linear)
        self._observe(linear, tensor)
        return tensor

    def table(self, linear: Linear) -> GroupedTensor | FloatRows:
        """See `Weights.table`."""
        table = self._w.table(linear)
        if isinstance(table, FloatRows):
            return FloatRows(table.shape, lambda: self._observed_rows(linear, table))
        self._observe(linear, table)
        return table

    def result(self) -> SelfTest | None:
        """Return the self-test once the writer has read everything; None if the model's logits are not finite."""
        assert self._next == len(self._d.layers)  # noqa: S101  a writer reads every tensor
        if self._logits is None:
            assert self._head is not None  # noqa: S101  likewise
            head = self._head
            if isinstance(head, FloatRows):
                # A tied head in floating point is read a second time.
                self._logits = _joined([self._product(part) for part in head.parts()])
            else:
                self._logits = self._product(head)
        if not np.isfinite(self._logits).all():
            return None
        rows = [ExpectedRow.of_logits(int(at), row) for at, row in zip(self._positions, self._logits, strict=True)]
        return SelfTest(self._prompt.tokens, self._prompt.chunks, tuple(rows))

    def _observe(self, linear: Linear, tensor: GroupedTensor | FloatArray) -> None:
        if linear.name == self._d.embedding.name:
            ids = np.array(self._prompt.tokens)
            if isinstance(tensor, GroupedTensor):
                rows = GroupedTensor(tensor.codes[ids], tensor.scales[ids], tensor.offsets[ids], tensor.bits)
                self._embed(rows.dequantize())
            else:
                self._embed(tensor[ids])
            if self._d.tied:
                self._head = tensor
        elif linear.name == self._d.head.name:
            if self._layers_done:
                self._logits = self._product(tensor)
            else:
                self._head = _held(tensor)
        else:
            turn = self._hidden is not None and linear.name in self._turn()
            for part in self._parts[linear.name]:
                first = 0 if part.name == linear.name else part.first_row
                last = first + part.out_features
                piece = _rows(tensor, first, last)
                self._ready[part.name] = piece if turn else _held(piece)
        self._advance()

    def _observed_rows(self, linear: Linear, table: FloatRows) -> Iterator[FloatArray]:
        """Yield the rows of a float table, and take from them what the self-test needs."""
        if linear.name == self._d.embedding.name:
            ids, found, start = np.array(self._prompt.tokens), None, 0
            for part in table.parts():
                if found is None:
                    found = np.zeros((len(ids), part.shape[1]), np.float32)
                here = (ids >= start) & (ids < start + len(part))
                found[here] = part[ids[here] - start]
                start += len(part)
                yield part
            assert found is not None  # noqa: S101  a vocabulary is not empty
            self._embed(found)
            if self._d.tied:
                self._head = table
            self._advance()
            return
        if linear.name != self._d.head.name:
            parts: list[FloatArray] = []
            for part in table.parts():
                parts.append(part)
                yield part
            self._observe(linear, np.concatenate(parts))
            return
        self._head = table
        if not self._layers_done:
            yield from table.parts()
            return
        logits = []
        for part in table.parts():
            logits.append(self._product(part))
            yield part
        self._logits = _joined(logits)

    def _embed(self, rows: FloatArray) -> None:
        scale = self._d.embedding_scale
        hidden = rows if scale is None else rows * np.float32(scale)
        self._hidden = self._thread.submit(lambda: hidden)

    @property
    def _layers_done(self) -> bool:
        return self._hidden is not None and self._next == len(self._d.layers)

    def _advance(self) -> None:
        """Run the prompt through the layers whose matrices have all passed."""
        while self._hidden is not None and self._next < len(self._d.layers):
            layer = self._d.layers[self._next]
            names = [linear.name for linear in layer.linears()]
            if not all(name in self._ready for name in names):
                return
            matrices = {name: self._ready.pop(name) for name in names}
            vectors = self._vectors(layer)
            # One layer at a time: each keeps its matrices in memory.
            before = self._hidden.result()
            self._hidden = self._thread.submit(self._run(layer, matrices, vectors, before))
            self._next += 1
            if any(isinstance(matrix, np.ndarray) for matrix in matrices.values()):
                # Two layers in floating point would be too many.
                self._hidden.result()

    def _turn(self) -> set[str]:
        """Names of the matrices of the layer whose turn it is."""
        layer = self._d.layers[self._next] if self._next < len(self._d.layers) else None
        return set() if layer is None else {name for x in layer.linears() for name in (x.name, x.stored.name)}

    def _run(
        self, layer: Layer, matrices: dict[str, Matrix], vectors: dict[str, FloatArray], hidden: FloatArray
    ) -> Callable[[], FloatArray]:
        def run() -> FloatArray:
            # A model that overflows has no self-test; that is found at the end.
            with np.errstate(all="ignore"):
                return self._pass.layer(layer, matrices, vectors, hidden)

        return run

    def _vectors(self, layer: Layer) -> dict[str, FloatArray]:
        """Read a layer's norms and biases here: weights are read on one thread."""
        norms = (
            layer.input_norm,
            layer.mlp_norm,
            layer.attention_out_norm,
            layer.mlp_out_norm,
            layer.q_norm,
            layer.k_norm,
        )
        vectors = {name: self._w.vector(name) for name in norms if name is not None}
        for linear in layer.linears():
            if linear.bias:
                vectors[linear.bias_name] = self._w.vector(linear.stored.bias_name)[linear.rows]
        return vectors

    def _product(self, head: Matrix) -> FloatArray:
        """Logits of all or some rows of the output head, `[positions, rows]`."""
        assert self._hidden is not None  # noqa: S101  all layers have run
        with np.errstate(all="ignore"):
            hidden = self._pass.norm(self._hidden.result()[self._positions], self._w.vector(self._d.final_norm))
            return self._pass.multiply(head, hidden)


def _joined(parts: list[FloatArray]) -> FloatArray:
    return np.concatenate(parts, axis=1)


def _rows(matrix: GroupedTensor | FloatArray, first: int, last: int) -> GroupedTensor | FloatArray:
    return matrix.rows(first, last) if isinstance(matrix, GroupedTensor) else matrix[first:last]


def _held(matrix: GroupedTensor | FloatArray) -> Matrix:
    return HeldMatrix.of(matrix) if isinstance(matrix, GroupedTensor) else matrix
