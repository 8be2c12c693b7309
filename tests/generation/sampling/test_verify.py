from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import EdgekitError
from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.sampling.verify import accept_drafts
from edgekit.generation.types import Sampling
from tests.generation.sampling.reference import chi_square_limit, distribution, pack
from tests.generation.speculating import hashed


class _Digits:
    """A grammar of `length` tokens, each larger than the one before; it rejects everything else."""

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
    """A grammar of up to two pairs: the second token of each is the first one plus one."""

    def __init__(self) -> None:
        super().__init__(50, 4)

    def accept(self, token: int) -> None:
        super().accept(token)
        self.complete = len(self.tokens) == self._length

    def forced(self) -> list[int]:
        return [self.tokens[-1] + 1] if len(self.tokens) % 2 else []


def _pointing(tokens: list[int], vocab: int = 50) -> npt.NDArray[np.float32]:
    """Logits whose maxima are at these tokens."""
    logits = np.zeros((len(tokens), vocab), np.float32)
    logits[np.arange(len(tokens)), tokens] = 9.0
    return logits


def _tokens(wanted: list[int], drafted: list[int], **keywords: object) -> list[int]:
    sampler = Sampler(Sampling(temperature=0), vocab_size=50)
    sampled = accept_drafts(sampler, _pointing(wanted), drafted, **keywords)  # type: ignore[arg-type]
    return [one.token for one in sampled]


def test_draft_tokens_are_accepted_up_to_the_first_that_differs() -> None:
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


def test_a_grammar_masks_each_position_after_the_tokens_before_it() -> None:
    # The model's third token is smaller; the grammar allows only larger ones, and then the end token 0.
    matcher = _Digits(50, 4)
    logits = _pointing([4, 7, 3, 9, 11])
    logits[2, 8] = 5.0
    sampler = Sampler(Sampling(temperature=0), vocab_size=50)
    sampled = accept_drafts(sampler, logits, [4, 7, 8, 9], matcher=matcher, end_tokens={0})
    assert [one.token for one in sampled] == [4, 7, 8, 9, 0]
    # The grammar is not advanced by the end token.
    assert matcher.tokens == [4, 7, 8, 9]


def test_a_draft_that_the_grammar_forbids_is_replaced_and_ends_the_step() -> None:
    matcher = _Digits(50, 4)
    assert _tokens([4, 7, 9], [4, 3], matcher=matcher) == [4, 7]
    assert matcher.tokens == [4, 7]


def test_forced_tokens_are_taken_whatever_the_logits_and_drafts_are() -> None:
    forced = {"matcher": _Pairs(), "fast_forward": True}
    assert _tokens([4, 9, 7, 9], [4, 5, 7], **forced) == [4, 5, 7, 8]
    assert _tokens([4], [], matcher=_Pairs(), fast_forward=True) == [4, 5]
    assert _tokens([4, 9, 9], [4, 6], matcher=_Pairs(), fast_forward=True) == [4, 5]


def test_nothing_is_sampled_after_a_grammars_last_token() -> None:
    assert _tokens([4, 9, 7, 9, 0], [4, 5, 7, 8], matcher=_Pairs(), fast_forward=True) == [4, 5, 7, 8]


def test_a_forced_token_takes_no_draw_so_that_a_seed_gives_the_same_with_drafts() -> None:
    logits = np.zeros((4, 50), np.float32)

    def generate(drafted: list[int]) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=5), vocab_size=50)
        matcher = _Pairs()
        while not matcher.complete:
            rest = drafted[len(matcher.tokens) :]
            accept_drafts(sampler, logits[: len(rest) + 1], rest, matcher=matcher, fast_forward=True)
        return matcher.tokens

    alone = generate([])
    assert generate(alone[:3]) == alone


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=1, temperature=1.0), Sampling(seed=2, temperature=1.2, top_p=0.95, top_k=6)]
)
def test_whatever_is_drafted_the_tokens_follow_the_models_own_distribution(sampling: Sampling) -> None:
    vocab, rounds = 8, 6000
    logits = {(one, two): hashed(vocab, sharpness=1.0)([one, two]) for one in range(vocab) for two in range(vocab)}

    def model(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return logits[tokens[-2], tokens[-1]]

    sampler = Sampler(sampling, vocab_size=vocab)
    # The most likely, an unlikely and a middling token: pairs for the first two positions, drafts at both.
    for drafted in ([int(model([1, 1]).argmax()), 3], [int(model([1, 1]).argmin()), 0], [5, 5]):
        seen: Counter[tuple[int, int]] = Counter()
        for _ in range(rounds):
            tokens = [1, 1]
            while len(tokens) < 4:
                draft = drafted[len(tokens) - 2 :]
                rows = np.stack([model([*tokens, *draft[:step]]) for step in range(len(draft) + 1)])
                tokens += [one.token for one in accept_drafts(sampler, rows, draft)]
            seen[tokens[2], tokens[3]] += 1
        first = distribution([float(value) for value in model([1, 1])], sampling)
        chi_square, cells = 0.0, 0
        rare_seen = rare_expected = 0.0
        for one in range(vocab):
            second = distribution([float(value) for value in model([1, one])], sampling)
            for two in range(vocab):
                expected = rounds * first[one] * second[two]
                if expected == 0:
                    assert seen[one, two] == 0
                elif expected < 10:
                    rare_seen, rare_expected = rare_seen + seen[one, two], rare_expected + expected
                else:
                    chi_square += (seen[one, two] - expected) ** 2 / expected
                    cells += 1
        if rare_expected:
            chi_square += (rare_seen - rare_expected) ** 2 / rare_expected
        assert cells > 5
        assert chi_square < chi_square_limit(cells)
