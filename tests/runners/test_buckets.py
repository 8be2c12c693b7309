from __future__ import annotations

import pytest

from edgekit.runners.base import Limits
from edgekit.runners.buckets import KvPool


@pytest.mark.parametrize(
    "pool", [KvPool(3000, 1500), KvPool(512, 200), KvPool(4096, 4096), KvPool(4096, 1024, bucketed=False)]
)
def test_what_fits_takes_no_more_and_one_more_token_does(pool: KvPool) -> None:
    for positions in (0, 1, 199, 200, 255, 256, 511, 512, 1023, 1024, 1499, 1500, 3000, 4096):
        most = pool.fitting(positions)
        assert pool.taken(most) <= positions
        assert most == pool.capacity or pool.taken(most + 1) > positions


def test_slots_without_a_pool_take_what_they_hold() -> None:
    limits = Limits(100, 3, 10, 50, 8)
    assert (limits.kv_positions, limits.kv_allocated) == (300, False)
    assert limits.positions_of(7) == limits.tokens_in(7) == 7
    shared = Limits(1000, 3, 10, 50, 8, kv_pool=KvPool(1024, 1000, allocated=True))
    assert (shared.kv_positions, shared.kv_allocated) == (1024, True)
    assert (shared.positions_of(257), shared.tokens_in(600)) == (512, 512)
