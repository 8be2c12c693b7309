"""The generation core on TensorRT's runner: its own tests of invariance, over the doubles.

The double executes each token on its own, in one shape (`exact`), so that outputs can be compared bit by bit: a wrong
mask, position, address or cache row changes them, and the numbers of a batch or a chunk do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.bundle import open_bundle
from edgekit.config import GenerationConfig
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.generation.engine.engine import Engine
from edgekit.generation.model import TextModel
from edgekit.generation.startup import open_model
from edgekit.generation.types import ChatRequest, Sampling
from edgekit.runners import RunnerChoice
from edgekit.runners.base import Runner
from edgekit.runners.tensorrt.runner import TensorRtRunner
from tests.generation import test_invariance
from tests.generation.bundles import tiny_bundle
from tests.generation.test_invariance import CAREFULLY, SLOTS, Arrival, Submitted, arrivals, texts
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.ort_version import native_runs
from tests.runners.tensorrt.engines import build, open_double

KEPT = settings(CAREFULLY, max_examples=8)


@pytest.fixture(
    scope="module", params=["portable", pytest.param("native", marks=native_runs), "portable in a small pool"]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    folder = tmp_path_factory.mktemp("model")
    bundle = tiny_bundle(folder, "onnx", layers=2)
    checkpoint = folder / "checkpoint"
    dialect, _, small = request.param.partition(" ")
    OnnxWriter(dialect, dtype="float32")(
        tiny_decoder(checkpoint), TensorWeights(tiny_tensors(checkpoint)), folder, lambda _: None
    )
    engines = build(folder / "model.onnx", segments=2, batch=SLOTS, exact=True)

    def open_engines(*_: object, accept: Callable[[Runner], None], **__: object) -> RunnerChoice:
        context = open_bundle(bundle).manifest.context_length
        share = (lambda _: int(2.3 * context)) if small else None
        opened = open_double(engines, context_length=context, sequence_slots=SLOTS, share=share).runner
        assert opened.limits.kv_positions == (int(2.3 * context) // 8 * 8 if small else SLOTS * context)
        accept(opened)
        return RunnerChoice(opened)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.generation.model.choose_runner", open_engines)
        # So that slots of this short context have different buckets.
        patch.setattr("edgekit.runners.buckets.FIRST_BUCKET", 32)
        model = open_model(open_bundle(bundle), GenerationConfig(threads=1, parallel=SLOTS))
        assert isinstance(model.runner, TensorRtRunner)
        yield model
        assert len(model.runner._decoding) > 0, "nothing was captured"
        model.close()


@given(crowd=arrivals(), tokens=st.sampled_from([None, 300, 500]), kept=st.booleans())
@KEPT
def test_output_does_not_depend_on_concurrent_requests(
    model: TextModel, crowd: list[Arrival], tokens: int | None, kept: bool
) -> None:
    _invariant("output_does_not_depend_on_concurrent_requests")(model, crowd, tokens, kept)


@given(content=texts(20), turns=st.lists(texts(5), min_size=1, max_size=3))
@KEPT
def test_a_continued_conversation_has_the_same_output_as_one_computed_anew(
    model: TextModel, content: str, turns: list[str]
) -> None:
    _invariant("a_continued_conversation_has_the_same_output_as_one_computed_anew")(model, content, turns)


def test_a_prefix_from_disk_is_as_good_as_one_computed(model: TextModel, tmp_path: Path) -> None:
    test_invariance.test_a_prefix_from_disk_is_as_good_as_one_computed(model, tmp_path)


def test_answers_that_outgrow_the_pool_are_preempted_and_say_the_same(model: TextModel) -> None:
    small = model.runner.limits.kv_positions < SLOTS * model.runner.limits.context_length
    sampling = Sampling(0.0, logit_bias=dict.fromkeys(model.eos_token_ids, -100.0))

    def ask(engine: Engine, number: int) -> Submitted:
        prompt = f"{number} the capital of France is " * 3
        return Submitted(engine, model, ChatRequest(str(number), prompt=prompt, max_tokens=120, sampling=sampling))

    def run(engine: Engine) -> None:
        while not engine.idle:
            engine.step()

    alone = []
    for number in range(SLOTS):
        engine = Engine(model)
        alone.append(ask(engine, number))
        run(engine)
        assert engine.stats.preempted == 0
    engine = Engine(model)
    together = [ask(engine, number) for number in range(SLOTS)]
    run(engine)
    assert (engine.stats.preempted > 0) == small
    assert [one.output for one in together] == [one.output for one in alone]


def _invariant(name: str) -> Any:
    """The body of one of the generation core's tests."""
    return getattr(test_invariance, f"test_{name}").hypothesis.inner_test


@pytest.mark.slow
class TestAtLength:
    """The same with as many examples as other runners have."""

    test_concurrent = staticmethod(test_invariance.test_output_does_not_depend_on_concurrent_requests)
    test_drafts = staticmethod(test_invariance.test_draft_tokens_with_a_grammar_change_nothing)
    test_continued = staticmethod(
        test_invariance.test_a_continued_conversation_has_the_same_output_as_one_computed_anew
    )
