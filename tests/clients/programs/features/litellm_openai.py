"""litellm through its provider for OpenAI-compatible servers."""

import json

import litellm
from asked import CANCELLING, CHAT, CITY, MODEL, OTHER, SCHEMA, STREAMING, TOOL, TOOLS, URL, user, weather

litellm.telemetry = False
litellm.suppress_debug_info = True


class Asked:
    """The features of a provider, which is the first part of a model's name."""

    def __init__(self, provider, url):
        self.provider, self.url = provider, url

    def ask(self, messages, model=MODEL, **fields):
        if isinstance(messages, str):
            messages = user(messages)
        return litellm.completion(
            model=f"{self.provider}/{model}",
            api_base=self.url,
            api_key="none",
            messages=messages,
            max_retries=0,
            **fields,
        )

    def chat(self):
        return self.ask(CHAT).choices[0].message.content

    def streaming(self):
        return [part.choices[0].delta.content or "" for part in self.ask(STREAMING, stream=True)]

    def tools(self):
        called = self.ask(TOOLS, tools=[TOOL]).choices[0].message
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in called.tool_calls]
        results = [
            {"role": "tool", "tool_call_id": call.id, "name": name, "content": weather(**arguments)}
            for call, (name, arguments) in zip(called.tool_calls, calls, strict=True)
        ]
        history = [*user(TOOLS), called.model_dump(), *results]
        parts = list(self.ask(TOOLS, tools=[TOOL], stream=True))
        (again,) = litellm.stream_chunk_builder(parts).choices[0].message.tool_calls
        return {
            "called": calls,
            "streamed": [(again.function.name, json.loads(again.function.arguments))],
            "answer": self.ask(history, tools=[TOOL]).choices[0].message.content,
        }

    def schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
        return json.loads(self.ask(SCHEMA, response_format=form).choices[0].message.content)

    def errors(self):
        return self.ask(CHAT, model=OTHER)

    def cancelling(self):
        stream = self.ask(CANCELLING, stream=True, max_tokens=12_000)
        try:
            return next(text for part in stream if (text := part.choices[0].delta.content))
        finally:
            stream.completion_stream.close()


asked = Asked("openai", f"{URL}/v1")
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
