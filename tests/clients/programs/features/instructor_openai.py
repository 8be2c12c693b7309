"""instructor over openai's client: an answer is an object of a pydantic class."""

import asyncio

import instructor
import openai
from asked import CANCELLING, MODEL, OTHER, SCHEMA, TOOLS, URL, run, user
from pydantic import BaseModel

SERVER = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
client, asynchronous = openai.OpenAI(**SERVER), openai.AsyncOpenAI(**SERVER)


class City(BaseModel):
    """A city."""

    city: str


def asking(mode):
    return instructor.from_openai(client, mode=mode).chat.completions


def partial(question):
    # The synchronous client collects the parts before it returns them.
    return instructor.from_openai(asynchronous, mode=instructor.Mode.JSON_SCHEMA).chat.completions.create_partial(
        model=MODEL, messages=user(question), response_model=City, max_retries=0
    )


async def parts():
    return [part.city async for part in partial(SCHEMA)]


async def first():
    seen, begun = [], asyncio.Event()

    async def read():
        try:
            async for part in partial(f"{CANCELLING} {SCHEMA}"):
                if part.city:
                    seen.append(part.city)
                    begun.set()
        finally:
            begun.set()

    # Who leaves the loop alone keeps the connection until the next garbage collection.
    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    return seen[0]


def streaming():
    return run(parts())


def tools():
    # By its default mode the class is a tool that the model must call.
    city = asking(instructor.Mode.TOOLS).create(model=MODEL, messages=user(TOOLS), response_model=City)
    return city.model_dump()


def schema():
    modes = (instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON, instructor.Mode.MD_JSON)
    return [
        asking(mode).create(model=MODEL, messages=user(SCHEMA), response_model=City, max_retries=0).model_dump()
        for mode in modes
    ]


def errors():
    return asking(instructor.Mode.TOOLS).create(model=OTHER, messages=user(SCHEMA), response_model=City, max_retries=0)


def cancelling():
    return run(first())
