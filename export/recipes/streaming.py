"""The `Weights` that writers read: quantizes a checkpoint one tensor at a time.

A matrix is read and quantized a few rows at a time by one thread per core, so it is never fully in memory in floating
point. Matrices that stay in floating point are, except for the embedding and the output head. While the writer writes
one matrix, the next one is prefetched, and only that one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from threading import Lock
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekit.cores import count_cores
from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.io.buffers import Buffers
from edgekit.export.quantization.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor, as_floats
from edgekit.export.recipes.recipe import QuantPlan, Recipe

__all__ = ["CheckpointWeights"]

FloatArray = npt.NDArray[np.float32]
Matrix = GroupedTensor | FloatArray

_FLOATING = "floating point"
# Weights read and quantized at a time by one thread: 2 MiB of float32, which fit in its cache.
_SPAN = 1 << 19
# The self-test frees a layer's matrices together: their memory is kept for the next layer's.
_FREE_BUFFERS = 12
# Spans of a float table that are read ahead of the writer.
_READAHEAD = 3


class CheckpointWeights:
    """Quantizes tensors as they are read. Use it as a context manager: leaving it ends its threads.

    Attributes:
        order: See `Weights.order`; reading one matrix prefetches the next in this order. Reading in any other order
            gives the same result, slower.
        used: Number of matrices by treatment, for the manifest: `{"lsq 4-bit, group 32": 210}`.

    Args:
        checkpoint: The checkpoint to read.
        recipe: How to quantize each matrix.
        order: See above.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, order: Sequence[Linear] = ()) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._tensors = checkpoint.tensors
        self.order = tuple(order)
        self._following = {linear.weight: after for linear, after in pairwise(order)}
        self._next: tuple[Linear, Future[tuple[Matrix, str]]] | None = None
        self._prefetcher = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pool = ThreadPoolExecutor(count_cores().usable_cpus, thread_name_prefix="quantize")
        self._buffers = Buffers(_FREE_BUFFERS)
        self._lock = Lock()
        self._read = 0
        self._total = max(1, sum(linear.out_features * linear.in_features for linear in order))
        self.used: Counter[str] = Counter()

    def __enter__(self) -> CheckpointWeights:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Waits for running reads, because the checkpoint is about to be closed.
        self._pool.shutdown(cancel_futures=True)
        self._prefetcher.shutdown(cancel_futures=True)

    def fraction_read(self) -> float:
        """The fraction of the matrices in `order` read so far, from 0 to 1."""
        return self._read / self._total

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32 `[n]`."""
        values = as_floats(self._checkpoint.read(name))
        if not np.isfinite(values).all():
            raise ExportError(f"tensor `{name}` contains NaN or infinity", hint="download the checkpoint again")
        return values

    def matrix(self, linear: Linear, plan: QuantPlan | None = None) -> Matrix:
        """The weight of a linear layer or of the embedding, `[out, in]`, quantized by the recipe.

        Args:
            linear: The matrix.
            plan: How to quantize it; None leaves that to the recipe.
        """
        ready, self._next = self._next, None
        if ready is not None and ready[0] == linear:
            tensor, treatment = ready[1].result()
        else:
            if ready is not None:
                # The writer reads in another order: stop prefetching.
                ready[1].cancel()
                self._following = {}
            tensor, treatment = self._quantize(linear, plan)
        following = self._following.get(linear.weight)
        # Float matrices are not prefetched: two in memory would be too many.
        if following is not None and not self._recipe.keeps_float(following):
            self._next = (following, self._prefetcher.submit(self._quantize, following))
        self.used[treatment] += 1
        return tensor

    def table(self, linear: Linear, plan: QuantPlan | None = None) -> GroupedTensor | FloatRows:
        """Like `matrix`, but a float matrix comes row by row and is never fully in memory."""
        if not self._recipe.keeps_float(linear):
            tensor = self.matrix(linear, plan)
            assert isinstance(tensor, GroupedTensor)  # noqa: S101  the recipe quantizes it
            return tensor
        self.used[_FLOATING] += 1
        return FloatRows((linear.out_features, linear.in_features), lambda: self._float_parts(linear))

    def _float_parts(self, linear: Linear) -> Iterator[FloatArray]:
        """Yield rows in order, reading a few spans ahead."""
        reading: deque[Future[FloatArray]] = deque()
        for start, stop in self._spans(linear.out_features, linear.in_features):
            reading.append(self._pool.submit(lambda a, b: as_floats(self._stored(linear, a, b)), start, stop))
            if len(reading) > _READAHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()

    def _stored(self, linear: Linear, start: int, stop: int) -> Matrix:
        """Read rows of the stored matrix."""
        first = linear.first_row
        part = self._checkpoint.read(linear.stored.weight, first + start, first + stop)
        with self._lock:
            self._read += (stop - start) * linear.in_features
        return part

    def _quantize(self, linear: Linear, plan: QuantPlan | None = None) -> tuple[Matrix, str]:
        rows, width = linear.out_features, linear.in_features
        stored = partial(self._stored, linear)
        if self._recipe.keeps_float(linear):
            floats = np.empty((rows, width), np.float32)

            def copy(start: int, stop: int) -> None:
                floats[start:stop] = as_floats(stored(start, stop))

            self._each_span(rows, width, copy)
            return floats, _FLOATING
        source: Callable[[int, int], Matrix] = stored
        first = stored(0, 1)
        if self._recipe.keeps_codes(linear) and isinstance(first, GroupedTensor):
            tensor = self._collect(rows, width, first.bits, first.group_size, stored)
            kept = self._recipe.keep_codes(linear, tensor)
            if kept is not None:
                return kept
            source = tensor.rows
        chosen = plan or self._recipe.plan(linear, self._tensors[linear.stored.weight].encoding)
        grid = chosen.grid

        def quantized(start: int, stop: int) -> GroupedTensor:
            return chosen.fit(as_floats(source(start, stop)), grid)

        return self._collect(rows, width, grid.bits, grid.group_size, quantized), chosen.summary

    def _collect(
        self, rows: int, width: int, bits: int, group_size: int, part: Callable[[int, int], Matrix]
    ) -> GroupedTensor:
        """Assemble a tensor from spans of its rows, computed in parallel."""
        codes = self._buffers.take(rows * width).reshape(rows, width)
        tensor = GroupedTensor.empty(codes, bits, group_size)

        def put(start: int, stop: int) -> None:
            span = part(start, stop)
            assert isinstance(span, GroupedTensor)  # noqa: S101  all rows of a tensor are stored alike
            tensor.put(start, span)

        self._each_span(rows, width, put)
        return tensor

    def _each_span(self, rows: int, width: int, work: Callable[[int, int], None]) -> None:
        # Iterating raises the errors of the threads here and cancels the rest.
        for _ in self._pool.map(lambda span: work(*span), self._spans(rows, width)):
            pass

    @staticmethod
    def _spans(rows: int, width: int) -> Iterator[tuple[int, int]]:
        step = max(1, _SPAN // max(1, width))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))
