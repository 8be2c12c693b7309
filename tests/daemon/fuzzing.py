"""Generates hostile and nearly valid requests to both APIs; the same seed gives the same requests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgekit.daemon.api.chat import ChatBody as Chat
from edgekit.daemon.api.completion import CompletionBody as Completion
from edgekit.daemon.api.llama_server import InfillBody as LlamaInfill
from edgekit.daemon.api.llama_server import LlamaCompletionBody as LlamaCompletion
from edgekit.daemon.api.messages import ChatMessage
from edgekit.daemon.api.ollama import OllamaChatBody as OllamaChat
from edgekit.daemon.api.ollama import OllamaGenerateBody as OllamaGenerate
from edgekit.daemon.api.ollama import OllamaOptions
from edgekit.daemon.api.ollama_messages import OllamaMessage
from edgekit.daemon.api.other_fields import CHAT_NOOP, COMPLETION_NOOP, IGNORED

__all__ = ["Case", "cases"]


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        path: HTTP path, or the MQTT topic below the device's.
        body: The payload; None is a GET request.
        headers: Of HTTP.
        reply: Whether an MQTT request names a reply topic; without one nothing answers.
    """

    transport: Literal["http", "mqtt"]
    path: str
    body: bytes | None
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: bool = True


SCALARS: Sequence[Any] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        255,
        256,
        2**31,
        -(2**31),
        2**53 + 1,
        2**63,
        -(2**63),
        2**64,
        10**400,
        10**4000,
    ),
    *(0.0, -0.0, 0.5, 1.0, 40.0, 1.5, -2.5, 1e308, -1e308, 5e-324, 1e-320, 99999999999999999999.0),
    *("", " ", "\n", "a", "0", "null", "true", "NaN", "json", "auto", "none", "required", "function", "text", "high"),
    *(
        "x" * 300,
        "x" * 5000,
        "é世🙂",
        "e\u0301" * 40,
        "\u202e\u2028\x85",
        "\x00\x01\x7f",
        "\U00100000\U00100001",
        "\ufffd",
    ),
    *("<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "```json\n", "{{ 7 * 7 }}"),
    *("{% for x in y %}", "%s%n%1000000s", "$ref", "../../etc/passwd", "[bold]", "\\", '"', "'", "{", "[TOOL_CALLS]"),
)
PATTERNS = (
    *(
        "a",
        "[0-9]{4}",
        "(a|b)*",
        "(a+)+$",
        "a{1,99999}",
        "(a{1,999}){1,999}",
        "^$",
        "",
        "(",
        "[",
        "\\",
        "(?=a)b",
        "\\1",
    ),
    *(
        "(?i)x",
        "[^\\s\\S]",
        "\\p{L}+",
        "[\U0001f600-\U0001f64f]",
        ".*.*.*.*x",
        "a" * 3000,
        "(((((((((((a)))))))))))",
        "\\d+\\b",
    ),
    *("(?P<n>a)", "[a-", "a**", "{2}", "\\u0000", "(?s).", "$^", "\\x{110000}", "[[:alpha:]]", "|", "a||b", "/", "\n"),
)
GRAMMARS = (
    *(
        'start: "a"',
        'start: start "a" | "b"',
        "start: start",
        "start: /a*/",
        "start: undefined",
        "",
        "start:",
        "%json {}",
    ),
    *('root ::= "a"', "root ::= root", "root ::= [a-z]{1,99999}", 'root ::= "a" | root root', "root ::= (((", "::="),
    *('start: %json {"type": "object"}', "start: <|im_end|>", "start: <[1]>", "start: <[99999999]>", "start: <[*]>"),
    *('start: A\nA: "x"~1..99999', "%import common.INT\nstart: INT", 'start: x\nx[lazy]: /.*/ "b"', "start: @other"),
    *("%llguidance {}", 'start: "\\x00"', "start: /(/", "start: a b\na: b\nb: a", "start: " + "a " * 2000),
)
KEYWORDS = (
    *("type", "properties", "required", "additionalProperties", "patternProperties", "enum", "const", "anyOf", "oneOf"),
    *("allOf", "not", "$ref", "$defs", "items", "prefixItems", "minItems", "maxItems", "uniqueItems", "minLength"),
    *("maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "multipleOf", "if", "then", "title"),
    *(
        "minProperties",
        "maxProperties",
        "contains",
        "default",
        "nullable",
        "$schema",
        "$id",
        "definitions",
        "x-guidance",
    ),
)
# Of headers and paths.
LINES = (
    *(
        "",
        "tiny",
        "localhost",
        "http://[",
        "http://[::1",
        "http://127.0.0.1:99999999",
        "null",
        "[",
        "[::1]",
        ":",
        "::::",
    ),
    *(
        "http://evil.example",
        "x" * 2000,
        "%00",
        "%ff%fe",
        "%zz",
        "%0a%0d",
        "..%2f..",
        "a b",
        "//",
        "?x=%",
        "*",
        "tiny%20",
    ),
    *(
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-99",
        "gzip",
        "0",
        "-1",
        "@",
        "user:pass@host",
        "[v1]",
    ),
)
NAMES: Sequence[str] = tuple(
    sorted(
        {
            *(*Chat.model_fields, *Completion.model_fields, *IGNORED, *CHAT_NOOP, *COMPLETION_NOOP),
            *(*OllamaChat.model_fields, *OllamaGenerate.model_fields, *OllamaOptions.model_fields),
            *(*OllamaOptions.ignored, *OllamaOptions.noop, *ChatMessage.model_fields, *OllamaMessage.model_fields),
            *(
                "type",
                "function",
                "json_schema",
                "schema",
                "regex",
                "choice",
                "grammar",
                "strict",
                "parameters",
                "text",
            ),
            *("arguments", "id", "index", "allowed_tools", "mode", "include_usage", "enable_thinking", "reply_to", "x"),
        }
    )
)
TOKENIZE = ("add_special", "parse_special", "with_pieces", "add_special_tokens", "return_token_strs", "model")
PATHS = {
    "/v1/chat/completions": (*Chat.model_fields, *IGNORED, *CHAT_NOOP),
    "/v1/completions": (*Completion.model_fields, *IGNORED, *COMPLETION_NOOP),
    "/api/chat": (*OllamaChat.model_fields, *OllamaChat.ignored, *OllamaChat.noop),
    "/api/generate": (*OllamaGenerate.model_fields, *OllamaGenerate.ignored, *OllamaGenerate.noop),
    "/api/show": ("model", "name", "verbose"),
    "/api/pull": ("model", "name", "stream", "insecure"),
    "/infill": (*LlamaInfill.model_fields, *LlamaInfill.ignored, *LlamaInfill.noop),
    "/completion": (*LlamaCompletion.model_fields, *LlamaCompletion.ignored, *LlamaCompletion.noop),
    "/tokenize": ("content", "prompt", "messages", *TOKENIZE),
    "/detokenize": ("tokens", "model", "skip_special_tokens"),
    "/apply-template": (*Chat.model_fields, *IGNORED, *CHAT_NOOP),
    "chat/request": (*Chat.model_fields, *Completion.model_fields, *CHAT_NOOP, "id", "reply_to", "deadline_s"),
    "chat/cancel": ("id", "reply_to"),
}
SWITCHES = ("cache_prompt", "echo", "parallel_tool_calls", "raw", "speculation", "stream", "truncate")
LARGE = ("response_format", "tools", "format", "json_schema", "guided_regex", "guided_grammar", "structured_outputs")
WEIGHTS = (34, 14, 14, 9, 1, 1, 5, 4, 3, 2, 2, 24, 1)


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield the requests."""
    for number in range(count):
        # Each by itself, so that a failing one can be made alone.
        yield _Generator(random.Random(f"{seed} {number}")).case()  # noqa: S311


class _Generator:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._fields: Mapping[str, Callable[[], Any]] = {
            "messages": self._messages,
            "prompt": lambda: self._pick(
                ("Once", "", "<|im_start|>user\nHi<|im_end|>\n", self._text(), ["a"], [1], ["a", "b"])
            ),
            "system": self._text,
            "suffix": self._text,
            "input_prefix": self._text,
            "input_suffix": self._text,
            "input_extra": lambda: [{"filename": self._text(), "text": self._text()}] * self._pick((0, 1, 3, 300)),
            "tokens": lambda: [self._pick((0, 1, 5, 255, 511, 512, -1, 2.0)) for _ in range(self._pick((0, 1, 9)))],
            "context": lambda: [self._pick((0, 1, 5, 255, 511, 512, -1)) for _ in range(self._pick((0, 1, 9, 90)))],
            "n_indent": lambda: self._pick((0, 1, 4, -1)),
            "n_cmpl": lambda: self._pick((1, 2, 17, 0)),
            "t_max_predict_ms": lambda: self._pick((0, 1, 1e-9, 1e300, -1)),
            "tools": self._tools,
            "tool_choice": self._tool_choice,
            "response_format": self._response_format,
            "format": lambda: self._pick(("json", "", self._schema(2), self._schema(4))),
            "json_schema": lambda: self._schema(4),
            "guided_json": lambda: self._schema(4),
            "guided_regex": self._pattern,
            "regex": self._pattern,
            "guided_choice": self._choices,
            "guided_grammar": lambda: self._pick(GRAMMARS),
            "grammar": lambda: self._pick(GRAMMARS),
            "structured_outputs": lambda: {
                self._pick(("json", "regex", "choice", "grammar", "json_object")): self._schema(2)
            },
            "logit_bias": lambda: {
                str(self._pick((0, 1, 2, 5, 255, 511, 512, -1))): self._pick((-100, 100, 0, 0.5, -1e-9, 101))
                for _ in range(self._pick((0, 1, 3)))
            },
            "stop": lambda: self._pick(("a", "", ["a", "b"], [""], ["x" * 300], ["a"] * 17, self._text())),
            "options": self._options,
            "chat_template_kwargs": lambda: {
                self._pick(("mood", "enable_thinking", "tools", "range", "a b", "x")): self._value(2)
            },
            "stream_options": lambda: {"include_usage": self._pick((True, False, None, 1))},
            "max_tokens": lambda: self._pick((1, 2, 3, 4, 5, 6, 20, 90, -1, 4.0, 2.5, 0)),
            "n": lambda: self._pick((1, 1, 2, 2, 3, 16, 2.0, 17, 0)),
            "model": lambda: self._pick((*["tiny"] * 5, *["tiny:latest"] * 5, "gpt-4", "", "x" * 999)),
            "temperature": lambda: self._pick((0, 0.0, 1, 1.5, 2, 1e-9, 0.7, 2.1, -1)),
            "top_p": lambda: self._pick((0, 1, 0.5, 1e-9, 0.999, 1.1)),
            "min_p": lambda: self._pick((0, 1, 0.5, 1e-9)),
            "typical_p": lambda: self._pick((0, 1, 0.5, 1e-9, 0.999)),
            "top_k": lambda: self._pick((-1, 0, 1, 40.0, 1_000_000, 511, 512, 1_000_001)),
            "seed": lambda: self._pick((0, 1, -1, 2**63 - 1, -(2**63), 2**63)),
            "presence_penalty": lambda: self._pick((-2, 2, 0, 1.5, -2.1)),
            "frequency_penalty": lambda: self._pick((-2, 2, 0, 1.5, -2.1)),
            "repetition_penalty": lambda: self._pick((0.01, 10, 1, 1.1, 0)),
            "repeat_penalty": lambda: self._pick((0.01, 10, 1, 1.1, 0)),
            "repeat_last_n": lambda: self._pick((-1, 0, 1, 64, 1 << 24)),
            "truncation": lambda: self._pick(("auto", "disabled")),
            "priority": lambda: self._pick((0, -1000, 1000, 5.0, 1001)),
            "reasoning_format": lambda: self._pick(("auto", "deepseek", "none")),
            "reasoning_effort": lambda: self._pick(("none", None, "high")),
            "think": lambda: self._pick((True, False, None, "high")),
            "top_logprobs": lambda: self._pick((0, 1, 5, 20, 21)),
            "logprobs": lambda: self._pick((True, True, True, 0, 1, 5, 20, False)),
            "deadline_s": lambda: self._pick((1, 9, 60, 0.02, 0, -1, 1e300, 10**400)),
            **dict.fromkeys(SWITCHES, self._flip),
        }

    def case(self) -> Case:
        if self._chance.random() < 0.04:
            return Case("http", f"/v1/models/{self._pick(LINES)}", None, self._headers())
        (path,) = self._chance.choices(tuple(PATHS), WEIGHTS)
        body = self._body(path)
        for _ in range(self._pick((0, 0, 0, 0, 0, 1, 1, 2, 4))):
            self._mutate(body)
        data = json.dumps(body, ensure_ascii=self._chance.random() < 0.5, allow_nan=True).encode(errors="surrogatepass")
        if self._chance.random() < 0.06:
            data = self._damaged(data)
        if path.startswith("chat/"):
            return Case("mqtt", path, data, reply=path != "chat/cancel" and self._chance.random() > 0.05)
        return Case("http", path, data, self._headers() if self._chance.random() < 0.1 else {})

    def _headers(self) -> dict[str, str]:
        names = ("Origin", "Host", "X-Request-Id", "Content-Type", "Accept", "Authorization", "Cookie")
        return {name: self._pick(LINES) for name in self._chance.sample(names, self._pick((0, 1, 2)))}

    def _body(self, path: str) -> dict[str, Any]:
        fields = PATHS[path]
        body: dict[str, Any] = {}
        if path == "chat/cancel":
            return {"id": self._pick(SCALARS), "reply_to": self._text()}
        if path in ("/api/show", "/api/pull"):
            return {"model": "tiny"}
        if path in ("/tokenize", "/detokenize"):
            given = self._pick(("content", "prompt", "messages")) if path == "/tokenize" else "tokens"
            body = {given: self._fields[given]() if given in self._fields else self._text()}
            return body | {name: self._flip() for name in self._chance.sample(TOKENIZE, self._pick((0, 0, 1, 2)))}
        if path.startswith("/api/"):
            body |= {"model": "tiny", "stream": self._flip(), "options": {"num_predict": 3}}
        else:
            body |= {"max_tokens": 3, "stream": self._flip()}
        if path == "/infill":
            body |= {"input_prefix": self._text(), "input_suffix": self._text()}
        completes = path in ("/v1/completions", "/api/generate", "/infill", "/completion") or (
            path == "chat/request" and self._chance.random() < 0.2
        )
        body |= {"prompt": "Once"} if completes else {"messages": [{"role": "user", "content": "Hi"}]}
        fields = tuple(name for name in fields if name in self._fields or self._chance.random() < 0.2)
        for name in self._chance.sample(fields, min(len(fields), self._pick((0, 1, 1, 2, 3)))):
            make = self._fields.get(name)
            body[name] = make() if make is not None and self._chance.random() < 0.95 else self._value(3)
        # Those whose values are large reach furthest.
        for name in self._chance.sample([name for name in fields if name in LARGE], self._pick((0, 0, 1))):
            body[name] = self._fields[name]()
        return body

    # Values.

    def _pick(self, options: Sequence[Any]) -> Any:
        return self._chance.choice(options)

    def _flip(self) -> bool:
        return self._chance.random() < 0.5

    def _text(self) -> str:
        return "".join(str(self._pick(SCALARS))[:400] for _ in range(self._pick((1, 1, 2, 5))))

    def _pattern(self) -> Any:
        return (
            self._pick(PATTERNS) if self._chance.random() < 0.7 else "".join(self._pick(PATTERNS)[:9] for _ in range(4))
        )

    def _choices(self) -> Any:
        return self._pick((["a", "b"], ["a", "a"], [], [""], ["x" * 3000], [self._text() for _ in range(9)], [1], "a"))

    def _value(self, depth: int) -> Any:
        kind = self._chance.random()
        if depth == 0 or kind < 0.6:
            return self._pick(SCALARS)
        if kind < 0.78:
            return [self._value(depth - 1) for _ in range(self._pick((0, 1, 2, 5)))]
        if kind < 0.97:
            return {self._name(): self._value(depth - 1) for _ in range(self._pick((0, 1, 2, 5)))}
        nested: Any = self._pick(SCALARS)
        for _ in range(self._pick((20, 70, 130, 900))):
            nested = [nested] if self._flip() else {"a": nested}
        return nested

    def _name(self) -> str:
        return str(self._pick(NAMES)) if self._chance.random() < 0.8 else self._text()[:40]

    def _messages(self) -> Any:
        messages = [self._message() for _ in range(self._pick((1, 1, 2, 3, 5)))]
        return (
            messages
            if self._flip()
            else [{"role": "user", "content": "Hi"}, *messages, {"role": "user", "content": "Hi"}]
        )

    def _message(self) -> dict[str, Any]:
        role = self._pick((*("system", "user", "assistant", "tool") * 4, "developer", "king"))
        parts = self._pick(([{"type": "text", "text": self._text()}], [{"type": "image_url"}], [], None))
        content = self._pick(("Hi", self._text(), self._text(), self._text()[:40], parts))
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and self._flip():
            arguments = self._pick(
                ('{"a": 1}', '{"a": "x', "", "5", '{"a": 1e999}', {"a": 1}, json.dumps(self._value(3)))
            )
            message["tool_calls"] = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]
        if role == "tool":
            message |= {
                "tool_call_id": self._pick((None, None, "c", "d", "")),
                "tool_name": self._pick(("f", None, "g")),
            }
        if self._chance.random() < 0.15:
            message[self._pick((*ChatMessage.model_fields, *ChatMessage.ignored, "thinking", "images"))] = self._value(
                2
            )
        return message

    def _tools(self) -> Any:
        return [
            {
                "type": self._pick((*["function"] * 9, "web_search")),
                "function": {
                    "name": f"{self._pick((*'fg' * 9, 'a.b', 'a b', 'x' * 129, self._text()[:9]))}{number or ''}",
                    "description": self._pick(("", "Does.", self._text())),
                    "parameters": self._schema(3),
                    "strict": self._pick((True, False, None)),
                },
            }
            for number in range(self._pick((0, 1, 1, 2, 5)))
        ]

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"num_predict": 3}
        for name in self._chance.sample(tuple(OllamaOptions.model_fields), self._pick((0, 1, 1, 3))):
            make = self._fields.get(name)
            options[name] = make() if make is not None else self._pick((3, 64, 2048.0, 10**9, -1, self._pick(SCALARS)))
        return options

    def _tool_choice(self) -> Any:
        named = {"type": "function", "function": {"name": self._pick(("f", "g", "x"))}}
        allowed = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": self._pick(("auto", "required")), "tools": [named]},
        }
        return self._pick(("auto", "none", "required", named, allowed, {}, {"type": "x"}))

    def _response_format(self) -> Any:
        kind = self._pick(("json_object", "json_schema", "regex", "choice", "grammar", "text", "x"))
        values: dict[str, Any] = {
            "json_schema": {"name": "n", "schema": self._schema(4), "strict": self._flip()},
            "regex": self._pattern(),
            "choice": self._choices(),
            "grammar": self._pick(GRAMMARS),
        }
        made = {"type": kind, **({kind: values[kind]} if kind in values else {})}
        return {**made, "schema": self._schema(3)} if self._chance.random() < 0.1 else made

    def _schema(self, depth: int) -> Any:
        if self._chance.random() < 0.06:
            return self._value(2)
        if depth == 0:
            return {"type": self._pick(("string", "integer", "number", "boolean", "null", "array", "object", "?"))}
        schema: dict[str, Any] = {}
        if self._flip():
            kinds: tuple[Any, ...] = (
                "object",
                "array",
                "string",
                "integer",
                "number",
                ["string", "null"],
                [],
                "boolean",
            )
            schema["type"] = self._pick(kinds)
        for keyword in self._chance.sample(KEYWORDS, self._pick((0, 1, 2, 3))):
            schema[keyword] = self._keyword(keyword, depth - 1)
        return schema

    def _keyword(self, keyword: str, depth: int) -> Any:
        if self._chance.random() < 0.08:
            return self._value(2)
        if keyword in ("properties", "$defs", "definitions", "patternProperties"):
            return {
                self._pick(("a", "b", "", "é", "^x", "(", self._name())): self._schema(depth)
                for _ in range(self._pick((0, 1, 3)))
            }
        if keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
            return [self._schema(depth) for _ in range(self._pick((0, 1, 2, 4)))]
        if keyword in ("not", "items", "contains", "if", "then", "additionalProperties", "default"):
            return self._pick((True, False, self._schema(depth)))
        if keyword == "enum":
            return [self._value(1) for _ in range(self._pick((0, 1, 3, 40)))]
        if keyword == "required":
            return self._pick((["a"], ["a", "a"], ["zz"], [], ["a", 1]))
        if keyword == "$ref":
            return self._pick(("#", "#/$defs/a", "#/$defs/zz", "#/properties/a", "http://example.org/s", "", "#/%zz"))
        if keyword == "pattern":
            return self._pattern()
        if keyword == "format":
            return self._pick(("date-time", "email", "uuid", "ipv6", "uri", "x", ""))
        if keyword in ("minimum", "maximum", "exclusiveMinimum", "multipleOf"):
            return self._pick((0, 1, -1, 0.5, 1e308, 10**30, 3, 0.1, 1e-9, -0.0))
        if keyword in ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"):
            return self._pick((0, 1, 2, 10, 5000, 10**9, 10**30, -1, 1.0))
        return self._value(1)

    # Damage.

    def _mutate(self, body: dict[str, Any]) -> None:
        """Replace, remove or add a value somewhere."""
        node: Any = body
        while True:
            keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = self._pick(keys)
            if isinstance(node[key], dict | list) and node[key] and self._chance.random() < 0.7:
                node = node[key]
                continue
            how = self._chance.random()
            if how < 0.6:
                node[key] = self._value(2)
            elif how < 0.75:
                del node[key]
            elif isinstance(node, dict):
                node[self._name()] = self._value(2)
            else:
                node.append(self._value(2))
            return

    def _damaged(self, data: bytes) -> bytes:
        at = self._chance.randrange(len(data) + 1)
        return bytes(
            self._pick(
                (
                    data[:at],
                    data[:at] + self._chance.randbytes(4) + data[at:],
                    data.replace(b":", b"::", 1),
                    b"[" * 100_000,
                    b'{"a":' * 30_000,
                    data.decode(errors="replace").encode("utf-16"),
                    b"\xef\xbb\xbf" + data,
                    data + data,
                    data.replace(b"3", b"1e999").replace(b"Hi", b"\\ud800"),
                    b"",
                )
            )
        )
