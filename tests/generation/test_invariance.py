"""Batching, prefix caching, preemption and speculative decoding never change the output, only its timing.

Real runners on tiny bundles, because this depends on the kernels' numbers, bit by bit. Each greedy or seeded request is
compared with the same request run alone, on an engine without prefix reuse and drafts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle.bundle import open_bundle
from edgekit.config import GenerationConfig
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.memory_budget import draft_kv_bytes
from edgekit.generation.model import TextModel
from edgekit.generation.prefix import DiskStore, PrefixCache
from edgekit.generation.speculative.draft_model import DRAFT_MAX
from edgekit.generation.speculative.step_cost import StepTimes
from edgekit.generation.startup import open_model
from edgekit.generation.types import (
    ChatRequest,
    Delta,
    Event,
    Finished,
    FinishReason,
    Message,
    ResponseFormat,
    Sampling,
    TokenLogprob,
)
from edgekit.runners.cpu.runner import CpuRunner
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from tests.generation.bundles import tiny_bundle

SLOTS = 4
CONTEXT = 256
WORDS = ("the", "capital", "of", "France", "is", "list", "even", "numbers", "sum", "Ω", "7")
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
    "required": ["ok", "tags"],
    "additionalProperties": False,
}
FORMATS = (ResponseFormat("json_schema", SCHEMA), ResponseFormat("regex", "(ab|cd)*[0-9]{2}"))

Output = tuple[str, FinishReason, int, tuple[TokenLogprob, ...]]


@pytest.fixture(
    scope="module",
    params=[
        "kernels in 8 bits",
        "kernels in 4 bits",
        "kernels in 8 bits, draft model in 4",
        "onnxruntime in 8 bits",
        "onnxruntime in float32",
        "onnxruntime in 8 bits, draft model in 4",
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    bits: Literal[4, 8, 32] = 32 if "32" in request.param else 8 if "8" in request.param else 4
    bundle = tiny_bundle(tmp_path_factory.mktemp("bundle"), "onnx", bits=bits)
    draft = tiny_bundle(tmp_path_factory.mktemp("draft"), "onnx", bits=4) if "draft" in request.param else None
    runner = CpuRunner if "kernels" in request.param else OnnxRuntimeRunner
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CPU_KERNELS", "" if runner is CpuRunner else "off")
        model = open_model(open_bundle(bundle), GenerationConfig(threads=1, parallel=SLOTS, draft_bundle=draft))
        assert type(model.runner) is runner
        assert draft is None or type(model.draft) is runner
        if draft is not None:
            # It is no smaller than the model, and would seldom pay off.
            patch.setattr(StepTimes, "verify_cost", lambda *_: 1.0)
        yield model
    model.close()


@dataclass(frozen=True)
class Arrival:
    """One of several concurrent requests.

    Attributes:
        after: Steps of the engine before it is submitted.
        cancel_after: Steps after which it is cancelled; None lets it finish.
    """

    request: ChatRequest
    after: int
    cancel_after: int | None


class Submitted:
    """A submitted request and its events."""

    def __init__(self, engine: Engine, model: TextModel, request: ChatRequest) -> None:
        self.request = request
        self.events: list[Event] = []
        self.state = RequestState(model.prepare(request), self.events.append, submitted=time.monotonic())
        engine.add(self.state)

    @property
    def output(self) -> Output:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        deltas = [event for event in self.events if isinstance(event, Delta)]
        logprobs = tuple(entry for delta in deltas for entry in delta.logprobs)
        return "".join(delta.text for delta in deltas), last.reason, last.usage.completion_tokens, logprobs


def texts(max_words: int) -> st.SearchStrategy[str]:
    """Texts that often share a prefix, and repeat themselves."""
    prefix = st.sampled_from(["", "the capital of France is " * 6, "list even numbers " * 3])
    rest = st.lists(st.sampled_from(WORDS), min_size=1, max_size=max_words).map(" ".join)
    return st.tuples(prefix, rest).map("".join)


def samplings() -> st.SearchStrategy[Sampling]:
    """Repeatable ones; some have a repetition penalty."""
    greedy = st.just(Sampling(temperature=0))
    careful = st.builds(Sampling, temperature=st.just(0.0), repetition_penalty=st.sampled_from([1.1, 1.5]))
    seeded = st.builds(
        Sampling,
        temperature=st.sampled_from([0.5, 1.0, 1.5]),
        top_p=st.sampled_from([0.5, 0.9, 1.0]),
        top_k=st.sampled_from([0, 5]),
        seed=st.integers(0, 1000),
    )
    return st.one_of(greedy, greedy, careful, seeded)


def asks() -> st.SearchStrategy[ChatRequest]:
    return st.builds(
        lambda content, **fields: ChatRequest("r", (Message("user", content),), **fields),
        content=texts(20),
        sampling=samplings(),
        max_tokens=st.integers(1, 40),
        speculation=st.sampled_from([True, True, False]),
        response_format=st.sampled_from([None, None, None, *FORMATS]),
        logprobs=st.sampled_from([None, None, None, 2]),
        client=st.sampled_from("ab"),
        cache_prompt=st.sampled_from([True, True, False]),
    )


def neighbours() -> st.SearchStrategy[ChatRequest]:
    """Noise: their output is not checked."""
    return asks().map(lambda request: replace(request, sampling=Sampling(temperature=1.0)))


def arrivals() -> st.SearchStrategy[list[Arrival]]:
    one = st.builds(
        Arrival,
        request=st.one_of(asks(), neighbours()),
        after=st.integers(0, 12),
        cancel_after=st.one_of(st.none(), st.none(), st.integers(0, 15)),
    )
    return st.lists(one, min_size=2, max_size=7)


@contextmanager
def fresh(model: TextModel, **options: Any) -> Iterator[Engine]:
    """An engine whose slots are empty at first, and again afterwards."""
    try:
        yield Engine(model, **options)
    finally:
        for slot in range(SLOTS):
            model.runner.truncate(slot, 0)
            assert model.draft is None or model.draft.length(slot) == 0


def kv_budget(model: TextModel, tokens: int | None) -> int | None:
    """Bytes of so many tokens of KV cache, plus the draft model's for them."""
    if tokens is None:
        return None
    budget = tokens * model.runner.limits.kv_bytes_per_token
    return budget + (0 if model.draft is None else draft_kv_bytes(tokens, model.draft.limits, DRAFT_MAX))


def finish(engine: Engine) -> None:
    """Run until all requests are done."""
    for _ in range(20_000):
        if engine.idle:
            return
        engine.step()
    raise AssertionError("the engine does not finish")


def alone(model: TextModel, request: ChatRequest) -> Output:
    """The output of the request run alone, without prefix reuse and drafts."""
    with fresh(model, speculation=False) as engine:
        asked = Submitted(engine, model, replace(request, speculation=False, cache_prompt=False))
        finish(engine)
    return asked.output


def concurrently(model: TextModel, engine: Engine, crowd: list[Arrival]) -> list[Submitted]:
    """Run all requests concurrently; the output of cancelled ones may be incomplete."""
    submitted: list[tuple[Submitted, int | None]] = []
    pending = sorted(crowd, key=lambda arrival: arrival.after)
    for step in range(20_000):
        while pending and pending[0].after <= step:
            arrival = pending.pop(0)
            cancel_at = None if arrival.cancel_after is None else step + arrival.cancel_after
            submitted.append((Submitted(engine, model, arrival.request), cancel_at))
        for asked, cancel_at in submitted:
            if cancel_at == step:
                asked.state.cancel()
        if not pending and engine.idle:
            return [asked for asked, _ in submitted]
        engine.step()
        stats = engine.stats
        assert stats.kv_bytes <= stats.kv_budget_bytes
    raise AssertionError("the engine does not finish")


def check(model: TextModel, asked: list[Submitted]) -> None:
    """Every repeatable request has the output that it has alone."""
    for one in asked:
        # This holds with a grammar too: which tokens are forced and which are sampled does not depend on the batch.
        if not one.request.sampling.repeatable or one.state.cancelled:
            continue
        assert one.output == alone(model, one.request)


CAREFULLY = settings(
    max_examples=60,
    deadline=None,
    # All examples share the model, and each leaves its slots empty.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(crowd=arrivals(), tokens=st.sampled_from([None, None, 300, 500]), kept=st.booleans())
@CAREFULLY
def test_output_does_not_depend_on_concurrent_requests(
    model: TextModel, crowd: list[Arrival], tokens: int | None, kept: bool
) -> None:
    per_token = model.runner.limits.kv_bytes_per_token
    prefix = None
    if kept:
        prefix = PrefixCache(None, memory_bytes=1 << 20, block_tokens=8, kv_bytes_per_token=per_token, fingerprint="x")
    # With a budget of little more than one context, sequences are preempted and resumed.
    with fresh(model, kv_budget_bytes=kv_budget(model, tokens), prefix=prefix) as engine:
        asked = concurrently(model, engine, crowd)
    check(model, asked)


@given(
    content=texts(12),
    sampling=samplings(),
    response_format=st.sampled_from(FORMATS),
    logprobs=st.sampled_from([None, None, 2]),
)
@settings(CAREFULLY, max_examples=150)
def test_draft_tokens_with_a_grammar_change_nothing(
    model: TextModel, content: str, sampling: Sampling, response_format: ResponseFormat, logprobs: int | None
) -> None:
    # Grammars force tokens, and a draft may reach the end of what they allow.
    request = ChatRequest(
        "r",
        (Message("user", content),),
        sampling=sampling,
        max_tokens=96,
        response_format=response_format,
        logprobs=logprobs,
        speculation=True,
    )
    with fresh(model) as engine:
        asked = Submitted(engine, model, request)
        finish(engine)
    check(model, [asked])


@given(content=texts(20), turns=st.lists(texts(5), min_size=1, max_size=3))
@CAREFULLY
def test_a_continued_conversation_has_the_same_output_as_one_computed_anew(
    model: TextModel, content: str, turns: list[str]
) -> None:
    messages = [Message("user", content)]
    asked = []
    with fresh(model) as engine:
        for turn in turns:
            request = ChatRequest("r", tuple(messages), sampling=Sampling(temperature=0), max_tokens=8)
            asked.append(Submitted(engine, model, request))
            finish(engine)
            messages += [Message("assistant", asked[-1].output[0]), Message("user", turn)]
    check(model, asked)


def test_a_prefix_from_disk_is_as_good_as_one_computed(model: TextModel, tmp_path: Path) -> None:
    per_token = model.runner.limits.kv_bytes_per_token
    content = "the capital of France is " * 10
    request = ChatRequest("r", (Message("user", content),), sampling=Sampling(temperature=0), max_tokens=24)
    cached = []
    for _ in range(3):
        store = DiskStore(tmp_path / "kept", max_bytes=1 << 24, fingerprint="x")
        prefix = PrefixCache(store, memory_bytes=0, block_tokens=8, kv_bytes_per_token=per_token, fingerprint="x")
        with fresh(model, prefix=prefix) as engine:
            asked = Submitted(engine, model, request)
            finish(engine)
        prefix.close()
        cached.append(asked.state.cached_tokens)
        assert asked.output == alone(model, request)
    assert cached[0] == 0
    assert max(cached) > 0, "nothing was restored from disk, so nothing was tested"


def test_tokens_are_drafted_and_some_are_accepted(model: TextModel) -> None:
    # Otherwise the tests above would not cover speculative decoding.
    accepted = 0
    with fresh(model) as engine:
        for number in range(6):
            content = "list even numbers " * 8 + str(number)
            request = ChatRequest("r", (Message("user", content),), sampling=Sampling(temperature=0), max_tokens=80)
            asked = Submitted(engine, model, request)
            finish(engine)
            accepted += asked.state.accepted_tokens
    assert accepted > 0
