from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import EdgekitError
from edgekit.generation.request import Sampling
from edgekit.generation.sampling import Sampler
from edgekit.generation.verify import accept_drafts
from tests.generation.sampling_reference import chi_square_limit, distribution, pack
from tests.generation.speculating import hashed


class _Digits:
    """A grammar of `length` tokens, each larger than the one before; it refuses everything else."""

    def __init__(self, vocab: int, length: int) -> None:
        self._vocab = vocab
        self._length = length
        self.complete = False
        self.tokens: list[int] = []

    def mask(self) -> npt.NDArray[np.int32] | None:
        if not self.tokens:
            return None
        last = max(self.tokens)
        return pack(set(range(last + 1, self._vocab)) if len(self.tokens) < self._length else {0}, self._vocab)

    def accept(self, token: int) -> None:
        if self.tokens and (token <= self.tokens[-1] or len(self.tokens) == self._length):
            raise EdgekitError(f"{token} does not fit after {self.tokens}")
        self.tokens.append(token)

    def forced(self) -> list[int]:
        return []


class _Pairs(_Digits):
    """A grammar of pairs: whatever comes first, the second is one more, twice at most."""

    def __init__(self) -> None:
        super().__init__(50, 4)

    def accept(self, token: int) -> None:
        super().accept(token)
        self.complete = len(self.tokens) == self._length

    def forced(self) -> list[int]:
        return [self.tokens[-1] + 1] if len(self.tokens) % 2 else []


def _pointing(tokens: list[int], vocab: int = 50) -> npt.NDArray[np.float32]:
    """Logits that want these tokens."""
    logits = np.zeros((len(tokens), vocab), np.float32)
    logits[np.arange(len(tokens)), tokens] = 9.0
    return logits


def _tokens(wanted: list[int], drafted: list[int], **keywords: object) -> list[int]:
    sampler = Sampler(Sampling(temperature=0), vocab_size=50)
    choices = accept_drafts(sampler, _pointing(wanted), drafted, **keywords)  # type: ignore[arg-type]
    return [choice.token for choice in choices]


def test_drafts_are_accepted_up_to_the_first_that_is_wrong() -> None:
    assert _tokens([4], []) == [4]
    assert _tokens([4, 5, 6], [4, 5]) == [4, 5, 6]
    assert _tokens([4, 5, 6], [4, 9]) == [4, 5]
    assert _tokens([4, 5, 6], [9, 5]) == [4]


def test_nothing_follows_an_end_token_drafted_or_not() -> None:
    assert _tokens([4, 2, 6], [4, 2], end_tokens={2}) == [4, 2]
    assert _tokens([4, 2, 6], [4, 7], end_tokens={2}) == [4, 2]


def test_as_many_rows_as_drafts_and_one_more_are_needed() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        _tokens([4, 5], [4, 5])


def test_a_grammar_masks_each_place_after_the_tokens_before_it() -> None:
    # The model wants to fall at the third place; the grammar lets it only rise, and then end with 0.
    matcher = _Digits(50, 4)
    logits = _pointing([4, 7, 3, 9, 11])
    logits[2, 8] = 5.0
    sampler = Sampler(Sampling(temperature=0), vocab_size=50)
    choices = accept_drafts(sampler, logits, [4, 7, 8, 9], matcher=matcher, end_tokens={0})
    assert [choice.token for choice in choices] == [4, 7, 8, 9, 0]
    # The end is not the grammar's.
    assert matcher.tokens == [4, 7, 8, 9]


def test_a_draft_that_the_grammar_forbids_is_replaced_and_ends_the_step() -> None:
    matcher = _Digits(50, 4)
    assert _tokens([4, 7, 9], [4, 3], matcher=matcher) == [4, 7]
    assert matcher.tokens == [4, 7]


def test_what_a_grammar_forces_is_taken_whatever_the_model_wants_and_was_drafted() -> None:
    forced = {"matcher": _Pairs(), "fast_forward": True}
    assert _tokens([4, 9, 7, 9], [4, 5, 7], **forced) == [4, 5, 7, 8]
    assert _tokens([4], [], matcher=_Pairs(), fast_forward=True) == [4, 5]
    assert _tokens([4, 9, 9], [4, 6], matcher=_Pairs(), fast_forward=True) == [4, 5]


def test_nothing_is_chosen_after_a_grammars_last_token() -> None:
    assert _tokens([4, 9, 7, 9, 0], [4, 5, 7, 8], matcher=_Pairs(), fast_forward=True) == [4, 5, 7, 8]


def test_a_forced_token_takes_no_draw_so_that_a_seed_gives_the_same_with_drafts() -> None:
    logits = np.zeros((4, 50), np.float32)

    def said(drafted: list[int]) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=5), vocab_size=50)
        matcher = _Pairs()
        while not matcher.complete:
            held = len(matcher.tokens)
            rest = drafted[held:]
            accept_drafts(sampler, logits[: len(rest) + 1], rest, matcher=matcher, fast_forward=True)
        return matcher.tokens

    alone = said([])
    assert said(alone[:3]) == alone


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=1, temperature=1.0), Sampling(seed=2, temperature=1.2, top_p=0.95, top_k=6)]
)
def test_whatever_is_drafted_the_tokens_follow_the_models_own_distribution(sampling: Sampling) -> None:
    vocab, rounds = 8, 6000
    logits = {(one, two): hashed(vocab, sharpness=1.0)([one, two]) for one in range(vocab) for two in range(vocab)}

    def model(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return logits[tokens[-2], tokens[-1]]

    sampler = Sampler(sampling, vocab_size=vocab)
    # The likeliest, an unlikely one and one of the middle: pairs of the first two places, with drafts at both.
    for drafted in ([int(model([1, 1]).argmax()), 3], [int(model([1, 1]).argmin()), 0], [5, 5]):
        seen: Counter[tuple[int, int]] = Counter()
        for _ in range(rounds):
            tokens = [1, 1]
            while len(tokens) < 4:
                guess = drafted[len(tokens) - 2 :]
                rows = np.stack([model([*tokens, *guess[:step]]) for step in range(len(guess) + 1)])
                tokens += [choice.token for choice in accept_drafts(sampler, rows, guess)]
            seen[tokens[2], tokens[3]] += 1
        first = distribution([float(value) for value in model([1, 1])], sampling)
        chi_square, cells = 0.0, 0
        rare_seen = rare_wanted = 0.0
        for one in range(vocab):
            second = distribution([float(value) for value in model([1, one])], sampling)
            for two in range(vocab):
                wanted = rounds * first[one] * second[two]
                if wanted == 0:
                    assert seen[one, two] == 0
                elif wanted < 10:
                    rare_seen, rare_wanted = rare_seen + seen[one, two], rare_wanted + wanted
                else:
                    chi_square += (seen[one, two] - wanted) ** 2 / wanted
                    cells += 1
        if rare_wanted:
            chi_square += (rare_seen - rare_wanted) ** 2 / rare_wanted
        assert cells > 5
        assert chi_square < chi_square_limit(cells)
