"""Asks with Anthropic's client: `anthropic_messages.py URL` prints a JSON object of what it got, by case."""

import json
import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def asked(text, **fields):
    return {"model": "scripted", "max_tokens": 200, "messages": [{"role": "user", "content": text}], **fields}


def shown(message):
    return {
        "content": [block.to_dict() for block in message.content],
        "reason": [message.stop_reason, message.stop_sequence],
        "usage": [message.usage.input_tokens + message.usage.cache_read_input_tokens, message.usage.output_tokens],
    }


def streamed(**fields):
    events = []
    with client.messages.stream(**fields) as stream:
        for event in stream:
            events += [event.type] if event.type not in events[-1:] else []
        return {"events": events, **shown(stream.get_final_message())}


def error(call):
    try:
        call()
    except anthropic.APIStatusError as problem:
        return [type(problem).__name__, problem.body["type"], problem.body["error"]["type"]]
    return None


def conversation():
    fields = asked("Weather?", tools=[WEATHER])
    called = client.messages.create(**fields)
    sunny = [{"type": "text", "text": "sunny"}]
    result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": sunny}
    turns = [
        *fields["messages"],
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    return client.messages.create(**{**fields, "messages": turns})


def cancelled():
    with client.messages.stream(**asked("Forever?", max_tokens=12_000)) as stream:
        return next(iter(stream.text_stream))


agent = {
    "system": [{"type": "text", "text": "You code.", "cache_control": {"type": "ephemeral"}}],
    "metadata": {"user_id": "user_1"},
    "tools": [{**WEATHER, "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "betas": ["interleaved-thinking-2025-05-14", "claude-code-20250219"],
}
print(
    json.dumps(
        {
            "text": shown(client.messages.create(**asked("Capital?"))),
            "text streamed": streamed(**asked("Capital?")),
            "call": shown(client.messages.create(**asked("Weather?", tools=[WEATHER]))),
            "call streamed": streamed(**asked("Weather?", tools=[WEATHER])),
            "any": shown(client.messages.create(**asked("Weather?", tools=[WEATHER], tool_choice={"type": "any"}))),
            "none": shown(client.messages.create(**asked("Weather?", tools=[WEATHER], tool_choice={"type": "none"}))),
            "conversation": shown(conversation()),
            "thinking": shown(
                client.messages.create(**asked("Please think", thinking={"type": "enabled", "budget_tokens": 1024}))
            ),
            "thinking streamed": streamed(**asked("Please think", thinking={"type": "adaptive"})),
            "stop": shown(client.messages.create(**asked("Capital?", stop_sequences=["ri", "s"]))),
            "cut off": shown(client.messages.create(**asked("Capital?", max_tokens=3))),
            "begun": shown(
                client.messages.create(
                    **{
                        **asked("Capital?"),
                        "messages": [
                            {"role": "user", "content": "Capital?"},
                            {"role": "assistant", "content": "Pa"},
                        ],
                    }
                )
            ),
            "schema": shown(
                client.messages.create(
                    **asked("As JSON", output_config={"format": {"type": "json_schema", "schema": {"const": "Rome"}}})
                )
            ),
            "agent": shown(client.beta.messages.create(**asked("Prompt?", **{**agent, "max_tokens": 2000}))),
            "counted": client.messages.count_tokens(
                model="scripted", messages=[{"role": "user", "content": "Capital?"}]
            ).input_tokens,
            "errors": [
                error(lambda: client.messages.create(**asked("x", model="other"))),
                error(lambda: client.messages.create(**asked("x", max_tokens=0))),
                error(lambda: client.messages.create(**asked([{"type": "image", "source": {}}]))),
                error(lambda: client.messages.create(**asked("x" * 20_000))),
                error(lambda: client.post("/v1/messages/other", cast_to=object, body={})),
            ],
            "cancelled": cancelled(),
        }
    )
)
