"""The kernels on Arm (emulated), and with the compiler's sanitizers: the same checks through the same runner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.runners.cpu.library import Kernels
from tests.runners.cpu.models import random_model
from tests.runners.cpu.parity import SHAPES, check
from tests.runners.cpu.remote import QEMU, Remote, compiled, kernels_of
from tests.runners.cpu.schedules import MODELS, SCHEDULES, SLOTS, Slots, follow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ENVIRONMENTS = {
    "arm": ("aarch64-linux-gnu-gcc", QEMU),
    # Memory accesses out of bounds; then data races.
    "addresses": ("cc -g -fsanitize=address,undefined -fno-sanitize-recover=undefined", ()),
    "races": ("cc -g -fsanitize=thread", ()),
}


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernels]:
    compiler, emulator = ENVIRONMENTS[request.param]
    for needed in (compiler.split()[0], *emulator[:1]):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    program, library = compiled(compiler, tmp_path_factory.mktemp(request.param))
    remote = Remote([*emulator, program, library])
    found = kernels_of(remote)
    assert found.variants[-1] == "plain"
    assert request.param != "arm" or found.variants == ("dotprod", "plain")
    yield found
    assert remote.close() == ""


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_computes_what_numpy_computes(shape: str, elsewhere: Kernels) -> None:
    for variant in elsewhere.variants:
        check(random_model(**SHAPES[shape]), replace(elsewhere, variant=variant), threads=2)


@pytest.mark.parametrize("window", [-1, 300])
def test_attention_over_several_spans_of_positions(window: int, elsewhere: Kernels) -> None:
    model = random_model(positions=700, window=window, kv_heads=1)
    for variant in elsewhere.variants:
        check(model, replace(elsewhere, variant=variant), (254, 1, 1, 1, 255, 1, 1, 80, 1, 5), threads=2)


@pytest.mark.parametrize("name", MODELS)
@given(schedule=SCHEDULES, threads=st.integers(1, 4), which=st.integers(0, 9))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_schedule_gives_the_bits_of_one_long_chunk(
    name: str, elsewhere: Kernels, schedule: list[tuple[object, ...]], threads: int, which: int
) -> None:
    variant = elsewhere.variants[which % len(elsewhere.variants)]
    slots = Slots(name, replace(elsewhere, variant=variant), threads)
    follow(slots, schedule)
    slots.runner.close()


def test_token_by_token_gives_the_bits_of_one_long_chunk(elsewhere: Kernels) -> None:
    for name in MODELS:
        slots = Slots(name, elsewhere, 2)
        for slot in range(SLOTS):
            slots.restart(slot, slot)
        slots.run([(1, 500, "none"), (0, 250, "none"), (2, 16, "none")])
        for _ in range(10):
            slots.run([(slot, 1, "last") for slot in range(SLOTS)])
        slots.check_cache()
        slots.runner.close()
