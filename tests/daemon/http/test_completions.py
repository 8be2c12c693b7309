"""Completions through OpenAI's own client, in front of a worker that plays a script."""

from __future__ import annotations

import json

import openai
import pytest

from edgekit.generation.types import Delta, TokenLogprob
from tests.daemon.http.conftest import Played
from tests.daemon.mqtt.scripted import WORDS, Playing, answer_in_turn, answer_twice, finish, tell_logprobs

COMPLETIONS = "/v1/completions"


def echo(playing: Playing) -> None:
    """Echo the prompt with its tokens, and generate one more."""
    prompt = (TokenLogprob(1, b"On", None), TokenLogprob(2, b"ce", -2.0, top=((3, b"ly", -0.5),)))
    playing.on_event(Delta(0, "Once", logprobs=prompt))
    playing.on_event(Delta(1, " u", logprobs=(TokenLogprob(4, b" u", -0.25, top=((4, b" u", -0.25),)),)))
    playing.on_event(finish("length", 1))


def test_a_prompt_is_continued(played: Played) -> None:
    reply = played.openai.completions.create(model="tiny", prompt="Once", max_tokens=5)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("".join(WORDS), "stop")
    assert (reply.object, reply.id.startswith("cmpl-")) == ("text_completion", True)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 8
    request = played.worker.played[0].request
    assert (request.prompt, request.messages, request.max_tokens) == ("Once", (), 5)


def test_streamed_deltas_join_to_the_full_text(played: Played) -> None:
    chunks = list(
        played.openai.completions.create(
            model="tiny", prompt="Once", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "".join(WORDS)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 11


def test_several_choices_are_distinguished_by_their_index(played: Played) -> None:
    played.worker.script = answer_twice
    reply = played.openai.completions.create(model="tiny", prompt="Once", n=2)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in reply.choices] == [
        (0, "".join(WORDS), "stop"),
        (1, "".join(WORDS).upper(), "length"),
    ]


def test_a_choice_that_finishes_early_has_its_last_chunk_while_the_other_continues(played: Played) -> None:
    played.worker.script = answer_in_turn
    ends = []
    for chunk in played.openai.completions.create(model="tiny", prompt="Once", n=2, stream=True):
        for choice in chunk.choices:
            if choice.finish_reason:
                ends.append((choice.index, choice.finish_reason, played.worker.queue_length()))
                played.worker.played[0].cancel()
    assert ends[0] == (1, "length", 1)
    assert [end[:2] for end in ends[1:]] == [(0, "cancelled")]


def test_an_echo_with_log_probabilities_scores_the_prompt_as_lm_eval_reads_it(played: Played) -> None:
    played.worker.script = echo
    reply = played.openai.completions.create(model="tiny", prompt=["Once"], max_tokens=1, logprobs=1, echo=True)
    table = reply.choices[0].logprobs
    assert table is not None
    assert reply.choices[0].text == "Once u"
    assert table.tokens == ["On", "ce", " u"]
    assert table.text_offset == [0, 2, 4]
    assert table.token_logprobs == [None, -2.0, -0.25]
    # The chosen token is included even if it is not among the top ones.
    assert table.top_logprobs == [None, {"ly": -0.5, "ce": -2.0}, {" u": -0.25}]
    request = played.worker.played[0].request
    assert (request.echo, request.logprobs, request.max_tokens) == (True, 1, 1)


def test_offsets_continue_over_a_stream_and_halves_of_a_character_share_one(played: Played) -> None:
    played.worker.script = tell_logprobs
    chunks = list(played.openai.completions.create(model="tiny", prompt="x", logprobs=2, stream=True))
    tables = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for table in tables for offset in table.text_offset or ()] == [0, 2, 3]
    tokens = [token for table in tables for token in table.tokens or ()]
    assert tokens == ["Hi", "bytes:\\x20\\xf0\\x9f", "bytes:\\x97\\xbc"]


def test_without_top_tokens_their_column_is_null(played: Played) -> None:
    played.worker.script = tell_logprobs
    table = played.http.post(COMPLETIONS, json={"prompt": "x", "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert table["top_logprobs"] is None
    assert table["token_logprobs"] == [-0.5, -1.0, 0.0]
    assert played.http.post(COMPLETIONS, json={"prompt": "x"}).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(("fields", "param"), [({"extra_body": {"ignore_eos": True}}, "ignore_eos")])
def test_unsupported_fields_are_rejected(played: Played, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        played.openai.completions.create(**{"model": "tiny", "prompt": "Once", **fields})  # type: ignore[call-overload]
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)


def test_a_full_reply_has_the_cost_headers_too(played: Played) -> None:
    response = played.http.post(COMPLETIONS, json={"prompt": "Once"})
    assert response.headers["x-edgekit-cached-tokens"] == "4"
    assert json.loads(response.content)["timings"]["steps"] == 5
