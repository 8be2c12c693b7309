"""Chats with openai's client: `openai_chat.py URL` prints a JSON object of what it got."""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "Capital of France?"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

reply = client.chat.completions.create(**ASK)
streamed = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ASK, stream=True)]
called = client.chat.completions.create(**ASK, tools=[TOOL], tool_choice="required").choices[0]
try:
    client.chat.completions.create(**{**ASK, "model": "other"})
    error = None
except openai.NotFoundError as problem:
    error = problem.code
print(
    json.dumps(
        {
            "text": reply.choices[0].message.content,
            "streamed": "".join(streamed),
            "called": [called.finish_reason, *(call.function.name for call in called.message.tool_calls)],
            "error": error,
        }
    )
)
