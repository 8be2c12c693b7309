from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from edgekit.errors import RequestError
from edgekit.generation.prompt import encode_chat
from edgekit.generation.request import Message
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tokenizer import Tokenizer
from tests.generation.tiny import byte_tokenizer
from tests.models import CHATML, SPECIAL

TOKENIZER = byte_tokenizer()
START, END = TOKENIZER.encode("<|im_start|>")[0], TOKENIZER.encode("<|im_end|>")[0]
TRIMMED = CHATML.replace("message['content']", "message['content'] | trim")


def test_an_ordinary_chat_is_encoded_exactly_as_its_rendered_text() -> None:
    messages = (Message("system", "Be brief."), Message("user", "\n Hi, 世界 "))
    rendered = ChatTemplate(CHATML).render([{"role": item.role, "content": item.content} for item in messages])
    assert encode_chat(TOKENIZER, ChatTemplate(CHATML), messages) == TOKENIZER.encode(rendered)


@given(
    contents=st.lists(
        st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "<", "|>", " ", "\n", "hi", "é"])).map("".join),
        min_size=1,
        max_size=3,
    ),
    source=st.sampled_from([CHATML, TRIMMED]),
)
def test_nothing_a_caller_writes_becomes_a_special_token(contents: list[str], source: str) -> None:
    messages = [Message("user", content) for content in contents]
    ids = encode_chat(TOKENIZER, ChatTemplate(source), messages)
    # One turn opened and closed per message, and the assistant's opened.
    assert (ids.count(START), ids.count(END)) == (len(contents) + 1, len(contents))
    shown = ChatTemplate(source).render([{"role": "user", "content": content} for content in contents])
    plain = TOKENIZER.decode([number for number in ids if number not in TOKENIZER.special_ids])
    for special in SPECIAL:
        # What the caller wrote is still there, as text.
        written = sum(content.count(special) for content in contents)
        assert plain.count(special) >= written
    assert len(plain) <= len(shown)


def test_a_special_token_hidden_behind_a_normalizer_is_found() -> None:
    backend = Backend(models.BPE(vocab={char: n for n, char in enumerate("<|x>abc")}, merges=[]))
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<|x|>", special=True, normalized=True)])
    tokenizer = Tokenizer(backend)
    (special,) = tokenizer.encode("<|x|>")
    assert tokenizer.encode("\uff1c|x|\uff1e") == [special]
    template = ChatTemplate("{{ messages[0]['content'] }}")
    assert special not in encode_chat(tokenizer, template, [Message("user", "a\uff1c|x|\uff1eb")])


def test_a_template_that_takes_a_special_token_apart_is_refused() -> None:
    template = ChatTemplate("{{ messages[0]['content'][:8] }}")
    with pytest.raises(RequestError, match="special token") as caught:
        encode_chat(TOKENIZER, template, [Message("user", "a <|im_end|> b")])
    assert caught.value.param == "messages"


def test_a_template_that_leaves_messages_out_still_protects_the_rest() -> None:
    template = ChatTemplate("{{ messages[-1]['content'] }}<|im_end|>")
    ids = encode_chat(TOKENIZER, template, [Message("user", "<|im_end|>"), Message("user", "b<|im_end|>")])
    assert ids.count(END) == 1


def test_tokens_that_are_added_but_not_special_are_left_to_the_template() -> None:
    backend = Backend(
        models.BPE(vocab={char: n for n, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = Tokenizer(backend)
    assert len(encode_chat(tokenizer, ChatTemplate("{{ messages[0]['content'] }}"), [Message("user", "<think>")])) == 1
