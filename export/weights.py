"""A checkpoint's numbers, put on the target's grid one tensor at a time: the `Weights` that writers read.

A matrix is read and quantized a few rows at a time by as many threads as there are cores, so that it never exists in
floating point as a whole; one that stays in floating point does, but for the tables. While a writer writes one matrix
the next is made ready, and no more than that one.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from threading import Lock
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.buffers import Buffers
from edgekit.export.checkpoints.base import Checkpoint
from edgekit.export.float_rows import FloatRows
from edgekit.export.quantization.grid import GroupedTensor, as_floats
from edgekit.export.recipe import Fitting, Recipe

__all__ = ["CheckpointWeights"]

FloatArray = npt.NDArray[np.float32]
Matrix = GroupedTensor | FloatArray

_FLOATING = "floating point"
# Weights read and quantized at a time by one thread: 2 MiB of float32, which stay in its cache.
_SPAN = 1 << 19
# Spans of a table in floating point that are read ahead of the writer.
_AHEAD = 3


class CheckpointWeights:
    """Reads, quantizes and forgets. Use it as a context manager: leaving it ends its threads.

    Attributes:
        order: See `Weights.order`; one that is asked for is followed by making the next of these ready. Any other
            order is as right, and slower.
        used: How many matrices each treatment was applied to, for the manifest: `{"lsq 4-bit, group 32": 210}`.

    Args:
        checkpoint: Where from.
        recipe: What to do with each matrix.
        order: See above.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, order: Sequence[Linear] = ()) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._tensors = checkpoint.tensors
        self.order = tuple(order)
        self._following = {linear.weight: after for linear, after in pairwise(order)}
        self._next: tuple[Linear, Future[tuple[Matrix, str]]] | None = None
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="quantize")
        self._buffers = Buffers()
        self._lock = Lock()
        self._read = 0
        self._total = max(1, sum(linear.out_features * linear.in_features for linear in order))
        self.used: Counter[str] = Counter()

    def __enter__(self) -> CheckpointWeights:  # noqa: PYI034  `Self` needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The rows under way end first: they read from the checkpoint, which is about to be closed.
        self._pool.shutdown(cancel_futures=True)
        self._ahead.shutdown(cancel_futures=True)

    def fraction_read(self) -> float:
        """How much of the matrices in `order` was read, from 0 to 1."""
        return self._read / self._total

    def vector(self, name: str) -> FloatArray:
        """A norm or a bias, float32 `[n]`."""
        values = as_floats(self._checkpoint.read(name))
        if not np.isfinite(values).all():
            raise ExportError(f"tensor `{name}` has a value that is no finite number", hint="fetch it again")
        return values

    def matrix(self, linear: Linear, fitting: Fitting | None = None) -> Matrix:
        """The weight of a linear layer or of the embedding, `[out, in]`, as the recipe wants it.

        Args:
            linear: Whose.
            fitting: How to put it on a grid; None leaves that to the recipe.
        """
        ready, self._next = self._next, None
        if ready is not None and ready[0] == linear:
            tensor, treatment = ready[1].result()
        else:
            if ready is not None:
                # The order was not the writer's: nothing more is made that nobody asks for.
                ready[1].cancel()
                self._following = {}
            tensor, treatment = self._make(linear, fitting)
        following = self._following.get(linear.weight)
        # Two matrices in floating point at a time would be too many.
        if following is not None and not self._recipe.leaves_floats(following):
            self._next = (following, self._ahead.submit(self._make, following))
        self.used[treatment] += 1
        return tensor

    def table(self, linear: Linear, fitting: Fitting | None = None) -> GroupedTensor | FloatRows:
        """As `matrix`, but what stays in floating point comes row by row, and is never in memory as a whole."""
        if not self._recipe.leaves_floats(linear):
            tensor = self.matrix(linear, fitting)
            assert isinstance(tensor, GroupedTensor)  # noqa: S101  only what is left in floating point is no tensor
            return tensor
        self.used[_FLOATING] += 1
        return FloatRows((linear.out_features, linear.in_features), lambda: self._float_parts(linear))

    def _float_parts(self, linear: Linear) -> Iterator[FloatArray]:
        """Rows in order, some of them read ahead."""
        reading: deque[Future[FloatArray]] = deque()
        for start, stop in self._spans(linear.out_features, linear.in_features):
            reading.append(self._pool.submit(lambda a, b: as_floats(self._stored(linear, a, b)), start, stop))
            if len(reading) > _AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()

    def _stored(self, linear: Linear, start: int, stop: int) -> Matrix:
        """Some rows as the checkpoint has them."""
        first = linear.first_row
        part = self._checkpoint.read(linear.stored.weight, first + start, first + stop)
        with self._lock:
            self._read += (stop - start) * linear.in_features
        return part

    def _make(self, linear: Linear, fitting: Fitting | None = None) -> tuple[Matrix, str]:
        rows, width = linear.out_features, linear.in_features
        stored = partial(self._stored, linear)
        if self._recipe.leaves_floats(linear):
            floats = np.empty((rows, width), np.float32)

            def copy(start: int, stop: int) -> None:
                floats[start:stop] = as_floats(stored(start, stop))

            self._each_span(rows, width, copy)
            return floats, _FLOATING
        source: Callable[[int, int], Matrix] = stored
        first = stored(0, 1)
        if self._recipe.keeps(linear) and isinstance(first, GroupedTensor):
            whole = self._collect(rows, width, first.bits, first.group_size, stored)
            kept = self._recipe.keep(linear, whole)
            if kept is not None:
                return kept
            source = whole.rows
        chosen = fitting or self._recipe.fitting(linear, self._tensors[linear.stored.weight].encoding)
        grid = chosen.grid

        def fitted(start: int, stop: int) -> GroupedTensor:
            return chosen.fit(as_floats(source(start, stop)), grid)

        return self._collect(rows, width, grid.bits, grid.group_size, fitted), chosen.summary

    def _collect(
        self, rows: int, width: int, bits: int, group_size: int, part: Callable[[int, int], Matrix]
    ) -> GroupedTensor:
        """Put together a tensor from parts of its rows."""
        codes = self._buffers.take(rows * width).reshape(rows, width)
        whole = GroupedTensor.empty(codes, bits, group_size)

        def put(start: int, stop: int) -> None:
            made = part(start, stop)
            assert isinstance(made, GroupedTensor)  # noqa: S101  a tensor is stored in one way from end to end
            whole.put(start, made)

        self._each_span(rows, width, put)
        return whole

    def _each_span(self, rows: int, width: int, work: Callable[[int, int], None]) -> None:
        # Consumed, so that an error in a thread is raised here; it cancels the rest.
        for _ in self._pool.map(lambda span: work(*span), self._spans(rows, width)):
            pass

    @staticmethod
    def _spans(rows: int, width: int) -> Iterator[tuple[int, int]]:
        step = max(1, _SPAN // max(1, width))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))
