"""Requests as clients of 2026 send them, each shortened to what other servers have refused; the reports are linked."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["REQUESTS", "Sent"]

_CHAT, _RESPONSES, _MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages?beta=true"
_ASK = {"role": "user", "content": "Hi"}
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER = {"type": "function", "function": {"name": "weather", "parameters": _CITY}}
_FLAT = {"type": "function", "name": "weather", "parameters": _CITY, "strict": False}
# What zod writes for `z.email()`, with lookaheads, and what `z.record()` becomes.
_ZOD = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "email": {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)[A-Za-z0-9_'+\-\.]*@[a-z.]+$"},
        "answers": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
    },
    "required": ["email"],
    "additionalProperties": False,
}


class Sent(NamedTuple):
    """One request, and the fields that the answer's header names as ignored."""

    path: str
    body: dict[str, Any]
    ignored: tuple[str, ...] = ()


def _chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [*messages] or [_ASK], **fields}


def _response(*items: dict[str, Any] | str, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "input": [*items] or "Hi", **fields}


def _message(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "max_tokens": 100, "messages": [*messages] or [_ASK], **fields}


def _called(call_id: str | None, **fields: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


_SYSTEM_LATER = ({"role": "system", "content": "A"}, _ASK, {"role": "assistant", "content": "Yes?"})
_DEVELOPER = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}
_TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
_USED = {"role": "assistant", "content": [_TOOL_USE]}


def _result(content: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": False, "content": content}
    return {"role": "user", "content": [{**block, "cache_control": {"type": "ephemeral"}}]}


REQUESTS: dict[str, Sent] = {
    # Recorded from Codex 0.171.0. https://github.com/ggml-org/llama.cpp/issues/20156
    "codex": Sent(
        _RESPONSES,
        _response(
            _DEVELOPER,
            _DEVELOPER,
            {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            tools=[
                _FLAT,
                {"type": "namespace", "name": "agents", "description": "Agents", "tools": [_FLAT]},
                {"type": "web_search", "external_web_access": False},
                {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
                {"type": "local_shell"},
            ],
            tool_choice="auto",
            parallel_tool_calls=True,
            reasoning={"summary": "auto"},
            store=False,
            include=["reasoning.encrypted_content"],
            prompt_cache_key="01a2",
            client_metadata={"turn_id": "01a2"},
        ),
        ("client_metadata", "tools[1]", "tools[2]", "tools[3]", "tools[4]"),
    ),
    # Recorded from Claude Code 2.1.332. https://github.com/ggml-org/llama.cpp/issues/27367
    "claude code": Sent(
        _MESSAGES,
        _message(
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            {"role": "system", "content": [{"type": "text", "text": "# Environment"}]},
            _USED,
            _result("sunny"),
            system=[
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.332;"},
                {"type": "text", "text": "You code.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            ],
            tools=[
                {"name": "weather", "description": "", "input_schema": _CITY},
                {"name": "AskUser", "description": "", "input_schema": _ZOD, "defer_loading": True},
            ],
            metadata={"user_id": "{}"},
            thinking={"type": "adaptive", "display": "omitted"},
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            output_config={"effort": "high"},
        ),
    ),
    # https://github.com/vllm-project/vllm/issues/46790
    "claude code, searching the web": Sent(
        _MESSAGES,
        _message(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]),
        ("tools[0]",),
    ),
    # https://github.com/anthropics/claude-code/issues/31026
    "claude code, having found a tool": Sent(
        _MESSAGES,
        _message(_ASK, _USED, _result([{"type": "tool_reference", "tool_name": "weather"}])),
    ),
    "a new field of the Messages API": Sent(
        _MESSAGES,
        _message(
            {"role": "user", "content": [{"type": "text", "text": "Hi", "flags": ["new"]}], "turn_id": "t"},
            new_feature={"on": True},
        ),
        ("new_feature", "turn_id", "flags"),
    ),
    # https://github.com/joshuadavidthomas/opencode-agent-memory/issues/11
    "opencode": Sent(_CHAT, _chat(*_SYSTEM_LATER, {"role": "system", "content": "B"}, _ASK)),
    # https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/2298
    "codex desktop": Sent(_RESPONSES, _response(_DEVELOPER, {"role": "user", "content": "Hi"}, _DEVELOPER)),
    # https://github.com/sigoden/aichat/issues/1296
    "aichat": Sent(
        _CHAT,
        _chat(_ASK, _called(None), {"role": "tool", "content": "sunny", "tool_call_id": None}, tools=[_WEATHER]),
    ),
    # https://github.com/openai/openai-agents-python/issues/1616
    "openai-agents": Sent(
        _RESPONSES,
        _response(
            {"role": "user", "content": "Hi"},
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Yes?", "annotations": [], "logprobs": None}],
            },
            {"role": "user", "content": "Go on", "type": "message"},
        ),
    ),
    # https://github.com/experientiallabs/experiential/pull/729 and https://github.com/microsoft/vscode/issues/329182
    "copilot, responses": Sent(
        _RESPONSES,
        _response(
            prompt_cache_options={"mode": "implicit"}, truncation="disabled", text={"verbosity": "low"}, top_logprobs=0
        ),
    ),
    # https://github.com/microsoft/vscode-copilot-chat/pull/554 and https://github.com/github/app/issues/2903
    "copilot, chat": Sent(
        _CHAT,
        _chat(
            {"role": "user", "content": "Hi", "copilot_cache_control": {"type": "ephemeral"}},
            {"role": "assistant", "content": "Yes?", "refusal": None, "reasoning_opaque": "x", "reasoning_text": "Hm"},
            {"role": "user", "content": [{"type": "text", "text": "Go on"}]},
            n=1,
            intent=False,
            snippy={"enabled": False},
            max_completion_tokens=100,
            stream_options={"include_usage": True},
        ),
        ("intent", "snippy", "copilot_cache_control", "reasoning_opaque"),
    ),
    # https://github.com/CherryHQ/cherry-studio/issues/6155
    "cherry studio": Sent(_CHAT, _chat(enable_thinking=False, thinking_budget=4096)),
    "cherry studio, GLM": Sent(_CHAT, _chat(thinking={"type": "disabled"})),
    # https://github.com/ggml-org/llama.cpp/pull/20088
    "roo code": Sent(_CHAT, _chat(reasoning={"effort": "low", "exclude": False})),
    "roo code, not thinking": Sent(_CHAT, _chat(reasoning={"enabled": False})),
    # https://github.com/lvndry/jazz/pull/303
    "jazz": Sent(_CHAT, _chat(reasoning_budget=0, chat_template_kwargs={"enable_thinking": False})),
    # https://github.com/vercel/ai/issues/16021
    "zod's patterns in a tool": Sent(
        _CHAT, _chat(tools=[{"type": "function", "function": {"name": "mail", "parameters": _ZOD, "strict": False}}])
    ),
    # https://github.com/mudler/LocalAI/issues/1886
    "go's zero values": Sent(
        _CHAT,
        _chat(
            n=1, functions=None, function_call=None, stop=None, seed=None, logit_bias={}, tools=[], response_format={}
        ),
    ),
    "tools without any": Sent(_CHAT, _chat(tools=[], tool_choice="auto", parallel_tool_calls=True)),
    "a tool without parameters": Sent(_CHAT, _chat(tools=[{"type": "function", "function": {"name": "now"}}])),
    "a tool of an MCP server": Sent(
        _CHAT,
        _chat(
            tools=[
                {
                    "type": "function",
                    "function": {"name": "a__b", "parameters": {}, "annotations": {"readOnlyHint": True}},
                    "display_name": "B",
                }
            ]
        ),
        ("display_name", "annotations"),
    ),
    # https://github.com/cubist38/mlx-openai-server/issues/85
    "a result in parts": Sent(
        _CHAT,
        _chat(
            {"role": "user", "content": "Call it."},
            _called("call_1"),
            {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": [{"type": "text", "text": "sun"}]},
            tools=[_WEATHER],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        ),
    ),
    # https://github.com/tiylabs/tiygate/issues/52
    "metadata": Sent(_CHAT, _chat(metadata={"user": "a"}, store=False, user="a", service_tier="auto")),
    "extra_body taken literally": Sent(_CHAT, _chat(extra_body={"top_k": 20}), ("extra_body",)),
}
