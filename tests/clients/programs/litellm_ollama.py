"""litellm through its two providers for Ollama: chats, streams, calls a tool, obeys a schema, sees an error."""

import json
import sys

import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True
url = sys.argv[1]
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "place",
        "schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(text: str, model: str = "ollama_chat/scripted", **fields):
    messages = [{"role": "user", "content": text}]
    return litellm.completion(model=model, api_base=url, messages=messages, max_tokens=100, **fields)


def text_of(reply) -> str:
    return reply.choices[0].message.content


calls = ask("The weather in Orléans?", tools=[TOOL]).choices[0].message.tool_calls
try:
    ask("Hello", model="ollama_chat/other")
    error = ""
except litellm.exceptions.APIError as refused:
    error = str(refused.status_code)
except Exception as refused:  # noqa: BLE001  its classes differ by provider
    error = f"{type(refused).__name__}: {refused}"
print(
    json.dumps(
        {
            "text": text_of(ask("Hello")),
            "streamed": "".join(part.choices[0].delta.content or "" for part in ask("Hello", stream=True)),
            "called": [(call.function.name, json.loads(call.function.arguments)) for call in calls],
            "structured": json.loads(text_of(ask("A city as JSON.", response_format=SCHEMA))),
            "generated": text_of(ask("Hello", model="ollama/scripted")),
            "error": error,
        }
    )
)
