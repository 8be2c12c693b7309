"""`POST /completion` and `POST /infill`: replies in llama-server's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.daemon.api import CollectedReply, check_model, reasons
from edgekit.daemon.api.llama_server import LlamaServerCall, parse_llama_completion, parse_llama_infill
from edgekit.daemon.http.endpoint import RequestContext
from edgekit.daemon.http.errors import openai_error
from edgekit.daemon.http.openai import event
from edgekit.errors import EdgekitError
from edgekit.generation.types import ChatRequest, ChoiceFinished, Delta, Finished, FinishReason, ToolCallDelta
from edgekit.generation.usage import Timings, Usage

__all__ = ["completion_dialect", "infill_dialect"]


def completion_dialect(body: bytes, context: RequestContext) -> LlamaServerReply:
    """Parse a body of `/completion`."""
    return LlamaServerReply(parse_llama_completion(body, request_id=context.id, client=context.client), context)


def infill_dialect(body: bytes, context: RequestContext) -> LlamaServerReply:
    """Parse a body of `/infill`."""
    return LlamaServerReply(parse_llama_infill(body, request_id=context.id, client=context.client), context)


class LlamaServerReply:
    """The reply to `/completion` or `/infill`: one object for each completion, a list if several were requested."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, call: LlamaServerCall, context: RequestContext) -> None:
        check_model(call.options.model, context.model)
        self.requests: Sequence[ChatRequest] = (call.request,)
        self.request = call.request
        self.stream = call.options.stream
        self._call = call
        self._model = context.model
        self._texts = [""] * call.request.n

    def accepted(self, prompt_tokens: int) -> None:
        """Take nothing: the prompt is counted at the end."""

    def full(self, reply: CollectedReply, finished: Finished) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the completion, or the list of them."""
        ends = enumerate(zip(reply.answers, reasons(finished, self.request.n), strict=True))
        bodies = [self._body(index, choice.text, choice.text, reason, finished) for index, (choice, reason) in ends]
        return bodies if self._call.many else bodies[0]

    def start(self) -> bytes:
        """Return nothing: the format has no first chunk of its own."""
        return b""

    def keep_alive(self) -> bytes:
        """Return a comment, which readers of server-sent events skip."""
        return b": keep-alive\n\n"

    def delta(self, delta: Delta | ToolCallDelta) -> bytes:
        """Return a chunk of text."""
        if isinstance(delta, ToolCallDelta):
            return b""  # impossible: a completion has no tools
        self._texts[delta.index] += delta.text
        return event({"index": delta.index, "content": delta.text, "tokens": [], "stop": False})

    def choice_finished(self, choice: ChoiceFinished) -> bytes:  # noqa: ARG002
        """Return nothing: the last chunks have the counts, which are known at the end."""
        return b""

    def finish(self, finished: Finished) -> bytes:
        """Return the last chunk of each completion."""
        ends = enumerate(reasons(finished, self.request.n))
        return b"".join(event(self._body(index, "", self._texts[index], reason, finished)) for index, reason in ends)

    def failure(self, error: EdgekitError) -> bytes:
        """Return an error event."""
        return event(openai_error(error))

    def _body(self, index: int, content: str, text: str, reason: FinishReason, finished: Finished) -> dict[str, Any]:
        """Return the object of a completion that has ended.

        Args:
            index: Its index.
            content: The text that the object has.
            text: The whole text.
            reason: Why it has ended.
            finished: The end of the request.
        """
        tokens = finished.tokens
        output = list(tokens.outputs[index]) if tokens else []
        usage = finished.usage
        stop = finished.stops[index] if finished.stops else None
        return {
            "index": index,
            "content": content,
            "tokens": output if self._call.return_tokens else [],
            "id_slot": 0,
            "stop": True,
            "model": self._model.name,
            "tokens_predicted": len(output) if tokens else usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": {"n_ctx": self._model.context_length, "n_predict": self.request.max_tokens or -1},
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": "limit" if reason == "length" else "eos" if stop is None else "word",
            "stopping_word": stop or "",
            "tokens_cached": usage.prompt_tokens + usage.completion_tokens,
            "timings": _timings(finished.timings, usage),
        }


def _timings(timings: Timings, usage: Usage) -> dict[str, float]:
    """Return llama-server's `timings`; a rate that was not measured is 0."""
    rates = timings.as_rates(usage)
    parts = (
        ("prompt", usage.prompt_tokens - usage.cached_tokens, timings.prefill_s, "prompt_tokens_per_s"),
        ("predicted", usage.completion_tokens, timings.decode_s, "decode_tokens_per_s"),
    )
    found: dict[str, float] = {"cache_n": usage.cached_tokens}
    for name, count, seconds, rate in parts:
        per_second = rates.get(rate, 0.0)
        found[f"{name}_n"] = count
        found[f"{name}_ms"] = round(seconds * 1000, 3)
        found[f"{name}_per_token_ms"] = round(1000 / per_second, 3) if per_second else 0.0
        found[f"{name}_per_second"] = round(per_second, 3)
    return found
