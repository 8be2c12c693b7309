"""`edgekit.load` and the model that it returns: chat, completion and token counts in this process, without a daemon."""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from edgekit.api.parameters import ChatParameters, CompletionParameters, Messages, as_json
from edgekit.api.reply import AsyncStream, Reply, Stream
from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.config import GenerationConfig, RunnerName
from edgekit.daemon.api import parse_chat, parse_completion
from edgekit.daemon.api.ignored import collect_ignored, shown_name
from edgekit.daemon.api.validation import unsupported
from edgekit.errors import RequestError, RunnerError
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.startup import open_model, plan_memory, start_worker
from edgekit.generation.types import ChatRequest, Event
from edgekit.yaml_lines import check

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from edgekit.generation.model import TextModel

__all__ = ["Model", "load"]

# Callers of this process wait for their turn; an `overloaded` error serves callers who can go elsewhere.
_MAX_QUEUE = 10_000


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    context_length: int | None = None,
    runner: RunnerName | None = None,
    threads: int | None = None,
    parallel: int | None = None,
    draft_bundle: str | os.PathLike[str] | None = None,
    ignore_compatible: bool | None = None,
    config: GenerationConfig | None = None,
) -> Model:
    """Load a bundle and return a model that answers; close it, or use it in a `with` block.

    The first time, and after a change, every byte of the bundle is verified.

    Args:
        bundle: The bundle's folder, as `edgekit export` wrote it.
        context_length: Tokens a conversation may hold; None takes the bundle's own.
        runner: What runs the model: `auto` (the default) the best that works here; `cuda`, `cpu`, … only that one.
        threads: Threads of a runner on the CPU; None takes one per usable core (`edgekit doctor` shows them).
        parallel: How many requests are answered at the same time, up to 64 (8 unless given); further ones wait.
        draft_bundle: A smaller model of the same tokenizer, for speculative decoding.
        ignore_compatible: Load a bundle that was made for other targets than this machine.
        config: All settings of `generation:` in `edgekit.yaml`; the arguments above override it.

    Raises:
        BundleError: There is no bundle, or it is damaged, or (`IncompatibleBundleError`) made for other targets.
        ConfigError: A setting is out of its range, the context is longer than the bundle's, or the draft model has
            another tokenizer.
        RunnerError: Nothing on this machine runs it, or it cannot be loaded.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    given: dict[str, Any] = {
        "context_length": context_length,
        "runner": runner,
        "threads": threads,
        "parallel": parallel,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if ignore_compatible is not None:
        given["ignore_compatible"] = ignore_compatible
    if draft_bundle is not None:
        given["draft_bundle"] = Path(draft_bundle)
    settings = replace(config or GenerationConfig(max_queue=_MAX_QUEUE), **given)
    check(settings)
    model = open_model(opened, settings)
    try:
        worker = start_worker(model, opened, settings, plan_memory(model, opened, settings))
    except BaseException:
        model.close()
        raise
    return Model(model, worker)


class Model:
    """A loaded model; made by `edgekit.load`.

    Methods may be called from any thread and, in their `a…` form, from asyncio. `parallel` of them are answered at the
    same time, by continuous batching; the prompt's prefix is cached from one call to the next.

    Attributes:
        name: The model's name.
        context_length: Tokens a prompt and its answer may have together.
    """

    def __init__(self, model: TextModel, worker: EngineWorker) -> None:
        self.name = model.info.name
        self.context_length = model.info.context_length
        self._pid = os.getpid()
        self._model = model
        self._worker = worker
        # Also at the interpreter's exit: a thread inside a native library must not outlive it.
        self._finalizer = weakref.finalize(self, worker.stop)

    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[False] = False, **parameters: Unpack[ChatParameters]
    ) -> Reply: ...

    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **parameters: Unpack[ChatParameters]) -> Stream: ...

    def chat(self, messages: Messages, *, stream: bool = False, **parameters: Unpack[ChatParameters]) -> Reply | Stream:
        """Answer a conversation.

        Args:
            messages: A user's message, or a conversation in the OpenAI API's form.
            stream: Return a `Stream` of deltas at once, instead of the complete `Reply`.
            **parameters: Those of `POST /v1/chat/completions` (docs/http.md), under the same names: `max_tokens`,
                `temperature`, `top_p`, `seed`, `stop`, `response_format`, `tools`, `tool_choice`, `logprobs`, … For
                `response_format`, `{"type": "json_schema", "json_schema": {"schema": …}}` is enforced token by token.

        Raises:
            RequestError: A parameter is unknown or out of its range, the conversation is too long, or the format cannot
                be enforced; `code` and `param` say more.
            RunnerError: The model could not be run.
        """
        return self._sync(self._chat(messages, parameters), stream=stream)

    @overload
    async def achat(
        self, messages: Messages, *, stream: Literal[False] = False, **parameters: Unpack[ChatParameters]
    ) -> Reply: ...

    @overload
    async def achat(
        self, messages: Messages, *, stream: Literal[True], **parameters: Unpack[ChatParameters]
    ) -> AsyncStream: ...

    async def achat(
        self, messages: Messages, *, stream: bool = False, **parameters: Unpack[ChatParameters]
    ) -> Reply | AsyncStream:
        """`chat` for asyncio: `await model.achat(…)`, or `async for delta in await model.achat(…, stream=True)`."""
        return await self._async(self._chat(messages, parameters), stream=stream)

    @overload
    def complete(
        self, prompt: str, *, stream: Literal[False] = False, **parameters: Unpack[CompletionParameters]
    ) -> Reply: ...

    @overload
    def complete(self, prompt: str, *, stream: Literal[True], **parameters: Unpack[CompletionParameters]) -> Stream: ...

    def complete(
        self, prompt: str, *, stream: bool = False, **parameters: Unpack[CompletionParameters]
    ) -> Reply | Stream:
        """Continue a text as it is, without a chat template.

        Args:
            prompt: The text.
            stream: As for `chat`.
            **parameters: Those of `POST /v1/completions` (docs/http.md), except that `max_tokens` has no default.

        Raises:
            RequestError, RunnerError: As for `chat`.
        """
        return self._sync(self._completion(prompt, parameters), stream=stream)

    @overload
    async def acomplete(
        self, prompt: str, *, stream: Literal[False] = False, **parameters: Unpack[CompletionParameters]
    ) -> Reply: ...

    @overload
    async def acomplete(
        self, prompt: str, *, stream: Literal[True], **parameters: Unpack[CompletionParameters]
    ) -> AsyncStream: ...

    async def acomplete(
        self, prompt: str, *, stream: bool = False, **parameters: Unpack[CompletionParameters]
    ) -> Reply | AsyncStream:
        """`complete` for asyncio."""
        return await self._async(self._completion(prompt, parameters), stream=stream)

    def count_tokens(self, messages: Messages, *, raw: bool = False, **parameters: Any) -> int:
        """Return how many tokens a prompt has, as `usage.prompt_tokens` would say.

        Args:
            messages: As for `chat`; with `raw`, a text as `complete` takes it.
            raw: Count the text alone, without a chat template.
            **parameters: Those of `chat` that change the prompt, such as `tools`.

        Raises:
            RequestError: As for `chat`; too long a prompt is refused too.
        """
        if not raw:
            request = self._chat(messages, parameters)
        elif isinstance(messages, str):
            request = self._completion(messages, parameters)
        else:
            raise RequestError("`raw` counts the tokens of a string", param="messages")
        return len(self._model.prompt(request).tokens)

    def close(self) -> None:
        """Cancel what runs and free the model; calling it again does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Name, context and whether it is closed."""
        state = "" if self._finalizer.alive else ", closed"
        return f"<edgekit.Model {self.name}, context_length={self.context_length}{state}>"

    def _chat(self, messages: Messages, parameters: Mapping[str, Any]) -> ChatRequest:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        elif isinstance(messages, Mapping | bytes) or not isinstance(messages, Iterable):
            raise RequestError("`messages` must be a string or a list of messages", param="messages")
        return _parsed(parse_chat, {"messages": list(messages), **parameters})

    def _completion(self, prompt: str, parameters: Mapping[str, Any]) -> ChatRequest:
        request = _parsed(parse_completion, {"prompt": prompt, **parameters})
        if parameters.get("max_tokens") is None:
            request = replace(request, max_tokens=None)
        return request

    def _sync(self, request: ChatRequest, *, stream: bool) -> Reply | Stream:
        opened = Stream(lambda on_event: self._submit(request, on_event))
        if stream:
            return opened
        with opened:
            return opened.reply()

    async def _async(self, request: ChatRequest, *, stream: bool) -> Reply | AsyncStream:
        opened = await AsyncStream.open(lambda on_event: self._submit(request, on_event))
        if stream:
            return opened
        async with opened:
            return await opened.reply()

    def _submit(self, request: ChatRequest, on_event: Callable[[Event], None]) -> Callable[[], None]:
        if not self._finalizer.alive:
            raise RunnerError("the model is closed", hint="load it again: edgekit.load(…)")
        if os.getpid() != self._pid:
            # Threads do not survive a fork: nothing would ever answer.
            raise RunnerError("the model was loaded before this process was forked", hint="load it after the fork")
        return self._worker.submit(request, on_event).cancel


def _parsed(parse: Callable[..., tuple[ChatRequest, object]], body: Mapping[str, Any]) -> ChatRequest:
    with collect_ignored() as ignored:
        request, _ = parse(as_json(body), request_id=secrets.token_hex(8))
    # Over HTTP a header names them. Here an unknown argument is an error, as everywhere in Python.
    for name in body:
        if shown_name(name) in ignored:
            raise unsupported(name)
    if request.n != 1:
        raise RequestError("`n` must be 1 here", hint="call again for another answer", param="n")
    return request
