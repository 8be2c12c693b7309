from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from edgekit.generation.draft_model import DraftModel, DraftRunner
from edgekit.generation.drafting import Drafter, LookupOrModel, PromptLookup
from edgekit.generation.request import Sampling
from edgekit.generation.sampling import Sampler
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
    runner: HashRunner, cost: Callable[[int], float] = _cheap, *, vocab: int = VOCAB, most: int = 8
) -> DraftModel:
    return DraftModel(DraftRunner(runner, vocab_size=vocab, most=most), cost=cost)


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
    guessed = answer(model, PROMPT, 300, sampler=_sampler(sampling), drafter=_drafters()[name])
    assert guessed.tokens == plain.tokens
    assert guessed.drafted > 0
    assert guessed.passes + guessed.accepted == 300


def test_a_text_that_is_copied_from_the_prompt_takes_a_fraction_of_the_steps() -> None:
    text = PROMPT[5:35]
    model = copying(text, VOCAB, prompt=len(PROMPT))
    guessed = answer(model, PROMPT, 200, sampler=_sampler("greedy"), drafter=PromptLookup(smollm2_cost))
    assert guessed.tokens == (text * 7)[:200]
    assert guessed.accepted > 0.9 * guessed.drafted
    # With these costs, drafts of 7 are best even where all are right.
    assert guessed.passes < 200 / 6
    assert guessed.cost < 0.3 * 200 * smollm2_cost(0)


def test_drafts_grow_as_they_are_accepted() -> None:
    def cost(drafted: int) -> float:
        return 1 + 0.12 * drafted

    lookup = PromptLookup(cost)
    tokens = [*PROMPT, *PROMPT[:3]]
    lengths = []
    while len(tokens) < len(PROMPT) + 38:
        drafted = lookup.draft(tokens, 16)
        lengths.append(len(drafted))
        # All come true, and one more.
        tokens += PROMPT[len(tokens) - len(PROMPT) :][: len(drafted) + 1]
    assert 0 < lengths[0] < max(lengths)


def test_where_nothing_comes_true_guessing_costs_next_to_nothing() -> None:
    # Every pair of tokens came before, but what follows it is always another token.
    random = np.random.default_rng(0)
    tokens = [int(token) for token in random.integers(0, 4, 30)]
    lookup = PromptLookup(smollm2_cost)
    cost = drafted_late = 0.0
    for step in range(1000):
        drafted = lookup.draft(tokens, 16)
        cost += smollm2_cost(len(drafted))
        drafted_late += len(drafted) if step >= 200 else 0
        match = lookup._guess
        wrong = {tokens[match.position]} if match else set()
        tokens.append(int(random.choice([token for token in range(4) if token not in wrong])))
    assert cost < 1.02 * 1000 * smollm2_cost(0)
    # A match longer than any before is a new case, and tried once.
    assert drafted_late < 10


def test_guessing_begins_again_when_the_text_becomes_predictable() -> None:
    random = np.random.default_rng(0)
    tokens = [int(token) for token in random.integers(0, 4, 30)]
    lookup = PromptLookup(smollm2_cost)
    for _ in range(500):
        lookup.draft(tokens, 16)
        match = lookup._guess
        wrong = {tokens[match.position]} if match else set()
        tokens.append(int(random.choice([token for token in range(4) if token not in wrong])))
    assert lookup.draft(tokens, 16) == []
    drafted = []
    for step in range(120):
        tokens.append(100 + step % 20)
        drafted.append(len(lookup.draft(tokens, 16)))
    assert max(drafted[:40]) > 0
    assert max(drafted) >= 7


def test_no_more_than_asked_is_drafted_and_another_sequence_starts_anew() -> None:
    lookup = PromptLookup(lambda _: 1.0, most=5)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    assert lookup.draft(tokens, 16) == [3, 4, 5, 6, 7]
    assert lookup.draft(tokens, 2) == [3, 4]
    assert lookup.draft(tokens, 0) == []
    assert lookup.draft([7, 8, 9, 7, 8], 1) == [9]
    assert lookup.draft([1], 16) == []
    assert lookup.draft([], 16) == []


def test_a_draft_model_keeps_its_slot_in_step_with_the_sequence() -> None:
    runner = HashRunner(hashed(VOCAB), VOCAB, max_chunk=16)
    drafter = _model(runner, most=4)
    assert runner.slots == {0: [], 1: []}
    first = drafter.draft(PROMPT, 4)
    assert runner.slots[1] == [*PROMPT, *first[:3]]
    assert runner.slots[0] == []
    # Two came true, then something else.
    tokens = [*PROMPT, *first[:2], (first[2] + 1) % VOCAB]
    steps = runner.steps
    second = drafter.draft(tokens, 4)
    assert runner.slots[1] == [*tokens, *second[:3]]
    # One step over what is new and three more: nothing was run twice.
    assert runner.steps == steps + 4
    # All came true, and one more.
    tokens = [*tokens, *second, 7]
    third = drafter.draft(tokens, 4)
    assert runner.slots[1] == [*tokens, *third[:3]]
    # The same again gives the same.
    assert drafter.draft(tokens, 4) == third
    drafter.release()
    assert runner.slots[1] == []
    # Another slot, and all of it anew.
    drafter._runner.begin_step()
    assert drafter.draft(tokens, 4) == third


def test_a_draft_model_that_is_the_model_itself_is_right_and_one_that_is_not_pauses() -> None:
    model = hashed(VOCAB)
    right = _model(HashRunner(model, VOCAB))
    guessed = answer(model, PROMPT, 100, sampler=_sampler("greedy"), drafter=right)
    assert guessed.accepted == guessed.drafted
    assert guessed.passes <= 100 / 8
    never = HashRunner(lambda tokens: np.roll(model(tokens), 1), VOCAB)
    wrong = _model(never, smollm2_cost)
    guessed = answer(model, PROMPT, 2000, sampler=_sampler("greedy"), drafter=wrong)
    assert guessed.cost < 1.05 * 2000 * smollm2_cost(0)
    assert guessed.passes == 2000


def test_a_draft_model_whose_own_steps_cost_too_much_is_not_used() -> None:
    model = hashed(VOCAB)
    runner = HashRunner(model, VOCAB)
    # The larger model's step takes a nanosecond, the smaller one's a thousand times as long.
    slow = _model(runner, lambda _: 1e-9)
    guessed = answer(model, PROMPT, 300, sampler=_sampler("greedy"), drafter=slow)
    assert guessed.drafted < 60


def test_a_draft_model_that_fails_is_left_alone_and_the_answer_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = hashed(VOCAB)
    runner = HashRunner(model, VOCAB)
    runner.fails_at = 8
    drafter = _model(runner)
    with caplog.at_level(logging.WARNING):
        guessed = answer(model, PROMPT, 100, sampler=_sampler("greedy"), drafter=drafter)
    assert guessed.tokens == answer(model, PROMPT, 100, sampler=_sampler("greedy")).tokens
    assert runner.steps == 8
    assert caplog.text.count("out of memory") == 1


def test_a_draft_model_stays_within_its_context_and_the_larger_models_vocabulary() -> None:
    runner = HashRunner(hashed(VOCAB), VOCAB, context_length=45)
    drafter = _model(runner, vocab=10)
    drafted = drafter.draft(PROMPT, 16)
    assert len(drafted) == 5
    assert max(drafted) < 10
    assert drafter.draft([*PROMPT, *PROMPT], 16) == []


def test_a_long_prompt_is_read_in_pieces_and_by_one_answer_in_a_step() -> None:
    runner = HashRunner(hashed(VOCAB), VOCAB, max_chunk=16)
    shared = DraftRunner(runner, vocab_size=VOCAB)
    prompt = PROMPT * 5
    first, second = (DraftModel(shared, cost=_cheap) for _ in range(2))
    held = []
    for _ in range(10):
        shared.begin_step()
        drafts = [drafter.draft(prompt, 8) for drafter in (first, second)]
        held.append(sorted(len(tokens) for tokens in runner.slots.values()))
        if all(drafts):
            break
    assert held[0] == [0, 64]
    assert all(sum(after) - sum(before) <= 250 for before, after in pairwise(held))
    # Both have read it in the end, and guess the same.
    assert drafts[0] == drafts[1] != []
    assert len(held) > 2


def test_whoever_promises_more_is_asked() -> None:
    model = hashed(VOCAB)
    runner = HashRunner(model, VOCAB)
    both = LookupOrModel(PromptLookup(smollm2_cost), _model(runner, smollm2_cost))
    # Nothing to look up: the model is asked.
    assert both.draft(PROMPT, 8)
    assert runner.steps > 0
    # A long match is nearly always right and costs nothing: the model is not.
    steps = runner.steps
    tokens = [*PROMPT, *PROMPT[:20]]
    assert both.draft(tokens, 8) == PROMPT[20 : 20 + len(both.draft(tokens, 8))] != []
    assert runner.steps == steps
    # Where what was looked up is always wrong, it is the model again.
    for _ in range(60):
        tokens.append(int(model(tokens).argmax()))
        both.learn(len(both.draft(tokens, 8)), 0 if runner.steps == steps else 8)
    assert runner.steps > steps


def test_what_was_looked_up_does_not_count_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(HashRunner(hashed(VOCAB), VOCAB), smollm2_cost)
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr(model, "learn", lambda drafted, accepted: heard.append((drafted, accepted)))
    both = LookupOrModel(PromptLookup(smollm2_cost), model)
    drafted = both.draft([*PROMPT, *PROMPT[:20]], 8)
    both.learn(len(drafted), 0)
    assert heard == []
    drafted = both.draft([*PROMPT, *PROMPT[:20], 49, 0, 48], 8)
    both.learn(len(drafted), 1)
    assert heard == [(len(drafted), 1)]


def test_what_others_found_out_is_known_to_a_new_answer() -> None:
    model = hashed(VOCAB)
    never = HashRunner(lambda tokens: np.roll(model(tokens), 1), VOCAB)
    shared = DraftRunner(never, vocab_size=VOCAB)
    answer(model, PROMPT, 300, sampler=_sampler("greedy"), drafter=DraftModel(shared, cost=smollm2_cost))
    steps = never.steps
    later = DraftModel(shared, cost=smollm2_cost)
    guessed = answer(model, PROMPT[::-1], 30, sampler=_sampler("greedy"), drafter=later)
    # It does not even read the prompt.
    assert (guessed.drafted, never.steps) == (0, steps)
