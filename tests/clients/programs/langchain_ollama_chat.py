"""langchain-ollama: chats, streams, calls a tool, obeys a schema, sees an error, completes a prompt."""

import json
import sys

import ollama
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaLLM

MODEL = "scripted"
url = sys.argv[1]


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


chat = ChatOllama(model=MODEL, base_url=url, temperature=0, keep_alive="5m", validate_model_on_init=True)
called = chat.bind_tools([weather]).invoke("The weather in Orléans?")
schema = {"title": "place", "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
try:
    ChatOllama(model="other", base_url=url).invoke("Hello")
    error = ""
except ollama.ResponseError as refused:
    error = f"{refused.status_code} {refused.error}"
print(
    json.dumps(
        {
            "text": chat.invoke("Hello").content,
            "streamed": "".join(str(chunk.content) for chunk in chat.stream("Hello")),
            "called": [(call["name"], call["args"]) for call in called.tool_calls],
            "structured": chat.with_structured_output(schema, method="json_schema").invoke("A city as JSON."),
            "error": error,
            "completed": OllamaLLM(model=MODEL, base_url=url).invoke("Hello"),
        }
    )
)
