"""What every client asks: the daemon's address and model, the questions, a tool, a schema."""

import asyncio
import sys
from collections.abc import Awaitable

URL = sys.argv[1]
MODEL, OTHER = "scripted", "other"
CHAT, STREAMING, TOOLS, SCHEMA, CANCELLING = "Capital?", "Count.", "Weather in Orléans?", "A city as JSON.", "Forever."

CITY = {
    "title": "place",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell the weather of a city.", "parameters": CITY},
}


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


def user(text: str) -> list[dict[str, str]]:
    """Return a chat of one message."""
    return [{"role": "user", "content": text}]


def run(awaited: Awaitable[object]) -> object:
    """Wait for something, in the one event loop of this process: clients keep their connections."""
    return _loop.run_until_complete(awaited)


_loop = asyncio.new_event_loop()
