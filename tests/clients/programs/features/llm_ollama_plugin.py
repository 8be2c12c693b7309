"""llm's Python API, with its plugin for Ollama; `llm_command.py` runs its command line."""

import json
import os
import tempfile

from asked import CANCELLING, CHAT, CITY, MODEL, OTHER, SCHEMA, STREAMING, TOOLS, URL, weather

# Read when llm is imported.
folder = tempfile.TemporaryDirectory()
os.environ.update(OLLAMA_HOST=URL, LLM_USER_PATH=folder.name)

import llm  # noqa: E402

model = llm.get_model(f"ollama/{MODEL}")


def chat():
    return model.prompt(CHAT, stream=False).text()


def streaming():
    return list(model.prompt(STREAMING))


def tools():
    called = []
    chain = model.chain(TOOLS, tools=[weather], after_call=lambda _tool, call, _result: called.append(call))
    answer = chain.text()
    return {"called": [(call.name, call.arguments) for call in called], "answer": answer}


def schema():
    return json.loads(model.prompt(SCHEMA, schema=CITY).text())


def errors():
    model_of_another_name = type(model)(model_id=f"ollama/{OTHER}", ollama_name=OTHER, capabilities=["completion"])
    return model_of_another_name.prompt(CHAT).text()


def cancelling():
    parts = iter(model.prompt(CANCELLING))
    try:
        return next(parts)
    finally:
        parts.close()
