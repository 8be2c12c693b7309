"""A main model and a draft model, both real: the same output, within the same memory, whatever fails."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.shapes import model_shapes
from edgekit.config import GenerationConfig
from edgekit.daemon.metrics import Metrics
from edgekit.errors import BundleError, ConfigError
from edgekit.generation import startup
from edgekit.generation.engine.engine import Engine
from edgekit.generation.engine.request_state import RequestState
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.memory_budget import LoadedModel, draft_kv_bytes, grammar_bytes, kv_budget
from edgekit.generation.model import TextModel, load_model
from edgekit.generation.speculative.step_cost import StepTimes
from edgekit.generation.startup import open_model, plan_memory, start_worker
from edgekit.generation.types import ChatRequest, Delta, Event, Failure, Finished, Message, ResponseFormat, Sampling
from edgekit.runners.base import Runner
from tests.conftest import edgekit
from tests.generation.bundles import seal, tiny_bundle
from tests.generation.engine.test_worker import Receiver
from tests.generation.faults import Faults

SLOTS = 3
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Bundles:
    """One checkpoint as the main model and a worse one; another checkpoint, another tokenizer, a smaller vocabulary."""

    model: Path
    worse: Path
    stranger: Path
    other_tokenizer: Path
    narrow: Path
    wide: Path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    def bundle(name: str, **options: object) -> Path:
        return tiny_bundle(tmp_path_factory.mktemp(name), "onnx", **{"bits": 8, **options})  # type: ignore[arg-type]

    model, narrow = bundle("model"), bundle("narrow", vocab=300)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        # A smaller vocabulary than the tokenizer's.
        shutil.copy(model / name, narrow / name)
    seal(narrow)
    return Bundles(
        model=model,
        worse=bundle("worse", bits=4),
        stranger=bundle("stranger", seed=7, layers=1),
        other_tokenizer=bundle("other", vocab=300),
        narrow=narrow,
        # A padded vocabulary: logits for more tokens than the tokenizer has.
        wide=bundle("wide", vocab=640, layers=1),
    )


@pytest.fixture(autouse=True)
def _always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens per step cost nothing: when drafting pays off is tested elsewhere."""
    monkeypatch.setattr(StepTimes, "verify_cost", lambda *_: 1.0)


def _config(draft: Path | None, **fields: object) -> GenerationConfig:
    return GenerationConfig(threads=1, parallel=SLOTS, draft_bundle=draft, **fields)  # type: ignore[arg-type]


def _open(bundles: Bundles, draft: Path | None, **fields: object) -> TextModel:
    return open_model(open_bundle(bundles.model), _config(draft, **fields))


def _worker(bundles: Bundles, config: GenerationConfig) -> EngineWorker:
    """As the daemon starts it."""
    bundle = open_bundle(bundles.model)
    model = open_model(bundle, config)
    return start_worker(model, bundle, config, plan_memory(model, bundle, config))


@pytest.fixture(params=["model", "worse", "stranger", "wide"])
def model(request: pytest.FixtureRequest, bundles: Bundles) -> Iterator[TextModel]:
    model = _open(bundles, getattr(bundles, request.param))
    yield model
    model.close()


@pytest.fixture
def paired(bundles: Bundles) -> Iterator[TextModel]:
    """The main model as its own draft model."""
    model = _open(bundles, bundles.model)
    yield model
    model.close()


class Submitted:
    """A submitted request and its events."""

    def __init__(
        self, engine: Engine, model: TextModel, content: str = "the capital of France", **fields: object
    ) -> None:
        fields = {"sampling": GREEDY, "max_tokens": 60, **fields}
        request = ChatRequest("r", (Message("user", content),), **fields)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.state = RequestState(model.prepare(request), self.events.append, submitted=time.monotonic())
        engine.add(self.state)

    @property
    def finish(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def output(self) -> tuple[str, str, int]:
        deltas = sorted((event for event in self.events if isinstance(event, Delta)), key=lambda event: event.index)
        return "".join(event.text for event in deltas), self.finish.reason, self.finish.usage.completion_tokens


def _run(engine: Engine) -> None:
    for _ in range(20_000):
        if engine.idle:
            return
        engine.step()
    raise AssertionError("the engine does not finish")


def _faults(runner: Runner | None) -> Faults:
    assert runner is not None
    return Faults(runner)


def _drafting(model: TextModel) -> list[int]:
    """Tokens in the draft model's slots."""
    assert model.draft is not None
    return [model.draft.length(slot) for slot in range(SLOTS)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling": Sampling(temperature=1.2, top_p=0.95, seed=3)},
        {"sampling": Sampling(temperature=0, repetition_penalty=1.3)},
        {"response_format": ResponseFormat("regex", "(ab|cd)*[0-9]{2}")},
        {"logprobs": 2},
        {"stop": ("e",)},
        {"n": 2, "sampling": Sampling(temperature=0.8, seed=5)},
    ],
    ids=str,
)
def test_an_answer_is_the_same_with_a_draft_model_and_without(model: TextModel, fields: dict[str, object]) -> None:
    plain, drafting = Engine(replace(model, draft=None)), Engine(model)
    content = "the capital of France"
    expected = Submitted(plain, model, content, **{**fields, "speculation": False})
    _run(plain)
    asked = Submitted(drafting, model, content, **fields)
    _run(drafting)
    assert asked.output == expected.output
    assert [one for event in asked.events if isinstance(event, Delta) for one in event.logprobs] == [
        one for event in expected.events if isinstance(event, Delta) for one in event.logprobs
    ]
    assert _drafting(model) == [0] * SLOTS
    assert drafting.stats.draft_kv_bytes == 0


def test_a_model_as_its_own_draft_model_is_accepted_and_takes_fewer_steps(paired: TextModel) -> None:
    engine = Engine(paired)
    asked = Submitted(engine, paired, max_tokens=72, sampling=Sampling(temperature=0, logit_bias={2: -100.0}))
    _run(engine)
    usage = asked.finish.usage
    assert usage.accepted_tokens > 40
    assert asked.finish.timings.steps < 25


def test_a_request_without_speculation_drafts_no_tokens(paired: TextModel) -> None:
    engine = Engine(paired)
    asked = Submitted(engine, paired, speculation=False)
    while not engine.idle:
        engine.step()
        assert _drafting(paired) == [0] * SLOTS
    assert (asked.finish.usage.accepted_tokens, asked.finish.usage.rejected_tokens) == (0, 0)


def test_an_unseeded_answer_is_drawn_from_the_same_distribution(bundles: Bundles) -> None:
    model = _open(bundles, bundles.worse)
    drafted = 0

    def drawn(engine: Engine, *, speculation: bool) -> Counter[str]:
        nonlocal drafted
        counts: Counter[str] = Counter()
        for _ in range(500):
            sampling = Sampling(temperature=1.0, top_k=2, logit_bias={2: -100.0})
            asked = Submitted(engine, model, sampling=sampling, max_tokens=3, speculation=speculation)
            _run(engine)
            counts[asked.output[0]] += 1
            drafted += asked.finish.usage.accepted_tokens + asked.finish.usage.rejected_tokens
        return counts

    plain = drawn(Engine(model), speculation=False)
    assert drafted == 0
    with_drafts = drawn(Engine(model), speculation=True)
    model.close()
    # The third token's, in most answers.
    assert drafted > 250
    # Two samples of 500 from one distribution over 8 texts: about 0.07 apart, and 0.2 once in many million runs.
    apart = sum(abs(plain[text] - with_drafts[text]) for text in plain.keys() | with_drafts.keys()) / 1000
    assert apart < 0.2


def test_a_cancelled_expired_or_preempted_request_frees_its_draft_slot(paired: TextModel) -> None:
    endless = Sampling(temperature=0, logit_bias={2: -100.0})
    limits, draft = paired.runner.limits, paired.draft
    assert draft is not None
    per_token = limits.kv_bytes_per_token + draft.limits.kv_bytes_per_token
    engine = Engine(paired, kv_budget_bytes=340 * per_token)
    asked = [Submitted(engine, paired, f"number {number}", sampling=endless, max_tokens=150) for number in range(SLOTS)]
    used = 0
    while not engine.stats.preempted:
        engine.step()
        used = max(used, sum(length > 0 for length in _drafting(paired)))
        assert sum(length > 0 for length in _drafting(paired)) <= engine.stats.running
    assert used == SLOTS
    # One is preempted, one is cancelled, one passes its deadline.
    assert sum(length > 0 for length in _drafting(paired)) == 2
    preempted = next(one for one in asked if all(sequence.state is not one.state for sequence in engine._running))
    cancelled, expired = (one for one in asked if one is not preempted)
    cancelled.state.cancel()
    object.__setattr__(expired.state.request, "deadline_s", 1.0)
    expired.state.submitted -= 3600
    engine.sweep()
    assert _drafting(paired) == [0] * SLOTS
    assert engine.stats.draft_kv_bytes == 0
    assert cancelled.finish.reason == "cancelled"
    assert isinstance(expired.events[-1], Failure)
    _run(engine)
    alone = Engine(replace(paired, draft=None))
    again = Submitted(alone, paired, preempted.state.request.messages[0].content, sampling=endless, max_tokens=150)
    _run(alone)
    assert preempted.output == again.output


def test_both_models_stay_within_the_budget(bundles: Bundles) -> None:
    model = _open(bundles, bundles.model)
    draft = model.draft
    assert draft is not None
    own, other = model.runner.limits.kv_bytes_per_token, draft.limits.kv_bytes_per_token
    budget = 200 * (own + other)
    engine = Engine(model, kv_budget_bytes=budget)
    sampling = Sampling(temperature=0, logit_bias={2: -100.0})
    asked = [Submitted(engine, model, f"list {number}", max_tokens=90, sampling=sampling) for number in range(5)]
    peak = 0
    while not engine.idle:
        engine.step()
        stats = engine.stats
        used = sum(model.runner.length(slot) for slot in range(SLOTS)) * own
        assert sum(_drafting(model)) * other <= stats.draft_kv_bytes
        assert used + stats.draft_kv_bytes <= stats.kv_bytes <= stats.kv_budget_bytes <= budget
        peak = max(peak, stats.draft_kv_bytes)
    assert [one.finish.reason for one in asked] == ["length"] * 5
    assert engine.stats.preempted > 0
    assert peak > 100 * other
    model.close()


def test_the_memory_plan_counts_the_draft_model(bundles: Bundles) -> None:
    model = _open(bundles, bundles.worse)
    assert model.draft is not None
    limits, draft = model.runner.limits, model.draft.limits
    model.close()
    config = _config(bundles.worse, kv_cache_mib=1, prefix_memory_mib=0)
    worker = _worker(bundles, config)
    tokens, budget = worker.max_tokens, worker.stats().kv_budget_bytes
    worker.stop()

    def both(tokens: int) -> int:
        return tokens * limits.kv_bytes_per_token + draft_kv_bytes(tokens, draft, config.draft_max)

    assert budget == both(tokens) <= 1 << 20 < both(tokens + 1)
    worker = _worker(bundles, replace(config, draft_bundle=None))
    assert worker.max_tokens > tokens
    worker.stop()


def test_the_memory_plan_leaves_memory_for_the_draft_models_activations(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "available_bytes", lambda: 80 << 20)
    budgets = []
    for draft in (None, bundles.worse):
        config, bundle = _config(draft, prefix_memory_mib=0), open_bundle(bundles.model)
        model = open_model(bundle, config)
        budgets.append(plan_memory(model, bundle, config).kv_bytes)
        both = [runner.limits for runner in (model.runner, model.draft) if runner is not None]
        expected = kv_budget(
            [LoadedModel(limits, model.runner.backend.runtime, model_shapes(bundles.model)) for limits in both],
            (80 << 20) - grammar_bytes(both[0].vocab_size),
        )
        assert budgets[-1] == expected
        model.close()


@pytest.mark.parametrize("speculation", [True, None, False])
def test_through_the_worker_draft_tokens_are_counted_and_change_nothing(
    bundles: Bundles, speculation: bool | None
) -> None:
    texts = []
    for draft in (None, bundles.model):
        config = _config(draft)
        worker = _worker(bundles, config)
        metrics = Metrics()
        for sampling in (GREEDY, Sampling(temperature=1.0, seed=4)):
            receiver = Receiver()
            request = ChatRequest(
                "r",
                (Message("user", "the sum of even numbers"),),
                sampling=replace(sampling, logit_bias={2: -100.0}),
                max_tokens=40,
                speculation=speculation,
            )
            worker.submit(request, metrics.track("http", receiver))
            last = receiver.wait()
            assert isinstance(last, Finished)
            texts.append(receiver.text)
        worker.stop()
        text = metrics.render()[0].decode()
        counted = {
            name: float(text.split(f'edgekit_{name}_tokens_total{{transport="http"}} ')[1].split("\n")[0])
            for name in ("drafted", "accepted", "rejected")
        }
        assert counted["drafted"] == counted["accepted"] + counted["rejected"]
        if draft is not None:
            assert (counted["accepted"] > 20) == (speculation is not False)
    assert texts[:2] == texts[2:]


def test_a_draft_model_that_breaks_fails_no_request_and_is_disabled(
    paired: TextModel, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Engine(replace(paired, draft=None))
    expected = Submitted(plain, paired, speculation=False)
    _run(plain)
    engine = Engine(paired)
    _faults(paired.draft).breaks("run")
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            asked = Submitted(engine, paired)
            _run(engine)
            assert asked.output == expected.output
    assert caplog.text.count("is not used for the rest of this answer") == 3
    assert caplog.text.count("is not used any more") == 1
    assert _drafting(paired) == [0] * SLOTS


def test_a_draft_slot_that_cannot_be_emptied_is_not_used_before_it_can(
    paired: TextModel, caplog: pytest.LogCaptureFixture
) -> None:
    faults, engine = _faults(paired.draft), Engine(paired)
    first = Submitted(engine, paired)
    while not any(_drafting(paired)):
        engine.step()
    with caplog.at_level(logging.CRITICAL):
        faults.breaks("truncate")
        _run(engine)
    assert first.finish.reason in {"stop", "length"}
    assert sum(_drafting(paired)) > 0
    faults.breaks()
    again = Submitted(engine, paired)
    _run(engine)
    assert again.output == first.output
    assert _drafting(paired) == [0] * SLOTS


def test_after_a_fault_of_the_model_the_draft_models_slots_are_free_too(bundles: Bundles) -> None:
    model = _open(bundles, bundles.model)
    faults, worker = _faults(model.runner), EngineWorker(model)
    sampling = Sampling(temperature=0, logit_bias={2: -100.0})
    request = ChatRequest("r", (Message("user", "the sum"),), max_tokens=200, sampling=sampling, cache_prompt=False)
    receiver = Receiver()
    drafting: list[bool] = []

    def receive(event: Event) -> None:
        # On the worker's thread. At its end the answer's slot cannot be emptied.
        if worker.stats().draft_kv_bytes and not drafting:
            drafting.append(True)
            faults.breaks("truncate")
        receiver(event)

    worker.submit(request, receive)
    assert isinstance(receiver.wait(), Failure)
    assert drafting
    worker.stop(drain_s=10)
    # After three faults in a row the worker has failed.
    assert worker.failed
    assert worker.stats().draft_kv_bytes == 0


def test_a_draft_model_of_another_tokenizer_is_refused_and_the_first_difference_named(bundles: Bundles) -> None:
    with pytest.raises(
        ConfigError, match=r"another tokenizer than tiny: token 300 is `.+` in one and missing"
    ) as caught:
        _open(bundles, bundles.other_tokenizer)
    assert caught.value.hint is not None
    assert "same tokenizer" in caught.value.hint


def test_a_draft_model_with_a_smaller_vocabulary_is_rejected(bundles: Bundles) -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 300 tokens; the tokenizer has 317"):
        _open(bundles, bundles.narrow)


def test_a_missing_draft_bundle_is_reported_before_the_model_is_loaded(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(BundleError, match="there is no bundle"):
        _open(bundles, tmp_path / "none")


def test_a_draft_model_with_a_shorter_context_drafts_up_to_its_end(bundles: Bundles, tmp_path: Path) -> None:
    short = tiny_bundle(tmp_path, "onnx", bits=8, max_position=64)
    model = _open(bundles, short)
    assert model.draft is not None
    assert model.draft.limits.context_length <= 64 < model.runner.limits.context_length
    engine = Engine(model)
    asked = Submitted(engine, model, max_tokens=100, sampling=Sampling(temperature=0, logit_bias={2: -100.0}))
    plain = Engine(replace(model, draft=None))
    expected = Submitted(plain, model, max_tokens=100, sampling=Sampling(temperature=0, logit_bias={2: -100.0}))
    for running in (engine, plain):
        _run(running)
    assert asked.output == expected.output
    assert asked.finish.usage.accepted_tokens > 0
    model.close()


def test_the_command_line_takes_a_draft_bundle_and_reports_what_is_wrong_with_it(bundles: Bundles) -> None:
    done = edgekit(
        "serve",
        bundles.model,
        "--draft-bundle",
        bundles.other_tokenizer,
        "--draft-max",
        "4",
        "--port",
        "0",
        check=False,
    )
    assert done.returncode == 2
    assert "another tokenizer" in done.stderr
    done = edgekit("serve", bundles.model, "--model-draft", bundles.model, "--draft-max", "65", check=False)
    assert done.returncode == 2
    assert "`generation.draft_max` must be between 1 and 64" in done.stderr


def test_on_mlx_too_the_answer_is_the_same(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    mx.set_default_device(mx.cpu)
    for name in ("model", "draft"):
        (tmp_path / name).mkdir()
    bundle, draft = tiny_bundle(tmp_path / "model", "mlx"), tiny_bundle(tmp_path / "draft", "mlx", bits=8)
    model = open_model(open_bundle(bundle), _config(draft))
    alone = load_model(bundle, parallel=SLOTS)
    engine, plain = Engine(model), Engine(alone)
    asked, expected = Submitted(engine, model), Submitted(plain, alone, speculation=False)
    for running in (engine, plain):
        _run(running)
    assert asked.output == expected.output
    assert asked.finish.usage.accepted_tokens > 0
    assert _drafting(model) == [0] * SLOTS
    model.close()
    alone.close()
