"""Generates random request bodies for chat completions, valid and invalid ones."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["CANARY", "SCHEMAS", "TOOLS", "Bodies"]

CANARY = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 12,
}
"""Greedy, so its answer is always the same, whatever the load."""

SCHEMAS = (
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "level": {"enum": [1, 2, 3]}},
        "required": ["ok", "level"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
)

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "set_light",
            "description": "Switches a light.",
            "parameters": {
                "type": "object",
                "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
                "required": ["room", "on"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
)

_WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "was",
    "for",
    "on",
    "with",
    "as",
    "by",
    "at",
    "from",
    "what",
    "which",
    "when",
    "where",
    "who",
    "how",
    "many",
    "water",
    "light",
    "gate",
    "room",
    "engine",
    "harbour",
    "table",
    "sensor",
    "north",
    "winter",
    "number",
    "green",
    "seven",
    "quickly",
    "never",
    "always",
    "repeat",
    "explain",
    "count",
    "list",
    "write",
]
_SYSTEMS = (
    "Answer in one sentence.",
    "You are a helpful assistant in a workshop. Be short, name units, and never invent a number that was not given.",
    "You answer questions about the manual of a pump. If the manual does not say it, say so. " * 3,
)


class Bodies:
    """A random generator of bodies.

    Args:
        seed: The same seed gives the same bodies in the same order.
        context_length: The model's; nearly all chats fit into it.
    """

    def __init__(self, seed: int, context_length: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  a load, not a secret
        # A word is about two tokens in the smallest vocabularies.
        self._too_many = 2 * context_length
        self._max_words = min(600, context_length // 8)

    def chat(self, **fields: Any) -> dict[str, Any]:
        """Any chat: short or long, one turn or several, with or without a shared prefix."""
        rng = self.random
        messages = []
        if rng.random() < 0.5:
            messages.append({"role": "system", "content": rng.choice(_SYSTEMS)})
        turns = rng.choice((1, 1, 1, 2, 3))
        words = int(2 * (self._max_words / 2) ** rng.random())
        for turn in range(turns):
            messages.append({"role": "user", "content": self.text(max(1, words // turns))})
            if turn < turns - 1:
                messages.append({"role": "assistant", "content": self.text(4)})
        body: dict[str, Any] = {"messages": messages, "max_tokens": rng.choice((1, 2, 4, 8, 16, 32, 64))}
        body["temperature"] = rng.choice((0, 0.7, 1.0, 1.5))
        if rng.random() < 0.3:
            body["seed"] = rng.randrange(1 << 31)
        if rng.random() < 0.3:
            body["top_p"] = round(rng.uniform(0.1, 1.0), 2)
        if rng.random() < 0.2:
            body["stop"] = rng.sample([".", "\n", "the", "zebra"], rng.randint(1, 3))
        return {**body, **fields}

    def text(self, words: int) -> str:
        """Random words."""
        return " ".join(self.random.choice(_WORDS) for _ in range(words))

    def invalid(self) -> tuple[bytes | dict[str, Any], ...]:
        """Bodies that every daemon must reject: one for each reason."""
        return (
            b'{"messages": [',
            b"[]",
            b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
            {"messages": []},
            {"messages": [{"role": "pilot", "content": "x"}]},
            {"messages": [{"role": "user"}]},
            self.chat(temperature=9),
            self.chat(max_tokens=0),
            self.chat(logit_bais={}),  # an unknown field is ignored, a misspelt one is not
            self.chat(model="another"),
            self.chat(messages=[{"role": "user", "content": "word " * self._too_many}]),
            self.chat(stop=[1]),
        )
