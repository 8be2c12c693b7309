"""Rate limits, by a clock of the test's."""

from __future__ import annotations

import pytest

from edgekit.daemon.access.limits import ATTEMPTS_PER_MINUTE, AttemptLimit, KeyLimits, estimate_tokens
from edgekit.errors import RequestError, UnavailableError
from edgekit.generation.types import ChatRequest, Infill, Message
from tests.daemon.access.test_key_file import make


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wait_s(limits: KeyLimits, key: object, tokens: float = 0) -> float:
    with pytest.raises(UnavailableError) as caught:
        limits.admit(key, tokens)  # type: ignore[arg-type]
    assert caught.value.code == "rate_limited"
    return caught.value.retry_after_s


def test_a_minutes_requests_may_come_at_once_and_the_next_after_the_stated_time() -> None:
    clock = Clock()
    limits, (key, _) = KeyLimits(clock), make("ann", requests_per_minute=6)
    for _ in range(6):
        limits.admit(key, 0)
    wait = wait_s(limits, key)
    assert wait == pytest.approx(10)
    clock.now += wait - 0.01
    wait_s(limits, key)
    clock.now += 0.02
    limits.admit(key, 0)
    wait_s(limits, key)


def test_tokens_are_reserved_while_requests_run_and_corrected_at_their_end() -> None:
    clock = Clock()
    limits, (key, _) = KeyLimits(clock), make("ann", tokens_per_minute=600)
    first = limits.admit(key, 400)
    # A burst cannot pass before the first has ended.
    assert wait_s(limits, key, 400) == pytest.approx(20)
    first.settle(100)
    first.settle(100)  # only once
    second = limits.admit(key, 400)
    # More than reserved: the balance is negative, and the next has to wait longer.
    second.settle(800)
    assert wait_s(limits, key, 60) == pytest.approx(36)
    clock.now += 36.1
    limits.admit(key, 60)


def test_a_request_larger_than_a_minutes_tokens_is_admitted_with_a_full_minute() -> None:
    clock = Clock()
    limits, (key, _) = KeyLimits(clock), make("ann", tokens_per_minute=100)
    limits.admit(key, 10_000)
    assert wait_s(limits, key, 10_000) == pytest.approx(60)
    clock.now += 61
    limits.admit(key, 10_000)


def test_a_request_that_is_not_accepted_costs_nothing() -> None:
    limits, (key, _) = KeyLimits(Clock()), make("ann", requests_per_minute=1, tokens_per_minute=100)
    for _ in range(50):
        limits.admit(key, 100).cancel()


@pytest.mark.parametrize(("given", "tokens"), [({"requests_per_minute": 6}, 0.0), ({"tokens_per_minute": 600}, 100.0)])
def test_a_batch_is_admitted_after_the_time_that_it_was_told(given: dict[str, int], tokens: float) -> None:
    clock = Clock()
    limits, (key, _) = KeyLimits(clock), make("ann", **given)
    for _ in range(3):
        limits.admit_all(key, [tokens] * 5)
        for _ in range(5):
            with pytest.raises(UnavailableError) as caught:
                limits.admit_all(key, [tokens] * 5)
        clock.now += caught.value.retry_after_s + 0.01


def test_more_requests_than_a_minute_has_are_never_admitted_and_not_told_to_wait() -> None:
    limits, (key, _) = KeyLimits(Clock()), make("ann", requests_per_minute=3, tokens_per_minute=100)
    with pytest.raises(RequestError, match="4 prompts") as caught:
        limits.admit_all(key, [1.0] * 4)
    assert (caught.value.code, caught.value.hint) == ("too_many_prompts", "send at most 3 prompts at a time")
    # Tokens are limited to a minute's, as those of one request are.
    parts = limits.admit_all(key, [300.0, 100.0])
    assert [part.tokens for part in parts] == [75, 25]
    for part in parts:
        part.settle(10)
    limits.admit(key, 80)


def test_a_part_that_has_ended_gives_back_its_request_and_not_its_tokens() -> None:
    limits, (key, _) = KeyLimits(Clock()), make("ann", requests_per_minute=2, tokens_per_minute=100)
    first, second = limits.admit_all(key, [40.0, 40.0])
    first.settle(30)
    for part in (first, second, first, second):
        part.cancel()
    limits.admit_all(key, [35.0, 35.0])
    assert wait_s(limits, key, 1) > 0


def test_keys_do_not_share_limits_and_a_key_without_limits_has_none() -> None:
    limits = KeyLimits(Clock())
    ann, bob, free = (
        make(name, **given)[0]
        for name, given in (("a", {"requests_per_minute": 1}), ("b", {"requests_per_minute": 1}), ("c", {}))
    )
    limits.admit(ann, 0)
    limits.admit(bob, 0)
    wait_s(limits, ann)
    for _ in range(1000):
        limits.admit(free, 1e9)


def test_failed_attempts_are_limited_by_address_and_ipv6_network() -> None:
    clock = Clock()
    attempts = AttemptLimit(clock)
    for number in range(ATTEMPTS_PER_MINUTE):
        attempts.failed("192.0.2.1")
        attempts.failed(f"2001:db8::{number}")
    for address in ("192.0.2.1", "2001:db8::ffff"):
        with pytest.raises(UnavailableError) as caught:
            attempts.failed(address)
        assert (caught.value.code, 0 < caught.value.retry_after_s <= 3) == ("too_many_attempts", True)
    for address in ("192.0.2.2", "2001:db8:0:1::1", "::ffff:192.0.2.3", ""):
        attempts.failed(address)
    clock.now += 3.01
    attempts.failed("192.0.2.1")
    for number in range(10_000):
        attempts.failed(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(attempts._buckets) <= 4096


def test_the_estimate_counts_the_prompt_and_every_choice() -> None:
    chat = ChatRequest("r", (Message("user", "x" * 400),), max_tokens=50, n=2)
    assert estimate_tokens(chat) == 200
    assert estimate_tokens(ChatRequest("r", (Message("user", ""),))) == 256
    assert estimate_tokens(ChatRequest("r", prompt=(1, 2, 3), max_tokens=7)) == 10
    assert estimate_tokens(ChatRequest("r", prompt="x" * 8, max_tokens=7)) == 9
    later = ChatRequest("r", (Message("user", "x" * 8),), context=(1, 2, 3), max_tokens=7)
    assert estimate_tokens(later) == 12
    gap = ChatRequest("r", prompt="x" * 8, infill=Infill("y" * 4, (("a.py", "z" * 16),)), max_tokens=7)
    assert estimate_tokens(gap) == 14
