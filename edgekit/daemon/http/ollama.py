"""`POST /api/chat`, `/api/generate` and `/api/show`: the Ollama dialect, one JSON object per line."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from edgekit.daemon.http.endpoint import Asked
from edgekit.daemon.http.errors import error_response
from edgekit.daemon.http.json_line import json_line
from edgekit.daemon.http.models import check_model, rfc3339, show
from edgekit.daemon.wire import Gathered, logprobs_body
from edgekit.daemon.wire.gather import GatheredCall
from edgekit.daemon.wire.ollama import OllamaCall, parse_ollama_chat, parse_ollama_generate
from edgekit.daemon.wire.reading import decode
from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.request import ChatRequest, Delta, Ended, Finish, TokenLogprob, ToolCall, ToolCallDelta

__all__ = ["chat_dialect", "generate_dialect", "refusal", "show_dialect"]


def chat_dialect(body: bytes, asked: Asked) -> _Reply | Response:
    """Read a body of `/api/chat`."""
    return _answer(parse_ollama_chat(body, **_about(asked)), asked, chat=True)


def generate_dialect(body: bytes, asked: Asked) -> _Reply | Response:
    """Read a body of `/api/generate`."""
    return _answer(parse_ollama_generate(body, **_about(asked)), asked, chat=False)


def show_dialect(body: bytes, asked: Asked) -> Response:
    """Read a body of `/api/show`, and answer it."""
    fields = decode(body)
    # `name` is what it was called before.
    name = fields.get("model", fields.get("name"))
    if not isinstance(name, str):
        raise RequestError("`model` must be a text", param="model")
    check_model(name, asked.model)
    return JSONResponse(show(asked.model))


def refusal(error: EdgekitError) -> Response:
    """An error as Ollama's callers read it, who know no codes; ours are beside it."""
    return error_response(error, _error(error))


class _Reply:
    """A reply of `/api/chat` or `/api/generate`.

    Args:
        request: The request.
        call: As it was asked.
        head: Fields of every piece.
        chat: Whether the text stands in a message.
    """

    content_type = "application/x-ndjson"

    def __init__(self, request: ChatRequest, call: OllamaCall, *, chat: bool) -> None:
        self.request = request
        self.stream = call.stream
        self._model = call.model
        self._chat = chat
        # The call that is under way: this dialect knows whole ones only.
        self._call: GatheredCall | None = None
        self._number = 0

    def whole(self, answers: Gathered, finish: Finish) -> dict[str, Any]:
        """The last piece of a stream, with all the text."""
        answer = answers.answers[0]
        piece = self._piece(answer.text, _calls(answer.tool_calls), answer.logprobs, thinking=answer.reasoning)
        return {**piece, **_end(finish)}

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def pause(self) -> bytes:
        """A piece without text: an empty line would be no JSON."""
        return _line(self._piece(""))

    def piece(self, event: Delta | ToolCallDelta) -> bytes:
        """A piece of the text, or a call once it is whole."""
        if isinstance(event, Delta):
            text, thinking = ("", event.text) if event.reasoning else (event.text, "")
            return self._last_call() + _line(self._piece(text, logprobs=event.logprobs, thinking=thinking))
        before = b""
        if self._call is None or self._number != event.number:
            before = self._last_call()
            self._call, self._number = GatheredCall(), event.number
        self._call.add(event)
        return before

    def ended(self, answer: Ended) -> bytes:  # noqa: ARG002
        """Nothing: there is never more than one answer."""
        return b""

    def end(self, finish: Finish) -> bytes:
        """The last call, then why it ended and what it took."""
        return self._last_call() + _line({**self._piece(""), **_end(finish)})

    def failure(self, error: EdgekitError) -> bytes:
        """A line that Ollama's clients raise."""
        return _line(_error(error))

    def _last_call(self) -> bytes:
        if self._call is None:
            return b""
        calls = _calls([self._call.whole()], self._number)
        self._call = None
        return _line(self._piece("", calls)) if calls else b""

    def _piece(
        self,
        text: str,
        calls: Sequence[dict[str, Any]] = (),
        logprobs: Sequence[TokenLogprob] = (),
        *,
        thinking: str = "",
    ) -> dict[str, Any]:
        piece: dict[str, Any] = {"model": self._model, "created_at": rfc3339(time.time()), "done": False}
        if self._chat:
            piece["message"] = {"role": "assistant", "content": text}
            if calls:
                piece["message"]["tool_calls"] = list(calls)
            if thinking:
                piece["message"]["thinking"] = thinking
        else:
            piece["response"] = text
            if thinking:
                piece["thinking"] = thinking
        if self.request.logprobs is not None:
            piece["logprobs"] = logprobs_body(logprobs)["content"]
        return piece


def _about(asked: Asked) -> dict[str, Any]:
    model = asked.model
    return {
        "request_id": asked.id,
        "client": asked.client,
        "context_length": model.context_length,
        "thinks": "thinking" in model.capabilities,
    }


def _answer(call: OllamaCall, asked: Asked, *, chat: bool) -> _Reply | Response:
    check_model(call.model, asked.model)
    if call.request is not None:
        return _Reply(call.request, call, chat=chat)
    # Asked for nothing, Ollama loads the model, and says so.
    text: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    loaded = {"model": call.model, "created_at": rfc3339(time.time()), **text, "done": True, "done_reason": "load"}
    return JSONResponse(loaded) if not call.stream else Response(_line(loaded), media_type=_Reply.content_type)


def _calls(calls: Sequence[ToolCall], first: int = 0) -> list[dict[str, Any]]:
    """Return the calls whose arguments are complete: this dialect has them as objects.

    Args:
        calls: Calls of one answer.
        first: Number of the first of them.
    """
    found = []
    for number, call in enumerate(calls, first):
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            continue
        if isinstance(arguments, dict):
            function = {"index": number, "name": call.name, "arguments": arguments}
            found.append({"id": call.id, "function": function})
    return found


def _end(finish: Finish) -> dict[str, Any]:
    timings, usage = finish.timings, finish.usage
    return {
        "done": True,
        # Ollama knows no reason of its own for calls.
        "done_reason": "stop" if finish.reason == "tool_calls" else finish.reason,
        "total_duration": _nanoseconds(timings.queue_s + timings.prefill_s + timings.decode_s),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.decode_s),
        # Ollama leaves messages out without a word.
        **({"left_out_messages": usage.left_out_messages} if usage.left_out_messages else {}),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _error(error: EdgekitError) -> dict[str, Any]:
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    return {"error": text, "code": error.code}


def _line(piece: dict[str, Any]) -> bytes:
    return json_line(piece).encode() + b"\n"
