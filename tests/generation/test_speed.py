from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.errors import ConfigError, RunnerError
from edgekit.generation.engine import engine as engine_module
from edgekit.generation.model import TextModel
from edgekit.generation.speed import Round, Workload, load_for_speed, median, prompt_of, rounds
from edgekit.jetson.energy import EnergyMeter
from tests.generation.bundles import tiny_bundle
from tests.generation.tiny import EchoRunner, echo_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    bundle = open_bundle(tiny_bundle(tmp_path_factory.mktemp("tiny"), "onnx"))
    loaded = load_for_speed(bundle, parallel=4)
    assert loaded.load_s > 0
    yield loaded.model
    loaded.model.close()


def echo(before_step: Callable[[int], object] | None = None) -> tuple[TextModel, EchoRunner]:
    """A model that ends its answer after one token, if it is not kept from it."""
    model = echo_model("a", context_length=256, max_chunk=64, sequence_slots=4, before_step=before_step)
    assert isinstance(model.runner, EchoRunner)
    return model, model.runner


def test_a_round_has_every_figure_of_a_real_runner(model: TextModel) -> None:
    found = list(rounds(model, Workload(64, 16, streams=4), 2))
    assert len(found) == 2
    for one in found:
        for value in (one.prompt_tokens_per_s, one.decode_tokens_per_s, one.first_token_s, one.streams_tokens_per_s):
            assert value is not None
            assert math.isfinite(value)
            assert value > 0
        assert one.joules_per_token is one.prompt_joules_per_token is None


def test_a_round_computes_exactly_the_tokens_that_it_says() -> None:
    text_model, runner = echo()
    list(rounds(text_model, Workload(100, 20), 1))
    # The round that warms up, and one; the last token of an answer is not computed. The model's end token ends none.
    assert runner.tokens == 2 * (100 + 19)
    before = runner.tokens
    list(rounds(text_model, Workload(100, 20, streams=3), 1))
    assert runner.tokens - before == 2 * 4 * (100 + 19)
    assert runner.widest == 3


def test_nothing_is_drafted_or_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Spy(engine_module.Engine):
        def __init__(self, *args: object, **options: object) -> None:
            made.append(options)
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("edgekit.generation.speed.Engine", Spy)
    list(rounds(echo()[0], Workload(32, 4), 1))
    assert [(one["speculation"], one.get("prefix")) for one in made] == [(False, None)]


def test_the_prompt_is_text_of_exactly_so_many_tokens(model: TextModel) -> None:
    for count in (1, 2, 100, 700):
        tokens = prompt_of(model.tokenizer, count)
        assert len(tokens) == count
        assert max(tokens) < model.runner.limits.vocab_size
    assert model.tokenizer.decode(prompt_of(model.tokenizer, 100)).startswith("1. The river rises")


def test_a_workload_beyond_the_context_is_refused(model: TextModel) -> None:
    with pytest.raises(ConfigError, match="200 \\+ 100 tokens do not fit the context of 256"):
        list(rounds(model, Workload(200, 100), 1))


def test_a_step_that_fails_is_an_error_and_not_a_figure() -> None:
    def fail(step: int) -> None:
        if step > 4:
            raise RunnerError("the GPU is gone")

    with pytest.raises(RunnerError, match="the GPU is gone"):
        list(rounds(echo(fail)[0], Workload(32, 8), 3))


def test_the_rounds_before_an_interruption_were_yielded() -> None:
    def interrupt(step: int) -> None:
        if step == 20:
            raise KeyboardInterrupt

    # A step for the prompt and seven for the other tokens: the third round, the second that counts, is interrupted.
    measured = rounds(echo(interrupt)[0], Workload(32, 8), 5)
    next(measured)
    with pytest.raises(KeyboardInterrupt):
        next(measured)


def test_a_meter_gives_joules_per_token() -> None:
    now = [0.0]
    meter = EnergyMeter(lambda: 10.0, clock=lambda: now[0])

    def half_a_second(_step: int) -> None:
        now[0] += 0.5
        meter.sample()

    meter.sample()
    (one,) = rounds(echo(half_a_second)[0], Workload(40, 11), 1, meter=meter)
    # Each step takes half a second at 10 W. A decode step yields a token; one step has the whole prompt.
    assert one.joules_per_token == pytest.approx(5.0)
    assert one.prompt_joules_per_token == pytest.approx(5.0 / 40)


def test_medians_lack_what_a_round_lacks() -> None:
    some = [Round(1.0, 10.0, 0.1, 5.0), Round(3.0, 20.0, 0.3), Round(2.0, 60.0, 0.2, 6.0)]
    assert median(some) == Round(2.0, 20.0, 0.2, None)


def test_a_runner_that_cannot_run_the_bundle_is_refused(tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path, "onnx"))
    with pytest.raises(ConfigError, match="no runner `mlx`"):
        load_for_speed(bundle, runner="mlx")
