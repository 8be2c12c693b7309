"""openai's client over chat completions."""

import json

import openai
from asked import CANCELLING, CHAT, CITY, MODEL, OTHER, SCHEMA, STREAMING, TOOL, TOOLS, URL, user, weather

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
create = client.chat.completions.create


def chat():
    return create(model=MODEL, messages=user(CHAT)).choices[0].message.content


def streaming():
    return [
        chunk.choices[0].delta.content or "" for chunk in create(model=MODEL, messages=user(STREAMING), stream=True)
    ]


def tools():
    messages = user(TOOLS)
    called = create(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in called.tool_calls]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)}
        for call, (_, arguments) in zip(called.tool_calls, calls, strict=True)
    ]
    answer = create(model=MODEL, messages=[*messages, called, *results], tools=[TOOL])
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=[TOOL]) as stream:
        (again,) = stream.get_final_completion().choices[0].message.tool_calls
    return {
        "called": calls,
        "streamed": [(again.function.name, json.loads(again.function.arguments))],
        "answer": answer.choices[0].message.content,
    }


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
    reply = create(model=MODEL, messages=user(SCHEMA), response_format=form)
    return json.loads(reply.choices[0].message.content)


def errors():
    return create(model=OTHER, messages=user(CHAT))


def cancelling():
    with create(model=MODEL, messages=user(CANCELLING), stream=True) as stream:
        return next(text for chunk in stream if (text := chunk.choices[0].delta.content))
