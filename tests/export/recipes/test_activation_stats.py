"""Second moments, gathered some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.export.recipes import activation_stats


@pytest.mark.parametrize("rows", [5, 8, 24, 100])
def test_second_moments_are_the_same_however_many_rows_are_added_at_a_time(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_stats, "_ROWS", rows)
    texts = np.random.default_rng(1).standard_normal((3, 40, 24), dtype=np.float32)
    hessian = np.zeros((24, 24), np.float32)
    for x in texts:
        activation_stats._add_squares(hessian, x)
    activation_stats._mirror(hessian)
    every = texts.reshape(-1, 24).astype(np.float64)
    np.testing.assert_allclose(hessian, every.T @ every, rtol=1e-5, atol=1e-4)
