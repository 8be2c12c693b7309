"""Loads a bundle as a chat model (runner, tokenizer, chat template, grammars) and prepares requests for it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.errors import BundleError, ConfigError, RequestError, RunnerError
from edgekit.generation.chat.infill import FillFormat, find_fill_format
from edgekit.generation.chat.prompt import Prompt, encode_chat, render_chat
from edgekit.generation.chat.template import TOOL_TEMPLATE, ChatTemplate
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.chat.truncation import leave_out, turns
from edgekit.generation.grammar import Grammar, GrammarCompiler, token_bytes
from edgekit.generation.grammar.rule import format_rule
from edgekit.generation.model_info import ModelInfo, read_bits, read_dimensions
from edgekit.generation.prepared import PreparedRequest
from edgekit.generation.time_limit import UNLIMITED, TimeLimit
from edgekit.generation.tools import ANY_OBJECT, ToolFormat, find_format, find_reasoning
from edgekit.generation.types import MODEL_SAMPLING, ChatRequest, Infill, Message, Sampling, Tool
from edgekit.runners import Explain, LoadOptions, RunnerChoice, choose_runner
from edgekit.runners.base import Chunk, KvShare, Runner

__all__ = ["ModelInfo", "TextModel", "load_model", "reload_model", "warm_up"]

logger = logging.getLogger(__name__)

# Settings of a tokenizer that no request needs.
_LARGE_SETTINGS = frozenset({"chat_template", "added_tokens_decoder"})


@dataclass(frozen=True, slots=True)
class TextModel:
    """A runner, and what turns chats into tokens and back.

    Attributes:
        template: The chat template; None for a model that only continues text.
        eos_token_ids: Tokens that end the output.
        grammars: Compiles grammars for constrained decoding.
        tool_template: The chat template for chats with tools; None if `template` serves those too.
        tool_format: The model's tool-call format; None if its template has none.
        reasoning: The format that marks its reasoning; None if its template has none.
        sampling: The model's own defaults of sampling parameters, by name.
        fill: How it fills in the middle; None if it does not.
        tokenizer_settings: The bundle's `tokenizer_config.json`, without template and added tokens.
        draft: Runner of a draft model with the same tokenizer and as many slots; None without one.
        context_length: As asked for: a runner may hold fewer (`info`).
    """

    info: ModelInfo
    runner: Runner
    tokenizer: Tokenizer
    template: ChatTemplate | None
    eos_token_ids: frozenset[int]
    grammars: GrammarCompiler
    tool_template: ChatTemplate | None = None
    tool_format: ToolFormat | None = None
    reasoning: ToolFormat | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    fill: FillFormat | None = None
    tokenizer_settings: Mapping[str, Any] = field(default_factory=dict)
    draft: Runner | None = None
    context_length: int = 0

    def encode(self, request: ChatRequest, limit: TimeLimit = UNLIMITED) -> Prompt:
        """Render and tokenize the prompt, however long it is.

        Args:
            request: The request.
            limit: Time for it.

        Raises:
            RequestError: The template rejects the messages or cannot render tools, or the model cannot fill a gap.
            BundleError: The template failed.
        """
        if request.prompt is None:
            return self._chat(request, limit)
        if isinstance(request.prompt, tuple):
            return Prompt(request.prompt)
        if request.infill is not None:
            return self._fill(request, request.prompt, request.infill, limit)
        return Prompt(self.tokenizer.encode_text(request.prompt))

    def prompt(self, request: ChatRequest, limit: TimeLimit = UNLIMITED) -> Prompt:
        """Return `encode`'s prompt if the model can answer it.

        Args:
            request: The request.
            limit: Time for it.

        Raises:
            RequestError: `context_length_exceeded`; or the template rejects the messages or cannot render tools; or the
                prompt has a token outside the model's vocabulary.
            BundleError: The template failed.
        """
        prompt = self.encode(request, limit)
        length = self.info.context_length
        # At least one generated token must fit too.
        if len(prompt.tokens) >= length:
            raise RequestError(
                f"the prompt has {len(prompt.tokens)} tokens; the context holds {length}, answer included",
                hint=_shorter(request, prompt),
                code="context_length_exceeded",
                param="messages" if request.prompt is None else "prompt",
            )
        if not prompt.tokens:
            if request.prompt is None:
                raise RequestError("the chat template renders these messages to an empty prompt", param="messages")
            why = "" if isinstance(request.prompt, tuple) else ", and this model has no BOS token"
            raise RequestError(f"the prompt is empty{why}", param="prompt")
        known, largest = self.runner.limits.vocab_size, max(prompt.tokens)
        if largest >= known:
            name = (
                f"`{text}`, token {largest} of the tokenizer"
                if (text := self.tokenizer.text(largest))
                else str(largest)
            )
            raise RequestError(
                f"the prompt contains {name}; the model's vocabulary has {known} tokens",
                hint="leave it out",
                param="messages" if request.prompt is None else "prompt",
            )
        return prompt

    def _fill(self, request: ChatRequest, prefix: str, infill: Infill, limit: TimeLimit) -> Prompt:
        if self.fill is None:
            raise RequestError(
                "this model cannot fill in the middle: its vocabulary has no tokens for it",
                hint=f"serve a code model such as Qwen2.5-Coder, or leave out `{infill.param}`",
                code="unsupported_parameter",
                param=infill.param,
            )
        room = self.info.context_length - self._reserved(request) if request.truncation == "auto" else None
        return Prompt(self.fill.encode(self.tokenizer, prefix, infill, room=room, limit=limit))

    def _reserved(self, request: ChatRequest) -> int:
        """Tokens of the context that a prompt leaves to the completion; never more than half of them."""
        length = self.info.context_length
        return max(1, min(length // 4 if request.max_tokens is None else request.max_tokens, length // 2))

    def render(self, request: ChatRequest) -> str:
        """Return the text of a chat's prompt.

        Raises:
            RequestError: There is no chat template; or it rejects the messages, or cannot render tools.
            BundleError: The template failed.
        """
        template, tools = self._template(request)
        return render_chat(
            template,
            request.messages,
            tools=tools,
            arguments=request.template_arguments,
            prompt_id=self.tool_format.prompt_id if self.tool_format else str,
            turn=request.turn,
        )

    def _template(self, request: ChatRequest) -> tuple[ChatTemplate, Sequence[Tool]]:
        """Return the template that renders a chat, and the tools that it shows."""
        if self.template is None:
            raise RequestError(
                "this model has no chat template: it continues text and answers no chats",
                hint="use /v1/completions, or `complete` in Python, or export it with a chat template",
                code="unsupported_parameter",
                param="messages",
            )
        tools = request.tools
        if self.tool_format is None:
            if tools and request.tool_choice.mode != "none":
                raise _no_tools("tools")
            if any(message.tool_calls for message in request.messages):
                # The template would drop them silently.
                raise _no_tools("messages")
            tools = ()
        uses_tools = bool(tools) or any(one.tool_calls or one.role == "tool" for one in request.messages)
        return (self.tool_template if uses_tools else None) or self.template, tools

    def _chat(self, request: ChatRequest, limit: TimeLimit) -> Prompt:
        template, tools = self._template(request)

        def encode(messages: Sequence[Message]) -> Prompt:
            return encode_chat(
                self.tokenizer,
                template,
                messages,
                tools=tools,
                arguments=request.template_arguments,
                prompt_id=self.tool_format.prompt_id if self.tool_format else str,
                turn=request.turn,
                limit=limit,
            )

        prompt = encode(request.messages)
        if request.truncation == "auto":
            room = self.info.context_length - self._reserved(request)
            if len(prompt.tokens) > room:
                prompt = leave_out(request.messages, encode, room)
        return self._after(request, prompt) if request.context else prompt

    def _after(self, request: ChatRequest, prompt: Prompt) -> Prompt:
        """Return a prompt with the request's context in front."""
        start = self.tokenizer.encode_text("")
        new = prompt.tokens[len(start) :] if start and list(prompt.tokens[: len(start)]) == start else prompt.tokens
        context = request.context
        if request.truncation == "auto":
            room = self.info.context_length - self._reserved(request) - len(new)
            context = context[max(0, len(context) - max(0, room)) :]
        return replace(prompt, tokens=[*context, *new])

    def prepare(self, request: ChatRequest, limit: TimeLimit = UNLIMITED) -> PreparedRequest:
        """Tokenize the prompt and compile the grammar.

        Args:
            request: The request.
            limit: Time for it; `preparation_timeout` when it has passed.

        Raises:
            RequestError: As `prompt`; or the grammar cannot be enforced, or the model cannot call tools.
            BundleError: The template failed.
        """
        request.sampling.check_vocabulary(self.runner.limits.vocab_size)
        prompt = self.prompt(request, limit)
        fills = self.fill is not None and request.prompt is not None and self.fill.opened_in(prompt.tokens)
        # The model's defaults are for chats: they would make code vary, and penalize its repetitions.
        request = replace(request, sampling=request.sampling.with_defaults({} if fills else self.sampling))
        limit.check()
        # Reasoning is separated even where no tool may be called.
        calling = self.tool_format if request.tools else None
        tools = (calling or self.reasoning) if request.prompt is None else None
        return PreparedRequest(
            request,
            prompt.tokens,
            # Without tools, and unless the prompt opens the reasoning, the grammar covers the entire output.
            grammar=self._grammar(request, tools if calling or prompt.thinking else None, thinking=prompt.thinking),
            tool_format=tools,
            left_out=prompt.left_out,
            thinking=prompt.thinking,
            end_tokens=self.fill.end_tokens if self.fill is not None and fills else frozenset(),
        )

    def token_bytes(self, token: int) -> bytes:
        """Return a token's bytes; for a special token, its name."""
        table = _token_table(self.tokenizer)
        return table[token] if token < len(table) else b""

    def _grammar(self, request: ChatRequest, tools: ToolFormat | None, *, thinking: bool) -> Grammar | None:
        response_format = request.response_format
        if tools is None:
            return None if response_format is None else self.grammars.compile(response_format)
        offered = request.tools if self.tool_format else ()
        content = None if response_format is None else format_rule(response_format)

        def compile_for(offered: Sequence[Tool]) -> Grammar | None:
            lark = tools.lark(
                offered, request.tool_choice, request.parallel_tool_calls, thinking=thinking, content=content
            )
            param = "tools" if offered or response_format is None else response_format.param
            return None if lark is None else self.grammars.compile_lark(lark, param=param)

        try:
            return compile_for(offered)
        except RequestError:
            relaxed = [tool if tool.strict or not tool.parameters else _relaxed(tool) for tool in offered]
            if relaxed == list(offered):
                raise
            # Together the schemas are too complex: only those of strict tools must be enforced.
            return compile_for(relaxed)

    def close(self) -> None:
        """Release the runner and the draft model's runner."""
        self.runner.close()
        if self.draft is not None:
            self.draft.close()


def load_model(
    bundle: Path | Bundle,
    *,
    context_length: int | None = None,
    runner: str = "auto",
    threads: int | None = None,
    parallel: int = 1,
    kv_bits: int | None = None,
    shares_cores: bool = False,
    kv_share: KvShare | None = None,
    accept: Callable[[Runner], None] | None = None,
    explain: Explain | None = None,
) -> TextModel:
    """Load a bundle.

    Args:
        bundle: The bundle, or its folder.
        context_length: Maximum tokens of a sequence; None takes the bundle's.
        runner: `auto`, or the name of the only runner to try.
        threads: Threads of a runner on the CPU; None takes one per usable core (`cores.py`).
        parallel: Number of sequence slots.
        kv_bits: 8 quantizes the KV cache to 8 bits; None keeps the model's own precision.
        shares_cores: Another model, such as a draft model, runs between this one's steps.
        kv_share: As for `open_runner`.
        accept: Called with a runner that has run a step; a `RunnerError` rejects it, and the next one is tried.
        explain: As for `choose_runner`.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: The context length is out of the bundle's range, or `runner` is none that runs it.
        RunnerError: The artifact could not be loaded, or produces NaN or infinity.
    """
    if isinstance(bundle, Path):
        bundle = open_bundle(bundle)
    manifest = bundle.manifest
    length = manifest.context_length if context_length is None else context_length
    if not 2 <= length <= manifest.context_length:
        raise ConfigError(
            f"the context length must be between 2 and {manifest.context_length}, not {length}",
            hint=f"{manifest.name} was exported for {manifest.context_length} tokens",
        )
    sampling = _sampling(manifest.sampling)
    # Tokenizer and template first: they load fast, and an error in them should not wait for the weights.
    tokenizer = Tokenizer.load(bundle.path / "tokenizer.json")
    settings = _read_json(bundle.path / "tokenizer_config.json")
    strings = _special_token_strings(settings)
    source = _template_source(bundle.path, settings)
    template = None if source is None else ChatTemplate(source, strings)
    tool_source = _read_template(bundle.path / TOOL_TEMPLATE)
    tool_template = None if tool_source is None else ChatTemplate(tool_source, strings)
    tool_format = find_format(tool_source or source or "", tokenizer.special_tokens)
    reasoning = find_reasoning(source or "", tokenizer.special_tokens)
    fill = find_fill_format(tokenizer)
    options = LoadOptions(length, threads, parallel, kv_bits=kv_bits, shares_cores=shares_cores, kv_share=kv_share)
    choice = _choose_runner(bundle, options, runner, accept, explain)
    loaded = choice.runner
    return TextModel(
        info=ModelInfo(
            name=manifest.name,
            created=_epoch(manifest.created),
            context_length=min(length, loaded.limits.context_length),
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            format=manifest.artifact.kind,
            size_bytes=sum(file.size for file in manifest.files),
            capabilities=(
                "completion",
                *(["insert"] if fill else ()),
                *(["tools"] if tool_format else ()),
                *(["thinking"] if reasoning else ()),
            ),
            runner=str(loaded.backend),
            rejected=choice.rejected,
            licence=manifest.licence,
            bits=read_bits(manifest.recipe),
            template=source or "",
            fill_template=fill.template if fill else "",
            sampling=sampling,
            dimensions=read_dimensions(_read_json(bundle.path / "config.json")),
        ),
        runner=loaded,
        tokenizer=tokenizer,
        template=template,
        tool_template=tool_template,
        eos_token_ids=frozenset(manifest.eos_token_ids),
        grammars=GrammarCompiler(tokenizer, vocab_size=loaded.limits.vocab_size, eos_token_ids=manifest.eos_token_ids),
        tool_format=tool_format,
        reasoning=reasoning,
        sampling=sampling,
        context_length=length,
        fill=fill,
        tokenizer_settings={name: value for name, value in settings.items() if name not in _LARGE_SETTINGS},
    )


def reload_model(
    model: TextModel,
    bundle: Bundle,
    *,
    runner: str,
    threads: int | None = None,
    parallel: int = 1,
    kv_bits: int | None = None,
    kv_share: KvShare | None = None,
    accept: Callable[[Runner], None] | None = None,
) -> TextModel:
    """Load a model's artifact again, into another runner; everything else is shared with the model.

    Args:
        model: From `load_model`; its runner may be closed, and stays the caller's to close.
        bundle: The bundle that it was loaded from.
        runner: As for `load_model`, like the rest.
        threads: As for `load_model`.
        parallel: As for `load_model`.
        kv_bits: As for `load_model`.
        kv_share: As for `load_model`.
        accept: As for `load_model`.

    Raises:
        BundleError: The bundle is damaged.
        RunnerError: The artifact could not be loaded, or the runner's vocabulary is another one.
    """
    options = LoadOptions(
        # The runner's own limit may have been shorter.
        min(model.context_length, bundle.manifest.context_length),
        threads,
        parallel,
        kv_bits=kv_bits,
        shares_cores=model.draft is not None,
        kv_share=kv_share,
    )

    def check(loaded: Runner) -> None:
        size, known = loaded.limits.vocab_size, model.runner.limits.vocab_size
        if size != known:
            raise RunnerError(f"it has a vocabulary of {size} tokens; that of the model has {known}")
        if accept is not None:
            accept(loaded)

    choice = _choose_runner(bundle, options, runner, check)
    loaded = choice.runner
    return replace(
        model,
        runner=loaded,
        info=replace(
            model.info,
            context_length=min(model.context_length, loaded.limits.context_length),
            runner=str(loaded.backend),
            rejected=choice.rejected,
        ),
    )


def _choose_runner(
    bundle: Bundle,
    options: LoadOptions,
    runner: str,
    accept: Callable[[Runner], None] | None,
    explain: Explain | None = None,
) -> RunnerChoice:
    """Load the artifact into the first runner that works."""
    manifest = bundle.manifest
    artifact = manifest.artifact

    def check(loaded: Runner) -> None:
        warm_up(loaded, min(manifest.eos_token_ids, default=0))
        if accept is not None:
            accept(loaded)

    return choose_runner(
        bundle.path, artifact.kind, artifact.dialect, options, runner=runner, accept=check, explain=explain
    )


def _relaxed(tool: Tool) -> Tool:
    return replace(tool, parameters=ANY_OBJECT)


@lru_cache(maxsize=2)
def _token_table(tokenizer: Tokenizer) -> list[bytes]:
    return token_bytes(tokenizer)


def _no_tools(param: str) -> RequestError:
    return RequestError(
        "this model's chat template does not support tool calls",
        hint="serve a model that was trained to call tools, such as Qwen2.5-Instruct",
        code="unsupported_parameter",
        param=param,
    )


def warm_up(runner: Runner, token: int) -> None:
    """Run one step: it pages the weights in and finds a broken artifact before the first request.

    Raises:
        RunnerError: The step failed, or its logits contain NaN or infinity.
    """
    limits = runner.limits
    logits = runner.run([Chunk(0, [token] * min(32, limits.max_chunk, limits.context_length))])[0]
    if not np.isfinite(logits).all():
        raise RunnerError("the model's logits contain NaN or infinity", hint="check the bundle: edgekit verify DIR")
    runner.truncate(0, 0)


def _sampling(stated: Mapping[str, Any]) -> dict[str, float]:
    """The manifest's sampling defaults; a newer edgekit may have more of them."""
    known = {name: value for name, value in stated.items() if name in MODEL_SAMPLING}
    try:
        Sampling(**known)
    except RequestError as error:
        raise BundleError(f"the manifest's sampling defaults are not valid: {error.message}") from error
    return known


def _template_source(folder: Path, settings: dict[str, Any]) -> str | None:
    source = _read_template(folder / "chat_template.jinja")
    if source is None:
        source = settings.get("chat_template")
    return source if isinstance(source, str) else None


def _read_template(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path.name}: {error}") from error


def _special_token_strings(settings: dict[str, Any]) -> dict[str, str]:
    strings = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        # A string or, from older libraries, an object that describes the token.
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            strings[name] = value
    return strings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path.name} is not a JSON object")
    return data


def _epoch(created: str) -> int:
    try:
        # Python 3.10 does not parse the Z.
        return int(datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        return 0


def _shorter(request: ChatRequest, prompt: Prompt) -> str:
    """Return the hint for a prompt that is too long."""
    if request.prompt is not None:
        return "shorten the prompt"
    if not turns(request.messages):
        return "shorten it: there are no older messages to leave out"
    if prompt.left_out:
        return "shorten the last message: all older ones are left out already"
    return "shorten the messages or leave out old ones"
