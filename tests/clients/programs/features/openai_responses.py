"""openai's client over the Responses API."""

import json

import openai
from asked import CANCELLING, CHAT, CITY, MODEL, OTHER, SCHEMA, STREAMING, TOOL, TOOLS, URL, weather

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
create = client.responses.create
FUNCTION = {"type": "function", **TOOL["function"], "strict": True}


def chat():
    return create(model=MODEL, input=CHAT).output_text


def streaming():
    events = create(model=MODEL, input=STREAMING, stream=True)
    return [event.delta for event in events if event.type == "response.output_text.delta"]


def tools():
    first = create(model=MODEL, input=TOOLS, tools=[FUNCTION])
    calls = [item for item in first.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": weather(**json.loads(call.arguments))}
        for call in calls
    ]
    answer = create(model=MODEL, input=results, previous_response_id=first.id, tools=[FUNCTION])
    with client.responses.stream(model=MODEL, input=TOOLS, tools=[FUNCTION]) as stream:
        (again,) = [item for item in stream.get_final_response().output if item.type == "function_call"]
    return {
        "called": [(call.name, json.loads(call.arguments)) for call in calls],
        "streamed": [(again.name, json.loads(again.arguments))],
        "answer": answer.output_text,
    }


def schema():
    form = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}
    return json.loads(create(model=MODEL, input=SCHEMA, text={"format": form}).output_text)


def errors():
    return create(model=OTHER, input=CHAT)


def cancelling():
    with create(model=MODEL, input=CANCELLING, stream=True) as stream:
        return next(event.delta for event in stream if event.type == "response.output_text.delta")
