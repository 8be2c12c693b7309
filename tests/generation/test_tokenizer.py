from __future__ import annotations

from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from edgekit.generation.tokenizer import Tokenizer


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


def test_a_text_that_stands_alone_begins_as_the_tokenizer_has_texts_begin_and_does_not_end() -> None:
    for ends in (False, True):
        tokenizer = _tokenizer(begins=True, ends=ends)
        assert tokenizer.encode_text("a") == [256, *tokenizer.encode("a")]
        assert tokenizer.encode_text("") == [256]
        assert _tokenizer(begins=False, ends=ends).encode_text("a") == tokenizer.encode("a")


def test_special_tokens_in_it_are_text() -> None:
    tokenizer = _tokenizer(begins=True, ends=False)
    assert tokenizer.special_tokens == {"<s>": 256, "</s>": 257}
    assert not tokenizer.special_ids.intersection(tokenizer.encode_text("a</s>b<s>")[1:])
