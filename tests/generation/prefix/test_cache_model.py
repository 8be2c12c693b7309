"""The cache against a model of it: the set of saved prefixes of each tenant."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgekit.generation.prefix.cache import PrefixCache
from edgekit.generation.prefix.disk import DiskStore
from tests.generation.prefix.rows import ROW_BYTES, RowRunner, rows

BLOCK = 2
PAGE = 4096
# Few tokens and short prompts, so that prefixes are shared.
PROMPTS = st.lists(st.integers(0, 2), max_size=13)
TENANTS = st.sampled_from(["", "a"])


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[int(where * len(content))] ^= 1
        path.write_bytes(content)


def truncate(path: Path, where: float) -> None:
    os.truncate(path, int(where * path.stat().st_size))


def extend(path: Path, where: float) -> None:
    path.write_bytes(path.read_bytes() + bytes(1 + int(where * 100)))


def remove(path: Path, _: float) -> None:
    path.unlink()


def swap(path: Path, where: float) -> None:
    others = sorted(path.parent.glob("*.kv"))
    other = others[int(where * len(others))]
    if other != path:
        path.rename(path.with_name("x"))
        other.rename(path)
        path.with_name("x").rename(other)


class CacheMachine(RuleBasedStateMachine):
    """Restored blocks are always right, and no limit is exceeded; with enough space, nothing is evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.saved: set[tuple[str, tuple[int, ...]]] = set()
        self.cache: PrefixCache | None = None

    @initialize(memory=st.integers(0, 6), disk=st.none() | st.integers(0, 8), roomy=st.booleans())
    def open(self, memory: int, disk: int | None, roomy: bool) -> None:
        self.memory_blocks = memory
        self.disk_blocks = 1000 if roomy else disk
        # On a large disk blocks stay until they are damaged.
        self.complete = roomy
        self.start()

    def start(self) -> None:
        store = None
        if self.disk_blocks is not None:
            store = DiskStore(Path(self.folder.name), max_bytes=self.disk_blocks * PAGE, fingerprint="model")
            assert store.active
        self.store = store
        self.cache = PrefixCache(
            store,
            memory_bytes=self.memory_blocks * BLOCK * ROW_BYTES,
            block_tokens=BLOCK,
            kv_bytes_per_token=ROW_BYTES,
            fingerprint="model",
        )

    def expected(self, tokens: list[int], tenant: str) -> int:
        length = 0
        while length + BLOCK < len(tokens) and (tenant, tuple(tokens[: length + BLOCK])) in self.saved:
            length += BLOCK
        return length

    @rule(tokens=PROMPTS, tenant=TENANTS, upto=st.integers(0, 14))
    def save(self, tokens: list[int], tenant: str, upto: int) -> None:
        assert self.cache
        self.cache.save(RowRunner().fill(tokens), 0, tokens, tenant, upto=upto)
        for end in range(BLOCK, min(upto, len(tokens)) + 1, BLOCK):
            self.saved.add((tenant, tuple(tokens[:end])))
        if self.store:
            assert self.store.flush(10)

    @rule(tokens=PROMPTS, tenant=TENANTS, have=st.integers(0, 3))
    def restore(self, tokens: list[int], tenant: str, have: int) -> None:
        assert self.cache
        have = min(have, len(tokens) // BLOCK) * BLOCK
        looked_up = self.cache.lookup(tokens, tenant)
        runner = RowRunner().fill(tokens[:have])
        length = self.cache.restore(runner, 0, tokens, tenant)
        assert runner.kv == rows(tokens[:length])
        best = self.expected(tokens, tenant)
        assert length == have or have <= length <= best
        if self.complete:
            assert looked_up == best
            assert length == max(have, best)
        elif not have and length < looked_up:
            # Only damage makes it shorter than the lookup said, and the next lookup takes it into account.
            assert self.cache.lookup(tokens, tenant) == length
        if self.store:
            assert self.store.flush(10)

    @rule()
    def restart(self) -> None:
        assert self.cache
        self.cache.close()
        self.start()
        if self.store is None:
            self.saved.clear()

    @rule(
        damage=st.sampled_from([flip, truncate, extend, remove, swap]),
        which=st.floats(0, 1, exclude_max=True),
        where=st.floats(0, 1, exclude_max=True),
    )
    def damage(self, damage: Callable[[Path, float], None], which: float, where: float) -> None:
        found = sorted((Path(self.folder.name) / "prefix").glob("*.kv"))
        if found:
            self.complete = False
            damage(found[int(which * len(found))], where)

    @invariant()
    def limits_are_kept(self) -> None:
        if self.cache is None:
            return
        stats = self.cache.stats()
        assert stats.memory_bytes <= self.memory_blocks * BLOCK * ROW_BYTES
        if self.disk_blocks is not None:
            found = list((Path(self.folder.name) / "prefix").glob("*.kv"))
            assert sum(-(-path.stat().st_size // PAGE) * PAGE for path in found) <= self.disk_blocks * PAGE

    def teardown(self) -> None:
        if self.cache:
            self.cache.close()
        self.folder.cleanup()


TestCacheModel = CacheMachine.TestCase
TestCacheModel.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
