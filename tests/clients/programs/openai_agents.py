"""Runs agents of the openai-agents SDK: `openai_agents.py URL` prints a JSON object of what they did."""

import asyncio
import json
import sys

from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, NotFoundError
from pydantic import BaseModel

set_tracing_disabled(True)
set_default_openai_client(AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0))
asked = []


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    asked.append(city)
    return "sunny"


class City(BaseModel):
    city: str


agent = Agent("guide", instructions="Be brief.", model="scripted", tools=[weather])


async def final(agent, asked):
    return (await Runner.run(agent, asked)).final_output


async def streamed():
    result = Runner.run_streamed(agent, "Weather?")
    texts, items = [], []
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            texts.append(event.data.delta)
        elif event.type == "run_item_stream_event":
            items.append(event.name)
    return {"texts": "".join(texts), "items": items, "final": result.final_output}


async def cancelled():
    result = Runner.run_streamed(Agent("slow", model="scripted"), "Forever?")
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            result.cancel()
    return result.is_complete


async def error():
    try:
        await Runner.run(Agent("lost", model="other"), "Capital?")
    except NotFoundError as problem:
        return problem.code
    return None


async def main():
    found = {}
    for api in ("responses", "chat_completions"):
        set_default_openai_api(api)
        asked.clear()
        run = await Runner.run(agent, "Weather?")
        found[api] = {
            "final": run.final_output,
            "items": [item.type for item in run.new_items],
            "asked": [*asked],
            "again": (
                await Runner.run(agent, [*run.to_input_list(), {"role": "user", "content": "Capital?"}])
            ).final_output,
            "streamed": await streamed(),
            "schema": (
                await Runner.run(Agent("json", model="scripted", output_type=City), "As JSON")
            ).final_output.city,
            "error": await error(),
            "cancelled": await cancelled(),
        }
    set_default_openai_api("responses")
    first = await Runner.run(agent, "Weather?")
    then = await Runner.run(agent, "Capital?", previous_response_id=first.last_response_id)
    found["previous"] = then.final_output
    thinking = Agent(
        "thinker",
        model="scripted",
        model_settings=ModelSettings(store=False, response_include=["reasoning.encrypted_content"], verbosity="low"),
    )
    run = await Runner.run(thinking, "Please think")
    found["thinking"] = [item.type for item in run.new_items]
    found["thought"] = (
        await Runner.run(thinking, [*run.to_input_list(), {"role": "user", "content": "Prompt?"}])
    ).final_output
    print(json.dumps(found))


asyncio.run(main())
