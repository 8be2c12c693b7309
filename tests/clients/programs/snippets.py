"""Runs the Python of docs/clients.md: `snippets.py URL MODEL PAGE` prints an answer, or what failed, for each snippet.

The snippet for Telegram is only compiled.
"""

import json
import re
import sys
import traceback
from pathlib import Path

from agents import Runner
from pydantic import BaseModel

url, name, page = sys.argv[1:]
QUESTION = "What is the capital of France?"


class City(BaseModel):
    """What the snippets ask for."""

    city: str


def used(names: dict) -> str:
    """Ask with what a snippet has made."""
    if "chat" in names:
        return names["chat"].invoke(QUESTION).text
    if "agent" in names:
        return names["agent"].run_sync(QUESTION).output.city
    if "city" in names:
        return names["city"].city
    if "anthropic" in names:
        messages = [{"role": "user", "content": QUESTION}]
        return names["client"].messages.create(model=name, max_tokens=30, messages=messages).content[0].text
    return Runner.run_sync(names["assistant"], QUESTION).final_output


answers = []
for snippet in re.findall(r"```python\n(.*?)```", Path(page).read_text(encoding="utf-8"), re.DOTALL):
    code = compile(snippet.replace("http://127.0.0.1:8090", url).replace('"NAME"', repr(name)), page, "exec")
    if "telegram" not in snippet:
        names = {"City": City}
        try:
            exec(code, names)  # noqa: S102  our own page
            answers.append(used(names))
        except Exception:  # noqa: BLE001  each library has its own
            answers.append(f"{snippet}\n{traceback.format_exc()[-2000:]}")
print(json.dumps(answers))
