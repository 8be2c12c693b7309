from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.bundle.bundle import Bundle
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.planning.plan import plan_model
from edgekit.export.progress import silent
from edgekit.memory import GIB
from edgekit.runners.tensorrt import limits
from edgekit.runners.tensorrt.limits import engine_limits
from edgekit.runners.tensorrt.memory import MAX_BATCH
from edgekit.target import Target, load_target
from tests.variants import variant

CONTEXT = 4096


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    source = variant("qwen2", folder / "hf", max_position=CONTEXT)
    return export_bundle(str(source), load_target("orin"), folder / "bundle", ExportOptions(), silent)


def with_memory(target: Target, available: int) -> Target:
    """The target with so many bytes for a model."""
    # A few more, because GiB are floating-point numbers.
    return replace(target, memory_gib=(available + 16) / GIB + target.reserve_gib)


def test_an_engine_has_the_bundles_context_and_decodes_four_sequences_where_memory_admits_it(bundle: Bundle) -> None:
    chosen = engine_limits(bundle, load_target("orin"))
    assert (chosen.context_length, chosen.batch) == (CONTEXT, 4)
    assert engine_limits(bundle, load_target("orin"), parallel=2).batch == 2
    assert engine_limits(bundle, load_target("orin"), parallel=8).batch == 4


def test_without_a_known_machine_the_context_is_the_bundles_and_weights_are_held_once(bundle: Bundle) -> None:
    for target in (None, load_target("cpu"), load_target("rtx")):
        chosen = engine_limits(bundle, target)
        assert (chosen.context_length, chosen.batch) == (CONTEXT, 1)


def test_less_memory_takes_the_batch_first_and_then_shortens_the_context(bundle: Bundle) -> None:
    orin = load_target("orin")
    whole = plan_model(str(bundle.path), orin).plan.footprint
    enough = whole.total(CONTEXT)
    scarce = engine_limits(bundle, with_memory(orin, enough))
    assert (scarce.context_length, scarce.batch) == (CONTEXT, 1)
    for available in (whole.total(2048), whole.total(1024) + 1000):
        target = with_memory(orin, available)
        chosen = engine_limits(bundle, target)
        # As `edgekit plan` says.
        assert chosen.context_length == whole.longest_context(available, CONTEXT) < CONTEXT
        assert chosen.batch == 1
    assert engine_limits(bundle, with_memory(orin, 1)).context_length == limits._MIN_CONTEXT


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_the_plan_counts_a_second_copy_of_the_weights_exactly_where_the_build_makes_one(
    bundle: Bundle, parallel: int
) -> None:
    orin, weights = load_target("orin"), bundle.manifest.memory.weights
    twice = plan_model(str(bundle.path), orin, parallel=MAX_BATCH).plan.footprint
    assert twice.weights == 2 * weights
    for available in (4 * GIB, twice.total(CONTEXT), twice.total(CONTEXT) - 64, twice.total(1024)):
        target = with_memory(orin, available)
        planned, built = (
            plan_model(str(bundle.path), target, parallel=parallel),
            engine_limits(bundle, target, parallel=parallel),
        )
        assert planned.batch == built.batch
        assert (built.batch > 1) == (parallel > 1 and available >= twice.total(CONTEXT))
        assert planned.plan.footprint.weights == weights * (2 if built.batch > 1 else 1)
        # What it costs and how to do without; or that more would be built by default; or why not.
        text = " ".join(planned.engine_notes)
        if built.batch > 1:
            assert "at most all weights twice" in text
            assert "edgekit build --batch 1" in text
        elif parallel > 1:
            assert "memory does not hold the weights twice" in text
        else:
            assert ("plan with" in text) == (available >= twice.total(CONTEXT))


def test_what_is_configured_is_taken(bundle: Bundle) -> None:
    chosen = engine_limits(bundle, with_memory(load_target("orin"), 1), context_length=700, batch=3, chunk=16)
    assert (chosen.context_length, chosen.batch, chosen.chunk) == (700, 3, 16)
