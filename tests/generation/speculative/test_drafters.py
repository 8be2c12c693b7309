from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.speculative.draft_model import DraftModel, DraftRunner
from edgekit.generation.speculative.drafters import Drafter, Drafters, LookupOrModel, PromptLookup
from edgekit.generation.types import Sampling
from edgekit.runners.base import Limits
from tests.generation.speculating import HashRunner, answer, copying, hashed, smollm2_cost

VOCAB = 50
PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, VOCAB, 40)]
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "greedy with penalties": Sampling(temperature=0, frequency_penalty=0.3, repetition_penalty=1.2),
    "sampled": Sampling(temperature=0.8, top_p=0.9, presence_penalty=0.2, seed=11),
}


def _sampler(name: str) -> Sampler:
    return Sampler(SAMPLINGS[name], vocab_size=VOCAB, prompt=PROMPT)


def _cheap(drafted: int) -> float:
    return 1 + 0.01 * drafted


def _model(
    runner: HashRunner, cost: Callable[[int], float] = _cheap, *, vocab: int = VOCAB, draft_max: int = 8
) -> DraftModel:
    return DraftModel(DraftRunner(runner, vocab_size=vocab, draft_max=draft_max), cost=cost)


def _drafters() -> dict[str, Drafter]:
    smaller = HashRunner(hashed(VOCAB), VOCAB)
    wrong = HashRunner(hashed(VOCAB, salt=1), VOCAB)
    return {
        "lookup": PromptLookup(smollm2_cost),
        "same model": _model(smaller),
        "wrong model": _model(wrong),
        "lookup or same model": LookupOrModel(PromptLookup(_cheap), _model(HashRunner(hashed(VOCAB), VOCAB))),
    }


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", _drafters())
def test_the_answer_is_the_same_with_drafts_and_without(sampling: str, name: str) -> None:
    model = hashed(VOCAB)
    plain = answer(model, PROMPT, 300, sampler=_sampler(sampling))
    result = answer(model, PROMPT, 300, sampler=_sampler(sampling), drafter=_drafters()[name])
    assert result.tokens == plain.tokens
    assert result.drafted > 0
    assert result.passes + result.accepted == 300


def test_text_copied_from_the_prompt_takes_a_fraction_of_the_steps() -> None:
    text = PROMPT[5:35]
    model = copying(text, VOCAB, prompt=len(PROMPT))
    result = answer(model, PROMPT, 200, sampler=_sampler("greedy"), drafter=PromptLookup(smollm2_cost))
    assert result.tokens == (text * 7)[:200]
    assert result.accepted > 0.9 * result.drafted
    # With these costs, drafts of 7 are best even if all are accepted.
    assert result.passes < 200 / 6
    assert result.cost < 0.3 * 200 * smollm2_cost(0)


def test_drafts_grow_as_they_are_accepted() -> None:
    def cost(drafted: int) -> float:
        return 1 + 0.12 * drafted

    lookup = PromptLookup(cost)
    tokens = [*PROMPT, *PROMPT[:3]]
    lengths = []
    while len(tokens) < len(PROMPT) + 38:
        drafted = lookup.draft(tokens, 16)
        lengths.append(len(drafted))
        # All are accepted, and one more is sampled.
        tokens += PROMPT[len(tokens) - len(PROMPT) :][: len(drafted) + 1]
    assert 0 < lengths[0] < max(lengths)


def test_where_nothing_is_accepted_drafting_costs_next_to_nothing() -> None:
    # Every pair of tokens has occurred before, but is always followed by another token.
    random = np.random.default_rng(0)
    tokens = [int(token) for token in random.integers(0, 4, 30)]
    lookup = PromptLookup(smollm2_cost)
    cost = drafted_late = 0.0
    for step in range(1000):
        drafted = lookup.draft(tokens, 16)
        cost += smollm2_cost(len(drafted))
        drafted_late += len(drafted) if step >= 200 else 0
        match = lookup._match
        wrong = {tokens[match.position]} if match else set()
        tokens.append(int(random.choice([token for token in range(4) if token not in wrong])))
    assert cost < 1.02 * 1000 * smollm2_cost(0)
    # A longer match than any before is tried once.
    assert drafted_late < 10


def test_drafting_resumes_when_the_text_becomes_predictable() -> None:
    random = np.random.default_rng(0)
    tokens = [int(token) for token in random.integers(0, 4, 30)]
    lookup = PromptLookup(smollm2_cost)
    for _ in range(500):
        lookup.draft(tokens, 16)
        match = lookup._match
        wrong = {tokens[match.position]} if match else set()
        tokens.append(int(random.choice([token for token in range(4) if token not in wrong])))
    assert lookup.draft(tokens, 16) == []
    drafted = []
    for step in range(120):
        tokens.append(100 + step % 20)
        drafted.append(len(lookup.draft(tokens, 16)))
    assert max(drafted[:40]) > 0
    assert max(drafted) >= 7


def test_no_more_than_the_limit_is_drafted_and_another_sequence_starts_anew() -> None:
    lookup = PromptLookup(lambda _: 1.0, draft_max=5)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    assert lookup.draft(tokens, 16) == [3, 4, 5, 6, 7]
    assert lookup.draft(tokens, 2) == [3, 4]
    assert lookup.draft(tokens, 0) == []
    assert lookup.draft([7, 8, 9, 7, 8], 1) == [9]
    assert lookup.draft([1], 16) == []
    assert lookup.draft([], 16) == []


def test_a_draft_model_keeps_its_slot_in_step_with_the_sequence() -> None:
    runner = HashRunner(hashed(VOCAB), VOCAB, max_chunk=16)
    drafter = _model(runner, draft_max=4)
    assert runner.slots == {0: [], 1: []}
    first = drafter.draft(PROMPT, 4)
    assert runner.slots[1] == [*PROMPT, *first[:3]]
    assert runner.slots[0] == []
    # Two are accepted, then comes another token.
    tokens = [*PROMPT, *first[:2], (first[2] + 1) % VOCAB]
    steps = runner.steps
    second = drafter.draft(tokens, 4)
    assert runner.slots[1] == [*tokens, *second[:3]]
    # One step over the new tokens and three more: nothing was run twice.
    assert runner.steps == steps + 4
    # All are accepted, and one more is sampled.
    tokens = [*tokens, *second, 7]
    third = drafter.draft(tokens, 4)
    assert runner.slots[1] == [*tokens, *third[:3]]
    # The same again gives the same.
    assert drafter.draft(tokens, 4) == third
    drafter.release()
    assert runner.slots[1] == []
    # Another slot, from the start.
    drafter._runner.begin_step()
    assert drafter.draft(tokens, 4) == third


def test_a_draft_model_equal_to_the_main_model_is_always_accepted_and_a_wrong_one_pauses() -> None:
    model = hashed(VOCAB)
    right = _model(HashRunner(model, VOCAB))
    result = answer(model, PROMPT, 100, sampler=_sampler("greedy"), drafter=right)
    assert result.accepted == result.drafted
    assert result.passes <= 100 / 8
    never = HashRunner(lambda tokens: np.roll(model(tokens), 1), VOCAB)
    wrong = _model(never, smollm2_cost)
    result = answer(model, PROMPT, 2000, sampler=_sampler("greedy"), drafter=wrong)
    assert result.cost < 1.05 * 2000 * smollm2_cost(0)
    assert result.passes == 2000


@pytest.mark.parametrize("limit", [2, 8])
def test_a_draft_model_that_has_not_paid_off_is_tried_again_with_a_few_tokens(limit: int) -> None:
    model = hashed(VOCAB)
    drafter = _model(HashRunner(lambda tokens: np.roll(model(tokens), 1), VOCAB), smollm2_cost)
    tokens, lengths = list(PROMPT), []
    for _ in range(300):
        drafter._runner.begin_step()
        lengths.append(len(drafter.draft(tokens, limit)))
        drafter.learn(lengths[-1], 0)
        tokens.append(int(model(tokens).argmax()))
    # As many as pay off at first, then none but for a few trials.
    paused = lengths.index(0)
    assert 0 < paused < 20
    trials = [length for length in lengths[paused:] if length]
    assert 2 <= len(trials) <= 4
    assert set(trials) == {min(4, limit)}


def test_a_draft_model_whose_own_steps_cost_too_much_is_not_used() -> None:
    model = hashed(VOCAB)
    runner = HashRunner(model, VOCAB)
    # A step of the main model takes a nanosecond, one of the draft model a thousand times as long.
    slow = _model(runner, lambda _: 1e-9)
    result = answer(model, PROMPT, 300, sampler=_sampler("greedy"), drafter=slow)
    assert result.drafted < 60


def test_a_draft_model_that_fails_is_not_used_again_and_the_answer_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = hashed(VOCAB)
    runner = HashRunner(model, VOCAB)
    runner.fails_at = 8
    drafter = _model(runner)
    with caplog.at_level(logging.WARNING):
        result = answer(model, PROMPT, 100, sampler=_sampler("greedy"), drafter=drafter)
    assert result.tokens == answer(model, PROMPT, 100, sampler=_sampler("greedy")).tokens
    assert runner.steps == 8
    assert caplog.text.count("out of memory") == 1


def test_a_draft_model_stays_within_its_context_and_the_main_models_vocabulary() -> None:
    runner = HashRunner(hashed(VOCAB), VOCAB, context_length=45)
    drafter = _model(runner, vocab=10)
    drafted = drafter.draft(PROMPT, 16)
    assert len(drafted) == 5
    assert max(drafted) < 10
    assert drafter.draft([*PROMPT, *PROMPT], 16) == []


def test_a_long_prompt_is_prefilled_in_chunks_and_by_one_sequence_per_step() -> None:
    runner = HashRunner(hashed(VOCAB), VOCAB, max_chunk=16)
    shared = DraftRunner(runner, vocab_size=VOCAB)
    prompt = PROMPT * 5
    first, second = (DraftModel(shared, cost=_cheap) for _ in range(2))
    lengths = []
    for _ in range(10):
        shared.begin_step()
        drafts = [drafter.draft(prompt, 8) for drafter in (first, second)]
        lengths.append(sorted(len(tokens) for tokens in runner.slots.values()))
        if all(drafts):
            break
    assert lengths[0] == [0, 64]
    assert all(sum(after) - sum(before) <= 250 for before, after in pairwise(lengths))
    # Both have prefilled it in the end, and draft the same.
    assert drafts[0] == drafts[1] != []
    assert len(lengths) > 2


def test_the_drafter_with_the_higher_expected_speedup_is_used() -> None:
    model = hashed(VOCAB)
    runner = HashRunner(model, VOCAB)
    both = LookupOrModel(PromptLookup(smollm2_cost), _model(runner, smollm2_cost))
    # Nothing to look up: the draft model is used.
    assert both.draft(PROMPT, 8)
    assert runner.steps > 0
    # A long match costs nothing and is nearly always accepted: the draft model is not used.
    steps = runner.steps
    tokens = [*PROMPT, *PROMPT[:20]]
    assert both.draft(tokens, 8) == PROMPT[20 : 20 + len(both.draft(tokens, 8))] != []
    assert runner.steps == steps
    # If lookups are always rejected, the draft model is used again.
    for _ in range(60):
        tokens.append(int(model(tokens).argmax()))
        both.learn(len(both.draft(tokens, 8)), 0 if runner.steps == steps else 8)
    assert runner.steps > steps


def test_the_acceptance_of_lookups_does_not_count_for_the_draft_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(HashRunner(hashed(VOCAB), VOCAB), smollm2_cost)
    learned: list[tuple[int, int]] = []
    monkeypatch.setattr(model, "learn", lambda drafted, accepted: learned.append((drafted, accepted)))
    both = LookupOrModel(PromptLookup(smollm2_cost), model)
    drafted = both.draft([*PROMPT, *PROMPT[:20]], 8)
    both.learn(len(drafted), 0)
    assert learned == []
    drafted = both.draft([*PROMPT, *PROMPT[:20], 49, 0, 48], 8)
    both.learn(len(drafted), 1)
    assert learned == [(len(drafted), 1)]


def test_a_new_sequence_starts_with_the_acceptance_rate_of_the_others() -> None:
    model = hashed(VOCAB)
    never = HashRunner(lambda tokens: np.roll(model(tokens), 1), VOCAB)
    shared = DraftRunner(never, vocab_size=VOCAB)
    answer(model, PROMPT, 300, sampler=_sampler("greedy"), drafter=DraftModel(shared, cost=smollm2_cost))
    steps = never.steps
    later = DraftModel(shared, cost=smollm2_cost)
    result = answer(model, PROMPT[::-1], 30, sampler=_sampler("greedy"), drafter=later)
    # It does not even prefill the prompt.
    assert (result.drafted, never.steps) == (0, steps)


def test_a_kv_budget_is_shared_with_a_draft_model_only() -> None:
    limits = Limits(context_length=4096, sequence_slots=2, max_chunk=16, vocab_size=VOCAB, kv_bytes_per_token=8)
    alone = Drafters(None, limits, _cheap)
    assert (alone.main_budget(None), alone.main_budget(8000)) == (None, 8000)
    assert (alone.kv_bytes, alone.max_kv_bytes(1000)) == (0, 0)
    runner = HashRunner(hashed(VOCAB), VOCAB)
    runner._limits = replace(runner.limits, kv_bytes_per_token=2)
    both = Drafters(runner, limits, _cheap, draft_max=8)
    assert both.main_budget(None) is None
    main = both.main_budget(8000)
    assert main is not None
    assert 0 < main < 8000
    # As many tokens as fit, with the draft model's cache of them.
    tokens = main // 8
    assert main + both.max_kv_bytes(tokens) <= 8000 < main + 8 + both.max_kv_bytes(tokens + 1)


def test_without_a_draft_model_drafts_are_looked_up() -> None:
    limits = Limits(context_length=4096, sequence_slots=2, max_chunk=16, vocab_size=VOCAB, kv_bytes_per_token=8)
    alone = Drafters(None, limits, _cheap)
    alone.begin_step()
    alone.reset()
    assert isinstance(alone.new(), PromptLookup)
    assert isinstance(Drafters(HashRunner(hashed(VOCAB), VOCAB), limits, _cheap).new(), LookupOrModel)
