"""What a model takes in memory, and what fits: arithmetic only, for `edgekit plan`, the export and the daemon.

    needed = weights + KV cache (context × parallel) + activations + workspace
    left   = memory of the device - reserve of its system - needed

Figures of a runtime are measured or estimated once and stand in `RUNTIMES` with where they come from. It knows no file,
no target and no architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GIB", "MIB", "RUNTIMES", "Footprint", "Plan", "Runtime", "Shapes", "tokens_per_s"]

GIB = 1024**3
MIB = 1024**2

# The longest context that fits is named in whole steps, as people name contexts.
_STEP = 256


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes that activations depend on.

    Attributes:
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        heads: Query heads.
        vocab: Tokens in the vocabulary.
        kv_heads: Heads of keys and values; 0 where nobody said: as many.
        head_dim: Width of a head; 0 where nobody said: they divide the residual stream.
    """

    hidden: int
    intermediate: int
    heads: int
    vocab: int
    kv_heads: int = 0
    head_dim: int = 0

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a runner takes besides weights and KV cache.

    A step of `chunk` tokens holds at its widest, in the MLP, `mlp_copies` rows of the MLP's width and `copies` of the
    residual stream's for each token, and `query_copies` as wide as its queries; where attention is not fused, also its
    scores over the whole context. Where threads share a query's way back, each `span` of it has a sum and values.

    Attributes:
        process: Interpreter, libraries and what they allocate, bytes.
        tokenizer_per_token: Of the vocabulary, bytes; what grammars need of it included.
        chunk: Tokens of a prefill step.
        element: Bytes of an activation.
        kv_element: Bytes of a number in the KV cache.
        mlp_copies: Rows of the MLP's width that are alive at once.
        allocator: What the allocator keeps beyond that, bytes.
        score: Bytes for each query head, token of the chunk and token of the context; 0 where attention is fused.
        basis: Where the figures come from.
        copies: Rows of the residual stream's width that are alive at once.
        query_copies: Rows as wide as all queries, or as the residual stream where that is wider.
        span: Positions that are looked back over at a time, for a thread to take; 0 where they are not shared.
    """

    process: int
    tokenizer_per_token: int
    chunk: int
    element: int
    kv_element: int
    mlp_copies: float
    allocator: int
    score: int
    basis: str
    copies: int = 1
    query_copies: int = 0
    span: int = 0

    def workspace(self, shapes: Shapes) -> int:
        """Bytes of the process without a model, its tokenizer included."""
        return self.process + self.tokenizer_per_token * shapes.vocab

    def activations(self, shapes: Shapes) -> int:
        """Bytes of a prefill step that do not depend on the context."""
        row = self.mlp_copies * shapes.intermediate + self.copies * shapes.hidden
        row += self.query_copies * max(shapes.hidden, shapes.heads * shapes.head_width)
        return self.allocator + int(self.chunk * self.element * row)

    def activations_per_token(self, shapes: Shapes, threads: int = 1) -> int:
        """Bytes of a step for each token of the context.

        Args:
            shapes: The model's sizes.
            threads: That compute; they share as many rows' ways back as give each of them four pieces of work.
        """
        scores = self.score * self.chunk * shapes.heads
        if not self.span or threads == 1:
            return scores
        rows = -(-4 * threads // (shapes.kv_heads or shapes.heads))
        # Values and two numbers beside their address, and what says which piece it is (csrc/model.c).
        return scores + -(-rows * shapes.heads * (4 * shapes.head_width + 16 + 24) // self.span)

    def footprint(
        self,
        shapes: Shapes,
        *,
        weights: int,
        kv_per_token: int,
        windows: tuple[tuple[int, int], ...] = (),
        rope_per_token: int = 0,
        threads: int = 1,
    ) -> Footprint:
        """Return what a model takes in this runtime.

        A bundle's manifest has `weights` and `kv_per_token`, and its `config.json` the shapes.

        Args:
            shapes: The model's sizes.
            weights: As the runner holds them, bytes.
            kv_per_token: KV cache of one token in the layers that keep every token, bytes.
            windows: As in `Footprint`.
            rope_per_token: Rows of RoPE's tables that are in memory for each token of the context, bytes.
            threads: That compute, where the runtime shares work so that each takes memory.
        """
        return Footprint(
            weights=weights,
            kv_per_token=kv_per_token,
            activations=self.activations(shapes),
            activations_per_token=self.activations_per_token(shapes, threads) + rope_per_token,
            workspace=self.workspace(shapes),
            windows=windows,
        )


# 850 bytes: `tokenizers` 0.22 with byte-level BPE holds 49,152 tokens in 41.6 MiB and 151,936 in 121 MiB. 450 bytes:
# what llguidance 1.9 makes of them for grammars takes 22 and 63 MiB; the daemon builds it where there is room.
_TOKENIZER = 850 + 450
_MEASURED = "measured: {}x86-64 Linux, Python 3.11 (tests/test_plan_measured.py)"

RUNTIMES: Mapping[str, Runtime] = {
    # Its CPU attention is computed in tiles, so that no scores are kept.
    "onnxruntime": Runtime(95 * MIB, _TOKENIZER, 512, 4, 4, 5, 16 * MIB, 0, _MEASURED.format("onnxruntime 1.32, ")),
    # Kernels of our own (runners/cpu/csrc/model.c). In the MLP gate and up are there side by side, and the codes they
    # are rounded to; scores are of a few queries at a time.
    "cpu": Runtime(
        70 * MIB,
        _TOKENIZER,
        512,
        4,
        2,
        2.4,
        4 * MIB,
        0,
        _MEASURED.format(""),
        copies=2,
        query_copies=2,
        span=256,
    ),
    "mlx": Runtime(
        250 * MIB,
        _TOKENIZER,
        512,
        2,
        2,
        5,
        64 * MIB,
        0,
        "estimate: mlx-lm's imports, and buffers that MLX keeps for reuse",
    ),
    # Scores in FP32 beside their softmax in FP16, in case TensorRT does not fuse attention.
    "tensorrt": Runtime(
        600 * MIB,
        _TOKENIZER,
        128,
        4,
        2,
        3,
        32 * MIB,
        6,
        "estimate: a CUDA context, TensorRT's libraries, no fused attention",
    ),
    # The process is in the host's memory; the card holds what CUDA and the kernels need.
    "tensorrt_rtx": Runtime(
        200 * MIB, 0, 128, 4, 2, 3, 32 * MIB, 6, "estimate: compiled kernels on the card, no fused attention"
    ),
}
"""By the name of a runner in `targets/`."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes, in bytes.

    Attributes:
        weights: As the runner holds them.
        kv_per_token: KV cache of one token in one sequence slot, in the layers that keep every token.
        windows: Further KV cache, of layers that keep only the last tokens: bytes per token, and how many tokens.
        activations: Of a step, whatever the context.
        activations_per_token: More of it for each token of the context.
        workspace: The process without a model.
    """

    weights: int
    kv_per_token: int
    activations: int
    activations_per_token: int
    workspace: int
    windows: tuple[tuple[int, int], ...] = ()

    def kv_cache(self, context: int) -> int:
        """KV cache of one sequence slot."""
        return self.kv_per_token * context + sum(size * min(context, window) for size, window in self.windows)

    def step(self, context: int) -> int:
        """Activations of a step; sequences take their steps one after the other."""
        return self.activations + self.activations_per_token * context

    def total(self, context: int, parallel: int = 1) -> int:
        """Everything, for `parallel` sequence slots of `context` tokens."""
        return self.weights + self.workspace + self.step(context) + parallel * self.kv_cache(context)

    def longest_context(self, room: int, most: int, parallel: int = 1) -> int:
        """Return how many tokens each of `parallel` sequence slots can have.

        Args:
            room: Bytes there are for everything.
            most: Tokens that the model allows.
            parallel: Sequence slots.

        Returns:
            At most `most`; below it a multiple of 256; 0 where not even that many fit.
        """
        if self.total(most, parallel) <= room:
            return most
        low, high = 0, -(-most // _STEP)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.total(middle * _STEP, parallel) <= room else (low, middle)
        return low * _STEP


@dataclass(frozen=True, slots=True)
class Plan:
    """A footprint on a device.

    Attributes:
        footprint: What the model takes.
        context: Tokens of each sequence slot.
        parallel: Sequence slots.
        most: The longest context the model allows.
        memory: Of the device, bytes; None where it is not known.
        reserve: What the device's system keeps of it, bytes.
    """

    footprint: Footprint
    context: int
    parallel: int
    most: int
    memory: int | None
    reserve: int

    @property
    def needed(self) -> int:
        """What the model takes."""
        return self.footprint.total(self.context, self.parallel)

    @property
    def room(self) -> int | None:
        """What the device has for it."""
        return None if self.memory is None else self.memory - self.reserve

    @property
    def left(self) -> int | None:
        """What is left; negative where it does not fit."""
        return None if self.room is None else self.room - self.needed

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where the memory is not known."""
        return None if self.left is None else self.left >= 0

    def longest_context(self, parallel: int = 1) -> int | None:
        """The longest context for so many sequence slots; None where the memory is not known."""
        return None if self.room is None else self.footprint.longest_context(self.room, self.most, parallel)


def tokens_per_s(bandwidth_gb_s: float, bytes_per_token: float) -> float:
    """Return the most tokens per second that memory allows: each reads all weights and the KV cache once.

    Args:
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second.
        bytes_per_token: Bytes read for one token.
    """
    return bandwidth_gb_s * 1e9 / bytes_per_token
