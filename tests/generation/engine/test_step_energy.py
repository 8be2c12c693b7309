"""What an answer is charged of the energy that the board uses."""

from __future__ import annotations

import pytest

from edgekit.generation.engine.engine import Engine
from edgekit.generation.model import TextModel
from edgekit.generation.usage import Timings
from tests.generation.engine.test_engine import ANSWER, Submitted, _run
from tests.generation.tiny import echo_model
from tests.jetson.test_energy import Board

STEP_S = 0.25


class Measured:
    """An engine on a board of 10 W whose steps take a quarter of a second."""

    def __init__(self, *, slots: int = 1) -> None:
        self.board = Board()
        self.board.meter.sample()
        self.steps = 0
        self.model: TextModel = echo_model(ANSWER, sequence_slots=slots, before_step=self._before_step)
        self.engine = Engine(self.model, speculation=False, meter=self.board.meter)

    def _before_step(self, _: int) -> None:
        self.steps += 1
        self.board.after(STEP_S, self.board.power)

    def ask(self, content: str = "Hello", **fields: object) -> Submitted:
        return Submitted(self.engine, self.model, content, **fields)


def _total(timings: Timings) -> float:
    assert timings.prefill_j is not None
    assert timings.decode_j is not None
    return timings.prefill_j + timings.decode_j


def test_an_answer_alone_is_charged_for_all_its_steps() -> None:
    measured = Measured()
    asked = measured.ask()
    _run(measured.engine)
    timings = asked.finish.timings
    assert _total(timings) == pytest.approx(10 * STEP_S * measured.steps)
    assert timings.decode_j == pytest.approx(10 * STEP_S * timings.steps)
    per_token = timings.as_energy(asked.finish.usage)["joules_per_token"]
    assert per_token == pytest.approx(10 * STEP_S)


def test_time_without_requests_is_charged_to_none() -> None:
    measured = Measured()
    measured.ask()
    _run(measured.engine)
    measured.board.after(2.0, 10.0)
    measured.engine.step()  # as the worker does while it is idle
    measured.board.after(2.0, 10.0)
    before = measured.steps
    second = measured.ask("Another")
    _run(measured.engine)
    assert _total(second.finish.timings) == pytest.approx(10 * STEP_S * (measured.steps - before))


def test_answers_at_once_share_each_step_and_nothing_is_lost_or_counted_twice() -> None:
    measured = Measured(slots=3)
    short, long = measured.ask("Hello", max_tokens=4), measured.ask("Hello, " * 20)
    _run(measured.engine)
    charged = [_total(asked.finish.timings) for asked in (short, long)]
    assert sum(charged) == pytest.approx(10 * STEP_S * measured.steps)
    assert 0 < charged[0] < charged[1]


def test_two_answers_that_decode_together_cost_half_as_much_each() -> None:
    def decoding(count: int) -> float:
        measured = Measured(slots=2)
        asked = [measured.ask(cache_prompt=False) for _ in range(count)]
        _run(measured.engine)
        costs = [one.finish.timings.as_energy(one.finish.usage)["joules_per_token"] for one in asked]
        return sum(costs) / count

    assert decoding(2) == pytest.approx(decoding(1) / 2, rel=0.15)  # one prefills while the other decodes


def test_an_answer_during_which_the_power_was_unknown_reports_no_energy() -> None:
    measured = Measured()
    asked = measured.ask()
    for _ in range(4):
        measured.engine.step()
    measured.board.power = None
    for _ in range(15):
        measured.engine.step()
    measured.board.power = 10.0
    _run(measured.engine)
    timings = asked.finish.timings
    assert (timings.prefill_j, timings.decode_j) == (None, None)
    assert timings.as_energy(asked.finish.usage) == {}
    again = measured.ask()
    _run(measured.engine)
    assert _total(again.finish.timings) > 0


def test_without_a_meter_no_energy_is_reported() -> None:
    model = echo_model(ANSWER)
    engine = Engine(model)
    asked = Submitted(engine, model)
    _run(engine)
    assert asked.finish.timings.as_energy(asked.finish.usage) == {}
