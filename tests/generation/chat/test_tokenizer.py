from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from edgekit.errors import BundleError
from edgekit.generation.chat.tokenizer import Tokenizer
from tests.generation.tiny import byte_tokenizer


def _tokenizer(*, begins: bool, ends: bool) -> Tokenizer:
    backend = Backend(
        models.BPE(vocab={char: n for n, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{'<s> ' if begins else ''}$A{' </s>' if ends else ''}", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    return Tokenizer(backend)


def test_standalone_text_starts_with_the_tokenizer_s_prefix_and_has_no_suffix() -> None:
    for ends in (False, True):
        tokenizer = _tokenizer(begins=True, ends=ends)
        assert tokenizer.encode_text("a") == [256, *tokenizer.encode("a")]
        assert tokenizer.encode_text("") == [256]
        assert _tokenizer(begins=False, ends=ends).encode_text("a") == tokenizer.encode("a")


def test_special_tokens_in_it_are_tokens_and_the_prefix_comes_once() -> None:
    tokenizer = _tokenizer(begins=True, ends=False)
    assert tokenizer.special_tokens == {"<s>": 256, "</s>": 257}
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    assert tokenizer.encode_text("a</s>b<s>") == [256, a, 257, b, 256]
    assert tokenizer.encode_text("<s>a") == [256, a]
    assert tokenizer.encode_text("<s><s>a") == [256, 256, a]
    assert _tokenizer(begins=False, ends=False).encode_text("<s>a") == [256, a]


ENDING = "<|im_end|>"


def test_special_tokens_are_found_in_text_at_their_places() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.special_spans("plain") == tokenizer.special_spans("") == []
    assert tokenizer.special_spans(f"é{ENDING}{ENDING}x") == [(1, 11), (11, 21)]
    assert tokenizer.special_spans("<|im_end|") == []


def test_many_special_tokens_are_found_too() -> None:
    backend = byte_tokenizer().backend
    backend.add_special_tokens([f"<{number}>" for number in range(100)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.special_spans("a<7>") == [(1, 4)]
    assert tokenizer.special_spans("a<x>") == tokenizer.special_spans("a") == []


def test_the_starts_of_special_tokens_have_completions() -> None:
    tokenizer = _tokenizer(begins=False, ends=False)
    assert tokenizer.longest_special == 4
    assert sorted(tokenizer.special_completions("<")) == ["/s>", "s>"]
    assert list(tokenizer.special_completions("<s")) == [">"]
    assert list(tokenizer.special_completions("<s>")) == list(tokenizer.special_completions("s")) == []
    assert tokenizer.special_ends == {"s>", ">", "/s>"}


def test_a_special_token_is_one_or_its_characters() -> None:
    tokenizer = byte_tokenizer()
    (token,) = tokenizer.encode(ENDING)
    assert token in tokenizer.special_ids
    assert tokenizer.text(token) == ENDING
    assert tokenizer.text(tokenizer.vocab_size) == ""
    assert tokenizer.vocab_size == 259
    spelled = tokenizer.encode(ENDING, obey_special=False)
    assert len(spelled) == len(ENDING)
    # The switch is back where it was.
    assert tokenizer.encode(ENDING) == [token]
    a = tokenizer.encode("a")
    assert tokenizer.decode([*a, token, *a]) == "aa"
    assert tokenizer.decode([*a, token, *a], visible=frozenset([token])) == f"a{ENDING}a"
    other = next(one for one in tokenizer.special_ids if one != token)
    assert tokenizer.decode([other, token], visible=frozenset([token])) == ENDING


def test_tokenizers_that_encode_alike_do_not_differ() -> None:
    assert byte_tokenizer().difference(byte_tokenizer()) is None
    more = byte_tokenizer()
    more.backend.add_tokens(["<more>"])
    more = Tokenizer(more.backend)
    # It never produces the additional token.
    assert byte_tokenizer().difference(more) is None
    assert more.difference(byte_tokenizer()) == "token 259 is `<more>` in one and missing in the other"


def test_a_difference_is_named() -> None:
    plain = byte_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    swapped = Backend(models.BPE(vocab={char: (n + 1) % 256 for n, char in enumerate(alphabet)}, merges=[]))
    swapped.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert (plain.difference(Tokenizer(swapped)) or "").startswith("token 0 is ")
    prefixed = byte_tokenizer()
    prefixed.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    assert plain.difference(Tokenizer(prefixed.backend)) == "the same text encodes to different tokens"


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BundleError, match=r"the bundle has no tokenizer\.json"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(path)
    path.write_text(byte_tokenizer().backend.to_str())
    assert Tokenizer.load(path).encode("a") == byte_tokenizer().encode("a")
