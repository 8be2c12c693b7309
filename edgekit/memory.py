"""Memory planning: what a model needs and whether it fits, for `edgekit plan`, the export and the daemon.

    needed = weights + KV cache (context × parallel) + activations + workspace
    left   = device memory - system reserve - needed

The figures of each runtime are measured or estimated once; `RUNTIMES` holds them with their basis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GIB", "MIB", "RUNTIMES", "SYSTEM_RESERVE", "Footprint", "Plan", "Runtime", "Shapes", "tokens_per_s"]

GIB = 1024**3
MIB = 1024**2

SYSTEM_RESERVE = 0.1
"""Share of the available memory that a daemon leaves to the rest of the system."""

# The longest context that fits is rounded down to a multiple of this.
_STEP = 256


@dataclass(frozen=True, slots=True)
class Shapes:
    """The dimensions that activations depend on.

    Attributes:
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        heads: Query heads.
        vocab: Tokens in the vocabulary.
        kv_heads: Key and value heads; 0 means as many as `heads`.
        head_dim: Width of a head; 0 means `hidden / heads`.
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
    """The memory that a runner needs besides weights and KV cache.

    At its peak, in the MLP, a step holds for each of its `chunk` tokens `mlp_copies` rows of the MLP's width, `copies`
    rows of the residual stream's width and `query_copies` rows of the queries' width; without fused attention, also
    the scores over the full context. Where threads split a query's attention over the context, each `span` of
    positions has a partial sum and partial values.

    Attributes:
        process: Interpreter, libraries and their allocations, bytes.
        tokenizer_per_token: Bytes per token of the vocabulary, including what grammars need.
        chunk: Tokens of a prefill step.
        element: Bytes per activation element.
        kv_element: Bytes per KV cache element.
        mlp_copies: Rows of the MLP's width that are alive at once.
        allocator: Overhead of the allocator beyond that, bytes.
        score: Bytes per query head, token of the chunk and token of the context; 0 with fused attention.
        basis: Where the figures come from.
        copies: Rows of the residual stream's width that are alive at once.
        query_copies: Rows as wide as all queries, or as the residual stream if that is wider.
        span: Context positions per unit of work when threads split attention; 0 if they do not.
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
        """Bytes of the process without a model but with its tokenizer."""
        return self.process + self.tokenizer_per_token * shapes.vocab

    def activations(self, shapes: Shapes) -> int:
        """Bytes of a prefill step, without the part that grows with the context."""
        row = self.mlp_copies * shapes.intermediate + self.copies * shapes.hidden
        row += self.query_copies * max(shapes.hidden, shapes.heads * shapes.head_width)
        return self.allocator + int(self.chunk * self.element * row)

    def activations_per_token(self, shapes: Shapes, threads: int = 1) -> int:
        """Bytes of a step per token of the context.

        Args:
            shapes: The model's dimensions.
            threads: Compute threads; attention of as many rows is split as gives each thread four units of work.
        """
        scores = self.score * self.chunk * shapes.heads
        if not self.span or threads == 1:
            return scores
        rows = -(-4 * threads // (shapes.kv_heads or shapes.heads))
        # Partial values, two numbers and their address, and the unit's descriptor (csrc/model.h).
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
        """Return the memory footprint of a model in this runtime.

        A bundle's manifest has `weights` and `kv_per_token`, and its `config.json` the shapes.

        Args:
            shapes: The model's dimensions.
            weights: Weights as the runner stores them, bytes.
            kv_per_token: KV cache per token in the layers that keep every token, bytes.
            windows: As in `Footprint`.
            rope_per_token: Rows of the RoPE tables per token of the context, bytes.
            threads: Compute threads; matters where each thread needs memory.
        """
        return Footprint(
            weights=weights,
            kv_per_token=kv_per_token,
            activations=self.activations(shapes),
            activations_per_token=self.activations_per_token(shapes, threads) + rope_per_token,
            workspace=self.workspace(shapes),
            windows=windows,
        )


# 850 bytes: `tokenizers` 0.22 with byte-level BPE takes 41.6 MiB for 49,152 tokens and 121 MiB for 151,936. 280 bytes:
# llguidance 1.9's tokenizer for grammars takes 13 and 38 MiB; the daemon builds it where memory allows.
_TOKENIZER = 850 + 280
_MEASURED = "measured: {}x86-64 Linux, Python 3.11 (tests/test_plan_measured.py)"

RUNTIMES: Mapping[str, Runtime] = {
    # CPU attention is tiled, so the scores are never stored.
    "onnxruntime": Runtime(112 * MIB, _TOKENIZER, 512, 4, 4, 5, 16 * MIB, 0, _MEASURED.format("onnxruntime 1.32, ")),
    # Our own kernels (runners/cpu/csrc/activations.c). The MLP holds gate, up and the codes they are quantized to;
    # scores are computed for a few queries at a time.
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
        "estimate: mlx-lm's imports, and MLX's buffer cache",
    ),
    # Attention is not fused: scores in FP16 and FP32, with the mask, and their softmax in both.
    "cuda": Runtime(
        700 * MIB,
        _TOKENIZER,
        128,
        4,
        2,
        5,
        64 * MIB,
        16,
        "estimate: a CUDA context, cuBLAS and onnxruntime's arena, no fused attention",
    ),
    # Scores in FP32 and their softmax in FP16, in case TensorRT does not fuse attention.
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
    # The process is in host memory; on the card are the CUDA context and the kernels.
    "tensorrt_rtx": Runtime(
        200 * MIB, 0, 128, 4, 2, 3, 32 * MIB, 6, "estimate: compiled kernels on the card, no fused attention"
    ),
}
"""Runtimes by runner name, as in `targets/`."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory footprint of a model, in bytes.

    Attributes:
        weights: Weights as the runner stores them.
        kv_per_token: KV cache per token and sequence slot, in the layers that keep every token.
        windows: KV cache of sliding-window layers: bytes per token, and the window in tokens.
        spare_per_token: What a runner allocates beside the KV cache to move it, per token and sequence slot.
        activations: Activations of a step, without the part that grows with the context.
        activations_per_token: That part, per token of the context.
        workspace: The process without a model.
    """

    weights: int
    kv_per_token: int
    activations: int
    activations_per_token: int
    workspace: int
    windows: tuple[tuple[int, int], ...] = ()
    spare_per_token: int = 0

    def kv_cache(self, context: int) -> int:
        """KV cache of one sequence slot."""
        return self.kv_per_token * context + sum(size * min(context, window) for size, window in self.windows)

    def kv_allocated(self, context: int) -> int:
        """KV cache of one sequence slot, with what is allocated to move it."""
        return self.kv_cache(context) + self.spare_per_token * context

    def step(self, context: int) -> int:
        """Activations of a step; sequences are computed one after the other."""
        return self.activations + self.activations_per_token * context

    def total(self, context: int, parallel: int = 1) -> int:
        """Total for `parallel` sequence slots of `context` tokens."""
        return self.weights + self.workspace + self.step(context) + parallel * self.kv_allocated(context)

    def longest_context(self, available: int, max_context: int, parallel: int = 1) -> int:
        """Return the longest context that each of `parallel` sequence slots can have, in tokens.

        Args:
            available: Memory for the model, bytes.
            max_context: The model's maximum context.
            parallel: Sequence slots.

        Returns:
            `max_context` if that fits, else a multiple of 256; 0 if fewer than 256 fit.
        """
        if self.total(max_context, parallel) <= available:
            return max_context
        low, high = 0, -(-max_context // _STEP)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.total(middle * _STEP, parallel) <= available else (low, middle)
        return low * _STEP


@dataclass(frozen=True, slots=True)
class Plan:
    """A footprint on a device.

    Attributes:
        footprint: The model's footprint.
        context: Tokens per sequence slot.
        parallel: Sequence slots.
        max_context: The model's maximum context.
        memory: Memory of the device, bytes; None if unknown.
        reserve: Memory that the device's system keeps, bytes.
    """

    footprint: Footprint
    context: int
    parallel: int
    max_context: int
    memory: int | None
    reserve: int

    @property
    def needed(self) -> int:
        """Bytes that the model needs."""
        return self.footprint.total(self.context, self.parallel)

    @property
    def available(self) -> int | None:
        """Bytes that the device has for the model; None if unknown."""
        return None if self.memory is None else self.memory - self.reserve

    @property
    def left(self) -> int | None:
        """Bytes left over; negative if the model does not fit."""
        return None if self.available is None else self.available - self.needed

    @property
    def fits(self) -> bool | None:
        """Whether the model fits; None if the memory is unknown."""
        return None if self.left is None else self.left >= 0

    def longest_context(self, parallel: int = 1) -> int | None:
        """The longest context for `parallel` sequence slots; None if the memory is unknown."""
        if self.available is None:
            return None
        return self.footprint.longest_context(self.available, self.max_context, parallel)


def tokens_per_s(bandwidth_gb_s: float, bytes_per_token: float) -> float:
    """Return the decode speed at the memory-bandwidth limit: each token reads all weights and the KV cache once.

    Args:
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second.
        bytes_per_token: Bytes read per token.
    """
    return bandwidth_gb_s * 1e9 / bytes_per_token
