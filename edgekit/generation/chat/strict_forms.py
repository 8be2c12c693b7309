"""Rearranges messages for chat templates that refuse what clients send.

Templates of many models raise an exception unless there is one system message, and that first (Qwen3.5), or unless
`user` and `assistant` alternate (Mistral, Gemma 2), or at any system message (Gemma 2). Coding agents send several
system messages, anywhere, and several messages of the user in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["strict_forms"]

Shaped = Mapping[str, Any]

_BETWEEN = "\n\n"
_JOINED = ("system", "user")


def strict_forms(messages: Sequence[Shaped]) -> Iterator[list[Shaped]]:
    """Yield forms of a chat with the same text, each accepted by more templates than the one before.

    1. All system messages are one, at the beginning.
    2. Messages of the user in a row are one, too.
    3. The system message is the beginning of the user's first one.

    Args:
        messages: Messages in the shape of chat templates; forms equal to one before are left out.
    """
    system = [message for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    first = _joined([*system, *others], ("system",))
    second = _joined(first, _JOINED)
    forms = [first, second]
    if len(second) > 1 and [message["role"] for message in second[:2]] == ["system", "user"]:
        forms.append(_joined([{**second[0], "role": "user"}, *second[1:]], _JOINED))
    seen = [[*messages]]
    for form in forms:
        if form not in seen:
            seen.append(form)
            yield form


def _joined(messages: Sequence[Shaped], roles: Sequence[str]) -> list[Shaped]:
    """Return the messages, with neighbours of the same role joined if it is one of `roles`."""
    joined: list[Shaped] = []
    texts: list[list[str]] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] and message["role"] in roles:
            texts[-1].append(message["content"])
        else:
            joined.append(message)
            texts.append([message["content"]])
    return [
        {**message, "content": _BETWEEN.join(filter(None, parts))} if len(parts) > 1 else message
        for message, parts in zip(joined, texts, strict=True)
    ]
