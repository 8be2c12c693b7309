"""Calibrated quantization of the output head, by its inputs: the text's hidden states after the final norm.

A head is as large as a dozen layers, so it is never fully in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.export.architectures.decoder import Linear
from edgekit.export.forward import LayerRunner, Tensors
from edgekit.export.quantization.awq import input_scales
from edgekit.export.quantization.gptq import factor_hessian, gptq
from edgekit.export.quantization.grid import Grid, GroupedTensor
from edgekit.export.quantization.weighted import weighted_lsq

__all__ = ["HeadFit", "awq_head", "gptq_head"]

FloatArray = npt.NDArray[np.float32]

# Rows of the head that the search for scales samples, and the number of evenly spaced spans they come in.
_ROWS, _SPANS = 256, 16


@dataclass(frozen=True, slots=True)
class HeadFit:
    """How to quantize a head.

    Attributes:
        fit: `(rows [n, hidden], grid) -> quantized`; may be called for any rows.
        scales: The final norm must be divided by these, float32 `[hidden]`.
    """

    fit: Callable[[FloatArray, Grid], GroupedTensor]
    scales: FloatArray


def gptq_head(
    runner: LayerRunner,
    tensors: Tensors,
    quantized: FloatArray,
    original: FloatArray,
    group_size: int,
    *,
    damping: float,
    correction: float,
) -> HeadFit:
    """Quantize the head by GPTQ, correcting the error of the layers.

    Args:
        runner: The model's.
        tensors: The model's weights.
        quantized: Hidden states after the last layer of the quantized model, float32 `[windows, tokens, hidden]`.
        original: The same of the float model.
        group_size: The grid's.
        damping: See `factor_hessian`.
        correction: The fraction of the layers' error to correct, 0 to 1.
    """
    width = quantized.shape[-1]
    hessian, change = np.zeros((width, width), np.float32), np.zeros((width, width), np.float32)
    for window, original_window in zip(quantized, original, strict=True):
        x = runner.final(tensors, window)
        hessian += x.T @ x
        change += (runner.final(tensors, original_window) - x).T @ x
    tokens = np.float32(quantized.shape[0] * quantized.shape[1])
    factored = factor_hessian(hessian / tokens, group_size, damping=damping)
    change *= np.float32(correction) / tokens
    return HeadFit(lambda weight, grid: gptq(weight, grid, factored, drift=weight @ change), np.ones(width, np.float32))


def awq_head(runner: LayerRunner, tensors: Tensors, quantized: FloatArray, head: Linear, grid: Grid) -> HeadFit:
    """Quantize the head by AWQ, with its scales folded into the final norm.

    Args:
        runner: The model's.
        tensors: The model's weights.
        quantized: Hidden states after the last layer of the quantized model, float32 `[windows, tokens, hidden]`.
        head: The head.
        grid: Its grid.
    """
    x = runner.final(tensors, quantized.reshape(-1, quantized.shape[-1]))
    magnitudes, squares = np.abs(x).mean(axis=0), np.square(x).mean(axis=0)
    starts = np.linspace(0, max(0, head.out_features - _ROWS // _SPANS), _SPANS).astype(int)
    rows = [tensors.matrix(head, start, min(start + _ROWS // _SPANS, head.out_features)) for start in starts]
    scales = input_scales([np.concatenate(rows)], magnitudes, squares, lambda w, h: weighted_lsq(w, grid, h))
    importance = squares / np.square(scales)
    return HeadFit(lambda weight, grid: weighted_lsq(weight * scales, grid, importance), scales)
