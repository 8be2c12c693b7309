"""The parameters of a chat, as `/set` changes them: sampling, length, format, reasoning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from edgekit.errors import ConfigError, nearest, spelled
from edgekit.generation.message_json import tool_body
from edgekit.generation.types import ChatRequest, Message, ResponseFormat, Sampling, Tool

__all__ = ["PARAMETERS", "Settings"]

# Ollama's names -> ours.
_ALIASES = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
_SAMPLING = tuple(field.name for field in fields(Sampling) if field.name not in {"logit_bias", "left_to_model"})
_INTEGERS = frozenset({"max_tokens", "top_k", "repeat_last_n", "seed"})

PARAMETERS = (*_SAMPLING, "max_tokens", "stop")
"""What `/set parameter` takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Parameters of the requests of a chat.

    Attributes:
        sampling: Values by the names of `Sampling`; a name that is missing has the model's or the daemon's default.
        max_tokens: Maximum tokens of an answer; None is up to the context length.
        stop: Stop strings.
        response_format: Structured output.
        think: Whether a reasoning model reasons; None leaves it to the chat template.
        tools: Tools that the model may call.
    """

    sampling: Mapping[str, float]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    response_format: ResponseFormat | None = None
    think: bool | None = None
    tools: tuple[Tool, ...] = ()

    def with_parameter(self, name: str, value: str) -> Settings:
        """Return the settings with another value of one of `PARAMETERS`.

        Raises:
            ConfigError: The parameter is unknown, or its value is not a number.
            RequestError: The value is out of range.
        """
        name = _ALIASES.get(name, name)
        if name == "num_ctx":
            raise ConfigError(
                "the context length is fixed when the model is loaded", hint="edgekit run --context-length N"
            )
        if name not in PARAMETERS:
            close = nearest(name, [*PARAMETERS, *_ALIASES])
            hint = f"did you mean {close}?" if close else f"known: {', '.join(PARAMETERS)}"
            raise ConfigError(f"unknown parameter `{name}`", hint=hint)
        if name == "stop":
            changed = replace(self, stop=(*self.stop, value))
        elif name == "max_tokens":
            limit = int(_number(name, value))
            # Ollama's -1: without a limit.
            changed = replace(self, max_tokens=None if limit < 0 else limit)
        else:
            changed = replace(self, sampling={**self.sampling, name: _number(name, value)})
        changed.check()
        return changed

    def check(self) -> None:
        """Check the values.

        Raises:
            RequestError: One is out of range, or two tools have the same name.
        """
        self.request([Message("user", "")])

    def request(self, messages: list[Message]) -> ChatRequest:
        """Return the request for the model loaded here; what is not set is left to the model.

        Raises:
            RequestError: A value is out of range.
        """
        return ChatRequest(
            id="run",
            messages=tuple(messages),
            sampling=Sampling.of(**self.sampling),
            max_tokens=self.max_tokens,
            stop=self.stop,
            tools=self.tools,
            response_format=self.response_format,
            truncation="auto",
            template_arguments={} if self.think is None else {"enable_thinking": self.think},
        )

    def continuation(self, text: str) -> ChatRequest:
        """Return the request that continues a text, without a chat template.

        Raises:
            RequestError: The text is empty.
        """
        return replace(self.request([Message("user", text)]), messages=(), prompt=text, truncation="disabled")

    def body(self) -> dict[str, Any]:
        """Return the fields of a request to a daemon, without the messages; what is not set is left to the daemon."""
        fields: dict[str, Any] = {**self.sampling, "max_tokens": self.max_tokens, "truncation": "auto"}
        if self.stop:
            fields["stop"] = list(self.stop)
        if self.tools:
            fields["tools"] = [tool_body(tool) for tool in self.tools]
        if self.think is not None:
            fields["chat_template_kwargs"] = {"enable_thinking": self.think}
        if self.response_format is not None:
            schema = {"name": self.response_format.name or "answer", "schema": self.response_format.value}
            kind = self.response_format.kind
            fields["response_format"] = {"type": kind, **({"json_schema": schema} if kind == "json_schema" else {})}
        return fields

    def describe(self) -> dict[str, str]:
        """Return what is set, for `/show parameters`."""
        shown = {name: spelled(value) for name, value in self.sampling.items()}
        if self.max_tokens is not None:
            shown["max_tokens"] = str(self.max_tokens)
        if self.stop:
            shown["stop"] = ", ".join(json.dumps(text, ensure_ascii=False) for text in self.stop)
        if self.response_format is not None:
            shown["format"] = "json" if self.response_format.kind == "json_object" else "JSON schema"
        if self.think is not None:
            shown["think"] = "yes" if self.think else "no"
        if self.tools:
            shown["tools"] = ", ".join(tool.name for tool in self.tools)
        return shown


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name in _INTEGERS else float(text)
    except ValueError:
        kind = "whole number" if name in _INTEGERS else "number"
        raise ConfigError(f"`{name}` must be a {kind}, not `{text}`") from None
