"""A mask shows each new token the positions up to its own, and none that hold no key."""

from __future__ import annotations

import numpy as np

from edgekit.runners.masks import PADDING, Masks

COLUMNS = np.array([0, 1, 2, PADDING, PADDING, 3, 4])


def shown(masks: Masks, name: str, length: int = 3) -> list[list[int]]:
    mask = masks.step(length, 2, COLUMNS)[name]
    assert mask.shape == (1, 1, 2, 7)
    assert {float(value) for value in np.unique(mask)} <= {0.0, -65504.0}
    return [[int(column) for column in np.flatnonzero(row == 0)] for row in mask[0, 0]]


def test_padding_anywhere_is_hidden() -> None:
    assert shown(Masks(full=True, window=None, dtype=np.dtype(np.float16)), "attention_mask") == [
        [0, 1, 2, 5],
        [0, 1, 2, 5, 6],
    ]


def test_a_window_counts_positions_and_not_columns() -> None:
    masks = Masks(full=False, window=3, dtype=np.dtype(np.float32))
    assert shown(masks, "window_mask") == [[1, 2, 5], [2, 5, 6]]
    assert list(masks.step(3, 2, COLUMNS)) == ["window_mask"]
