"""`POST /api/chat` and `/api/generate`: replies in Ollama's format, one JSON object per line."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from edgekit.daemon.api import CollectedReply, check_model, logprobs_body
from edgekit.daemon.api.call_arguments import parse_arguments
from edgekit.daemon.api.collect import CollectedCall
from edgekit.daemon.api.ollama import OllamaCall, parse_ollama_chat, parse_ollama_generate
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.errors import error_response, error_text
from edgekit.daemon.http.json_line import json_line
from edgekit.daemon.http.ollama_models import rfc3339
from edgekit.errors import EdgekitError
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Finished, TokenLogprob, ToolCall, ToolCallDelta

if TYPE_CHECKING:
    from edgekit.daemon.api.ollama_types import OllamaCall as CallBody
    from edgekit.daemon.api.ollama_types import OllamaChunk, OllamaEnd, OllamaError

__all__ = ["chat_dialect", "generate_dialect", "refusal"]

logger = logging.getLogger(__name__)


def chat_dialect(body: bytes, context: RequestContext) -> _Reply | Response:
    """Parse a body of `/api/chat`."""
    return _reply(parse_ollama_chat(body, **_arguments(context)), context, chat=True)


def generate_dialect(body: bytes, context: RequestContext) -> _Reply | Response:
    """Parse a body of `/api/generate`."""
    return _reply(parse_ollama_generate(body, **_arguments(context)), context, chat=False)


def refusal(error: EdgekitError) -> Response:
    """Return an error in Ollama's format, which has no codes, with edgekit's `code` added."""
    return error_response(error, _error(error))


class _Reply:
    """The reply to `/api/chat` or `/api/generate`.

    Args:
        request: The request.
        call: The call that it came in.
        chat: Whether the text is in a message, as in `/api/chat`.
    """

    content_type = "application/x-ndjson"

    def __init__(self, request: ChatRequest, call: OllamaCall, *, chat: bool) -> None:
        self.requests: Sequence[ChatRequest] = (request,)
        self.request = request
        self.stream = call.stream
        self._model = call.model
        self._warnings = call.warnings
        self._chat = chat
        # The unfinished tool call: this dialect sends only complete ones.
        self._call: CollectedCall | None = None
        self._number = 0

    def full(self, reply: CollectedReply, finished: Finished) -> OllamaChunk:
        """Return the last chunk of a stream, with the full text."""
        answer = reply.answers[0]
        chunk = self._chunk(answer.text, _calls(answer.tool_calls), answer.logprobs, thinking=answer.reasoning)
        return {**chunk, **self._end(finished)}

    def start(self) -> bytes:
        """Return nothing: the format has no first chunk of its own."""
        return b""

    def accepted(self, prompt_tokens: int) -> None:
        """Do nothing: the counts are in the last chunk."""

    def keep_alive(self) -> bytes:
        """Return a chunk without text: an empty line is not JSON."""
        return _line(self._chunk(""))

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return a chunk of text or reasoning, or a tool call once it is complete."""
        if isinstance(delta, Delta):
            text, thinking = ("", delta.text) if delta.reasoning else (delta.text, "")
            return self._pop_call() + _line(self._chunk(text, logprobs=delta.logprobs, thinking=thinking))
        previous = b""
        if self._call is None or self._number != delta.number:
            previous = self._pop_call()
            self._call, self._number = CollectedCall(), delta.number
        self._call.add(delta)
        return previous

    def choice_finished(self, choice: ChoiceFinished) -> bytes:  # noqa: ARG002
        """Return nothing: the dialect has no `n`."""
        return b""

    def finish(self, finished: Finished) -> bytes:
        """Return the last tool call, then the finish reason, counts and durations."""
        return self._pop_call() + _line({**self._chunk(""), **self._end(finished)})

    def failure(self, error: EdgekitError) -> bytes:
        """Return an error line, which Ollama's clients raise."""
        return _line(_error(error))

    def _end(self, finished: Finished) -> OllamaEnd:
        end = _end(finished)
        if finished.tokens is not None:
            # Deprecated in Ollama: the tokens of the conversation, to be sent with the next prompt.
            end["context"] = [*finished.tokens.prompt, *finished.tokens.outputs[0]]
        # An extension: Ollama writes them to its log only.
        warnings = [*self._warnings, *_shortened(self.request, finished)]
        if warnings:
            end["warnings"] = warnings
        return end

    def _pop_call(self) -> bytes:
        if self._call is None:
            return b""
        calls = _calls([self._call.tool_call()], self._number)
        self._call = None
        return _line(self._chunk("", calls)) if calls else b""

    def _chunk(
        self,
        text: str,
        calls: Sequence[CallBody] = (),
        logprobs: Sequence[TokenLogprob] = (),
        *,
        thinking: str = "",
    ) -> OllamaChunk:
        chunk: OllamaChunk = {"model": self._model, "created_at": rfc3339(time.time()), "done": False}
        if self._chat:
            chunk["message"] = {"role": "assistant", "content": text}
            if calls:
                chunk["message"]["tool_calls"] = list(calls)
            if thinking:
                chunk["message"]["thinking"] = thinking
        else:
            chunk["response"] = text
            if thinking:
                chunk["thinking"] = thinking
        if self.request.logprobs is not None:
            chunk["logprobs"] = logprobs_body(logprobs)["content"]
        return chunk


def _arguments(context: RequestContext) -> dict[str, Any]:
    """Return the arguments that both parsers take besides the body."""
    model = context.model
    return {
        "request_id": context.id,
        "client": context.client,
        "context_length": model.context_length,
        "thinks": "thinking" in model.capabilities,
    }


def _reply(call: OllamaCall, context: RequestContext, *, chat: bool) -> _Reply | Response:
    check_model(call.model, context.model)
    for warning in call.warnings:
        logger.info("request %s: %s", context.id, warning)
    if call.request is not None:
        return _Reply(call.request, call, chat=chat)
    # Without a prompt Ollama only loads the model, or unloads it, and reports that.
    loaded: OllamaChunk = {
        "model": call.model,
        "created_at": rfc3339(time.time()),
        "done": True,
        "done_reason": "unload" if call.unload else "load",
    }
    if chat:
        loaded["message"] = {"role": "assistant", "content": ""}
    else:
        loaded["response"] = ""
    if call.warnings:
        loaded["warnings"] = list(call.warnings)
    return JSONResponse(loaded) if not call.stream else Response(_line(loaded), media_type=_Reply.content_type)


def _calls(calls: Sequence[ToolCall], first: int = 0) -> list[CallBody]:
    """Return the calls whose arguments are complete: this dialect sends them as objects.

    Args:
        calls: Tool calls of one answer.
        first: Index of the first of them.
    """
    found: list[CallBody] = []
    for number, call in enumerate(calls, first):
        arguments = parse_arguments(call.arguments)
        if arguments is not None:
            found.append({"id": call.id, "function": {"index": number, "name": call.name, "arguments": arguments}})
    return found


def _shortened(request: ChatRequest, finished: Finished) -> Sequence[str]:
    """Return a warning if the beginning of `context` was left out of the prompt."""
    given = request.context
    if finished.tokens is None or tuple(finished.tokens.prompt[: len(given)]) == tuple(given):
        return ()
    return ("`context` was too long: its beginning was left out",)


def _end(finished: Finished) -> OllamaEnd:
    timings, usage = finished.timings, finished.usage
    end: OllamaEnd = {
        "done": True,
        # Ollama has no reason of its own for tool calls.
        "done_reason": "stop" if finished.reason == "tool_calls" else finished.reason,
        "total_duration": _nanoseconds(timings.queue_s + timings.prefill_s + timings.decode_s),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.decode_s),
    }
    if usage.left_out_messages:
        # An extension: Ollama does not report them.
        end["left_out_messages"] = usage.left_out_messages
    return end


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _error(error: EdgekitError) -> OllamaError:
    return {"error": error_text(error), "code": error.code}


def _line(chunk: Mapping[str, object]) -> bytes:
    return json_line(chunk).encode() + b"\n"
