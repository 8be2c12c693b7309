"""Ollama's own client for Python."""

import json

import ollama
from asked import CANCELLING, CHAT, CITY, MODEL, OTHER, SCHEMA, STREAMING, TOOLS, URL, user, weather

client = ollama.Client(URL)


def chat():
    return client.chat(MODEL, user(CHAT)).message.content


def streaming():
    return [part.message.content for part in client.chat(MODEL, user(STREAMING), stream=True)]


def tools():
    messages = user(TOOLS)
    # The client makes a tool of the function, by its annotations and docstring.
    called = client.chat(MODEL, messages, tools=[weather]).message
    results = [
        {"role": "tool", "tool_name": call.function.name, "content": weather(**call.function.arguments)}
        for call in called.tool_calls
    ]
    streamed = [
        (call.function.name, call.function.arguments)
        for part in client.chat(MODEL, messages, tools=[weather], stream=True)
        for call in part.message.tool_calls or []
    ]
    return {
        "called": [(call.function.name, call.function.arguments) for call in called.tool_calls],
        "streamed": streamed,
        "answer": client.chat(MODEL, [*messages, called, *results], tools=[weather]).message.content,
    }


def schema():
    return json.loads(client.chat(MODEL, user(SCHEMA), format=CITY).message.content)


def errors():
    return client.chat(OTHER, user(CHAT))


def cancelling():
    stream = client.chat(MODEL, user(CANCELLING), stream=True)
    try:
        return next(stream).message.content
    finally:
        stream.close()
