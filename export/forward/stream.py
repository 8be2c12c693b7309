"""Runs hidden states through a decoder layer by layer, in float32 on the CPU.

Memory holds one layer's weights and a few windows' activations, whatever the size of the model and the number of
windows. There is no KV cache: each window is a separate sequence that starts at position 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.cores import usable_cores
from edgekit.errors import ExportError, broken_library, first_line, missing_extra
from edgekit.export.architectures.decoder import Decoder, Layer, Rope
from edgekit.export.forward.layer_graph import INPUTS, Kind, layer_model
from edgekit.export.forward.tensors import FloatArray, Tensors

__all__ = ["LayerRunner", "Observe", "causal_mask"]

Observe = Callable[[Mapping[str, FloatArray]], None]
"""Called with the inputs of the four groups of matrices, by `attention`, `o`, `mlp` and `down`: float32
`[windows, tokens, features]` of a few windows at a time, in order. The callback may keep the arrays."""

# Tokens per graph run: enough rows for full matmul throughput; with more, a 7B layer was slower.
_TOKENS = 512
# Rows of the embedding or the output head read at a time.
_ROWS = 8192


class LayerRunner:
    """Runs a decoder one layer at a time.

    Args:
        decoder: The model.
        threads: None takes one per physical core.
        tokens_per_run: Approximate number of tokens that go through a layer at once; at least one window does.

    Raises:
        EdgekitError: `missing_extra`, if onnxruntime is not installed.
    """

    def __init__(self, decoder: Decoder, *, threads: int | None = None, tokens_per_run: int = _TOKENS) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise missing_extra("onnxruntime", "onnxruntime") from error
        except ImportError as error:
            raise broken_library("onnxruntime", error) from error
        self._ort = onnxruntime
        self._d = decoder
        self.threads = threads or usable_cores()
        self._tokens_per_run = tokens_per_run
        self._sessions: dict[Kind, Any] = {}
        self._angles: dict[tuple[Rope, int], tuple[FloatArray, FloatArray]] = {}

    @property
    def decoder(self) -> Decoder:
        """The model."""
        return self._d

    def embed(self, tensors: Tensors, ids: npt.NDArray[np.integer]) -> FloatArray:
        """Embed tokens.

        Args:
            tensors: The model's weights.
            ids: Token ids `[windows, tokens]`.

        Returns:
            Hidden states before the first layer, float32 `[windows, tokens, hidden]`.

        Raises:
            ExportError: An id is outside the vocabulary.
        """
        d = self._d
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < d.vocab_size:
            raise ExportError(
                f"token {ids.max()} is outside the model's vocabulary of {d.vocab_size}",
                hint="do the tokenizer and the weights belong to the same model?",
            )
        hidden = np.empty((*ids.shape, d.hidden_size), np.float32)
        for start in range(0, d.vocab_size, _ROWS):
            in_block = (ids >= start) & (ids < start + _ROWS)
            if in_block.any():
                table = tensors.matrix(d.embedding, start, min(start + _ROWS, d.vocab_size))
                hidden[in_block] = table[ids[in_block] - start]
        if d.embedding_scale is not None:
            hidden *= np.float32(d.embedding_scale)
        return hidden

    def run(
        self,
        layer: Layer,
        tensors: Tensors,
        hidden: FloatArray,
        *,
        out: FloatArray | None = None,
        observe: Observe | None = None,
    ) -> FloatArray:
        """Run all windows through one layer.

        Args:
            layer: A layer of the decoder.
            tensors: The model's weights; each tensor of the layer is read once.
            hidden: Hidden states before it, float32 `[windows, tokens, hidden]`; may be memory-mapped.
            out: Receives the result; may be `hidden` itself, or memory-mapped. None allocates a new array.
            observe: Called with the inputs of the matrices.

        Returns:
            Hidden states after it, shaped like `hidden`.
        """
        result = np.empty(hidden.shape, np.float32) if out is None else out
        session = self._session(Kind.of(layer))
        feeds = self._feeds(layer, tensors, hidden.shape[1])
        names = ["hidden_out", *(INPUTS.values() if observe else ())]
        for span in self._spans(hidden.shape[0], hidden.shape[1]):
            feeds["hidden"] = np.ascontiguousarray(hidden[span])
            values = session.run(names, feeds)
            result[span] = values[0]
            if observe:
                observe(dict(zip(INPUTS, values[1:], strict=True)))
        return result

    def run_with_inputs(
        self, layer: Layer, tensors: Tensors, hidden: FloatArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Run all windows through one layer and keep all inputs of its matrices; for few windows.

        Returns:
            Hidden states after the layer, and the inputs by `attention`, `o`, `mlp` and `down`, each
            float32 `[windows, tokens, features]`.
        """
        kept: dict[str, list[FloatArray]] = {name: [] for name in INPUTS}

        def keep(inputs: Mapping[str, FloatArray]) -> None:
            for name, values in inputs.items():
                kept[name].append(values)

        after = self.run(layer, tensors, hidden, observe=keep)
        return after, {name: np.concatenate(parts) for name, parts in kept.items()}

    def group_input(self, layer: Layer, tensors: Tensors, hidden: FloatArray, group: str) -> FloatArray:
        """Return the input of one group of a layer's matrices, without computing the rest of the layer.

        Args:
            layer: A layer of the decoder.
            tensors: The model's weights.
            hidden: Hidden states of a few windows before the layer, float32 `[windows, tokens, hidden]`.
            group: `attention`, `o`, `mlp` or `down`.

        Returns:
            Float32 `[windows, tokens, features]`.
        """
        options = self._ort.RunOptions()
        options.only_execute_path_to_fetches = True
        feeds = {**self._feeds(layer, tensors, hidden.shape[1]), "hidden": np.ascontiguousarray(hidden)}
        values: FloatArray = self._session(Kind.of(layer)).run([INPUTS[group]], feeds, options)[0]
        return values

    def final(self, tensors: Tensors, hidden: FloatArray) -> FloatArray:
        """Apply the final norm to hidden states `[…, hidden]` after the last layer."""
        d = self._d
        weight = self._norm(tensors, d.final_norm)
        mean_square = np.mean(np.square(hidden), axis=-1, keepdims=True, dtype=np.float32)
        normed: FloatArray = hidden / np.sqrt(mean_square + np.float32(d.rms_norm_eps)) * weight
        return normed

    def head_blocks(self, tensors: Tensors, rows: int = _ROWS) -> Iterator[tuple[int, FloatArray]]:
        """Read the output head in blocks of the vocabulary: `(first token, weight [rows, hidden])`."""
        d = self._d
        head = d.embedding if d.tied else d.head
        for start in range(0, d.vocab_size, rows):
            yield start, tensors.matrix(head, start, min(start + rows, d.vocab_size))

    def logits(self, tensors: Tensors, hidden: FloatArray) -> FloatArray:
        """Logits of hidden states after the last layer, `[n, hidden]` to float32 `[n, vocab]`; for few rows."""
        normed = self.final(tensors, hidden)
        out = np.empty((len(hidden), self._d.vocab_size), np.float32)
        for start, weight in self.head_blocks(tensors):
            np.matmul(normed, weight.T, out=out[:, start : start + len(weight)])
        return out

    def _spans(self, windows: int, tokens: int) -> Iterator[slice]:
        step = max(1, self._tokens_per_run // max(1, tokens))
        for start in range(0, windows, step):
            yield slice(start, start + step)

    def _feeds(self, layer: Layer, tensors: Tensors, tokens: int) -> dict[str, FloatArray]:
        feeds: dict[str, FloatArray] = {}
        parts = ("q", "k", "v", "o", "gate", "up", "down")
        for part, linear in zip(parts, layer.linears(), strict=True):
            feeds[part] = np.ascontiguousarray(tensors.matrix(linear), np.float32)
            if linear.bias:
                feeds[f"{part}_bias"] = np.ascontiguousarray(tensors.bias(linear), np.float32)
        for part in ("input_norm", "mlp_norm", "attention_out_norm", "mlp_out_norm", "q_norm", "k_norm"):
            name = getattr(layer, part)
            if name is not None:
                feeds[part] = self._norm(tensors, name)
        feeds["cos"], feeds["sin"] = self._rope_tables(layer.rope, tokens)
        feeds["mask"] = causal_mask(tokens, layer.window)
        return feeds

    def _norm(self, tensors: Tensors, name: str) -> FloatArray:
        weight: FloatArray = np.asarray(tensors.norm(name), np.float32) + np.float32(self._d.norm_offset)
        return weight

    def _rope_tables(self, rope: Rope, tokens: int) -> tuple[FloatArray, FloatArray]:
        """Cosines and sines for each position, `[tokens, rope.dim / 2]`, computed in float64."""
        if (rope, tokens) not in self._angles:
            angles = np.arange(tokens, dtype=np.float64)[:, None] * np.array(rope.frequencies)
            cos, sin = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
            self._angles[rope, tokens] = cos.astype(np.float32), sin.astype(np.float32)
        return self._angles[rope, tokens]

    def _session(self, kind: Kind) -> Any:
        if kind not in self._sessions:
            options = self._ort.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # Matrices are large: spinning gains nothing here and takes cores from numpy.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                self._sessions[kind] = self._ort.InferenceSession(
                    layer_model(self._d, kind), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise ExportError(f"onnxruntime cannot load a layer's graph: {first_line(error)}") from error
        return self._sessions[kind]


def causal_mask(tokens: int, window: int | None = None) -> FloatArray:
    """Return an additive mask `[tokens, tokens]`: 0 where a row may attend, else half the minimum of float32.

    Args:
        tokens: Sequence length.
        window: Size of the sliding window, including the token itself; None for full attention.
    """
    visible = np.tri(tokens, dtype=bool)
    if window is not None:
        visible &= ~np.tri(tokens, k=-window, dtype=bool)
    # Half the minimum: adding a score to it cannot overflow.
    mask: FloatArray = np.where(visible, np.float32(0), np.finfo(np.float32).min / 2).astype(np.float32)
    return mask
