"""A model ready to chat: runner, tokenizer and template of one bundle, side by side.

It knows where a bundle keeps its text side, and nothing of how the artifact is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.errors import BundleError, ConfigError, RequestError, RunnerError
from edgekit.generation.grammar import Grammar, GrammarCompiler, token_bytes
from edgekit.generation.grammar.rule import format_rule
from edgekit.generation.prompt import Prompt, encode_chat
from edgekit.generation.request import ChatRequest, Message
from edgekit.generation.template import ChatTemplate
from edgekit.generation.ticket import OnEvent, Ticket
from edgekit.generation.tokenizer import Tokenizer
from edgekit.generation.tools import ToolFormat, find_format, find_reasoning
from edgekit.generation.truncation import leave_out
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner

__all__ = ["ModelInfo", "TextModel", "load_model", "warm_up"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What doors tell callers about the model.

    Attributes:
        created: Seconds since the epoch.
        context_length: Tokens a prompt and its answer may have together.
        architecture: Hugging Face's `model_type`; empty if unknown.
        parameters: How many weights; 0 if unknown.
        format: Kind of the artifact: `onnx`, `mlx`.
        size_bytes: Of the bundle's files.
        capabilities: What it can do, in Ollama's words: `completion`, `tools`, `thinking`.
        runner: What runs it here: `cpu (avx2)`, `onnxruntime`.
    """

    name: str
    created: int
    context_length: int
    architecture: str = ""
    parameters: int = 0
    format: str = ""
    size_bytes: int = 0
    capabilities: tuple[str, ...] = ("completion",)
    runner: str = ""


@dataclass(frozen=True, slots=True)
class TextModel:
    """A runner with everything that turns chats into its tokens and back.

    Attributes:
        eos_token_ids: Tokens that end an answer.
        grammars: Compiles what answers are held to.
        tool_format: How the model calls tools; None if its template knows none.
        reasoning: How its reasoning is told from its answers; None if its template knows none.
        draft: A smaller model of the same tokenizer, with as many slots; None guesses without one.
    """

    info: ModelInfo
    runner: Runner
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: frozenset[int]
    grammars: GrammarCompiler
    tool_format: ToolFormat | None = None
    reasoning: ToolFormat | None = None
    draft: Runner | None = None

    def prompt(self, request: ChatRequest) -> Prompt:
        """Return the prompt.

        Raises:
            RequestError: `context_length_exceeded`, or the template refuses the messages, or knows no tools, or the
                tokenizer has a token for some of it that the model does not know.
            BundleError: The template failed.
        """
        if request.prompt is not None:
            prompt = Prompt(self.tokenizer.encode_text(request.prompt))
        else:
            prompt = self._chat(request)
        length = self.info.context_length
        # At least one token of the answer must fit too.
        if len(prompt.tokens) >= length:
            raise RequestError(
                f"the prompt has {len(prompt.tokens)} tokens; the context holds {length}, answer included",
                hint="shorten the messages or leave out old ones" if request.prompt is None else "shorten the prompt",
                code="context_length_exceeded",
                param="messages" if request.prompt is None else "prompt",
            )
        if not prompt.tokens:
            if request.prompt is None:
                raise RequestError("the chat template makes an empty prompt of these messages", param="messages")
            raise RequestError("the prompt is empty, and this model has no token to begin a text with", param="prompt")
        known, largest = self.runner.limits.vocab_size, max(prompt.tokens)
        if largest >= known:
            raise RequestError(
                f"the prompt holds `{self.tokenizer.text(largest)}`, token {largest} of the tokenizer, and the model "
                f"knows {known} tokens",
                hint="leave it out",
                param="messages" if request.prompt is None else "prompt",
            )
        return prompt

    def _chat(self, request: ChatRequest) -> Prompt:
        tools = request.tools
        if self.tool_format is None:
            if tools and request.tool_choice.mode != "none":
                raise _no_tools("tools")
            if any(message.tool_calls for message in request.messages):
                # The template would leave them out without a word.
                raise _no_tools("messages")
            tools = ()

        def encode(messages: Sequence[Message]) -> Prompt:
            return encode_chat(
                self.tokenizer,
                self.template,
                messages,
                tools=tools,
                arguments=request.template_arguments,
                prompt_id=self.tool_format.prompt_id if self.tool_format else str,
            )

        prompt = encode(request.messages)
        if request.truncation == "auto":
            length = self.info.context_length
            # Room for the answer that is wanted, but not so much that the chat is forgotten for it.
            room = min(request.max_tokens or length // 4, length // 2)
            if len(prompt.tokens) > length - max(room, 1):
                prompt = leave_out(request.messages, encode, length - max(room, 1))
        return prompt

    def ticket(
        self,
        request: ChatRequest,
        on_event: OnEvent,
        *,
        submitted: float,
        wake: Callable[[], None] = lambda: None,
    ) -> Ticket:
        """Make a request ready for the engine: its prompt's tokens, and what holds its answers to a form.

        Raises:
            RequestError: As `prompt`; or the grammar cannot be enforced, the model knows no tools.
            BundleError: The template failed.
        """
        unknown = [token for token in request.sampling.logit_bias if token >= self.runner.limits.vocab_size]
        if unknown:
            raise RequestError(
                f"`logit_bias` names token {unknown[0]}; there are {self.runner.limits.vocab_size}", param="logit_bias"
            )
        prompt = self.prompt(request)
        # What the model thinks is told apart even where it may call nothing.
        calling = self.tool_format if request.tools else None
        tools = (calling or self.reasoning) if request.prompt is None else None
        return Ticket(
            request,
            prompt.tokens,
            on_event,
            submitted=submitted,
            wake=wake,
            # Where nothing is called, and the prompt does not make it think, a form is all of an answer.
            grammar=self._grammar(request, tools if calling or prompt.thinking else None, thinking=prompt.thinking),
            tools=tools,
            left_out=prompt.left_out,
            thinking=prompt.thinking,
        )

    def spell(self, token: int) -> bytes:
        """Return a token's bytes; a special token's are its name."""
        spellings = _spellings(self.tokenizer)
        return spellings[token] if token < len(spellings) else b""

    def _grammar(self, request: ChatRequest, tools: ToolFormat | None, *, thinking: bool) -> Grammar | None:
        wanted = request.response_format
        if tools is None:
            return None if wanted is None else self.grammars.compile(wanted)
        offered = request.tools if self.tool_format else ()
        lark = tools.lark(
            offered,
            request.tool_choice,
            request.parallel_tool_calls,
            thinking=thinking,
            content=None if wanted is None else format_rule(wanted),
        )
        param = "tools" if offered else "response_format"
        return None if lark is None else self.grammars.compile_lark(lark, param=param)

    def close(self) -> None:
        """Release the runner, and the draft model's."""
        self.runner.close()
        if self.draft is not None:
            self.draft.close()


def load_model(
    bundle: Path | Bundle,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    parallel: int = 1,
    kv_bits: int | None = None,
    shares_cores: bool = False,
) -> TextModel:
    """Load a bundle.

    Args:
        bundle: The bundle, or its folder.
        context_length: Tokens a sequence may hold; None takes the bundle's own.
        threads: Threads of a runner on the CPU; None takes one per physical core.
        parallel: Sequences held at the same time.
        kv_bits: 8 for a KV cache of 8 bits; None keeps it as the model computes it.
        shares_cores: Another model computes in between the steps of this one, as a draft model does.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: It does not hold so long a context.
        RunnerError: The artifact could not be loaded, or does not compute numbers.
    """
    if isinstance(bundle, Path):
        bundle = open_bundle(bundle)
    manifest = bundle.manifest
    length = manifest.context_length if context_length is None else context_length
    if not 2 <= length <= manifest.context_length:
        raise ConfigError(
            f"the context length must be between 2 and {manifest.context_length}, not {length}",
            hint=f"{manifest.name} was made for {manifest.context_length} tokens",
        )
    # The text side first: it loads in no time, and a fault in it should not wait for the weights.
    tokenizer = Tokenizer.load(bundle.path / "tokenizer.json")
    settings = _read_json(bundle.path / "tokenizer_config.json")
    template = ChatTemplate(_template_source(bundle.path, settings), _special_texts(settings))
    tool_format = find_format(template.source, tokenizer.special_tokens)
    reasoning = find_reasoning(template.source, tokenizer.special_tokens)
    artifact = manifest.artifact
    runner = open_runner(
        bundle.path,
        artifact.kind,
        artifact.dialect,
        context_length=length,
        threads=threads,
        sequence_slots=parallel,
        kv_bits=kv_bits,
        shares_cores=shares_cores,
    )
    try:
        warm_up(runner, min(manifest.eos_token_ids, default=0))
    except BaseException:
        runner.close()
        raise
    return TextModel(
        info=ModelInfo(
            name=manifest.name,
            created=_epoch(manifest.created),
            context_length=min(length, runner.limits.context_length),
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            format=artifact.kind,
            size_bytes=sum(file.size for file in manifest.files),
            capabilities=("completion", *(["tools"] if tool_format else ()), *(["thinking"] if reasoning else ())),
            runner=str(runner.backend),
        ),
        runner=runner,
        tokenizer=tokenizer,
        template=template,
        eos_token_ids=frozenset(manifest.eos_token_ids),
        grammars=GrammarCompiler(tokenizer, vocab_size=runner.limits.vocab_size, eos_token_ids=manifest.eos_token_ids),
        tool_format=tool_format,
        reasoning=reasoning,
    )


@lru_cache(maxsize=2)
def _spellings(tokenizer: Tokenizer) -> list[bytes]:
    return token_bytes(tokenizer)


def _no_tools(param: str) -> RequestError:
    return RequestError(
        "this model's chat template has no way to call tools",
        hint="serve a model that was trained to call them, such as Qwen2.5-Instruct",
        code="unsupported_parameter",
        param=param,
    )


def warm_up(runner: Runner, token: int) -> None:
    """Take one step, which brings weights into memory and shows a broken artifact before anybody asks.

    Raises:
        RunnerError: It does not run, or does not compute numbers.
    """
    limits = runner.limits
    logits = runner.run([Chunk(0, [token] * min(32, limits.max_chunk, limits.context_length))])[0]
    if not np.isfinite(logits).all():
        raise RunnerError("the model computes logits that are not numbers", hint="check it: edgekit verify DIR")
    runner.truncate(0, 0)


def _template_source(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path.name}: {error}") from error
    source = settings.get("chat_template")
    if not isinstance(source, str):
        raise BundleError("the bundle has no chat template", hint="export the -Instruct variant of the model")
    return source


def _special_texts(settings: dict[str, Any]) -> dict[str, str]:
    texts = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        # Written as a string or, by older libraries, as a token's whole description.
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            texts[name] = value
    return texts


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
        # Python 3.10 does not read the Z.
        return int(datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0
