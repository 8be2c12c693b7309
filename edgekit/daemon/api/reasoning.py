"""Turns the fields about reasoning, of several servers, into variables of the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from edgekit.daemon.api.validation import Strict, printable
from edgekit.errors import RequestError

__all__ = ["ChatReasoning", "Effort", "Thinking", "reasoning_switch", "template_arguments"]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much a model reasons before it answers, in the OpenAI API's levels."""

# Template variables that the daemon sets.
_RESERVED = frozenset(
    {"add_generation_prompt", "bos_token", "eos_token", "messages", "pad_token", "tools", "unk_token"}
)


class Thinking(Strict):
    """Turns reasoning on or off, in the manner of Anthropic's API; Zhipu, DeepSeek and others have it in chats."""

    ignored: ClassVar[frozenset[str]] = frozenset({"budget_tokens", "clear_thinking", "display"})

    type: Literal["enabled", "disabled", "adaptive", "auto"]

    @property
    def on(self) -> bool | None:
        """Whether to reason; None leaves it to the model."""
        return None if self.type == "auto" else self.type != "disabled"


class ChatReasoning(Strict):
    """OpenRouter's field of chats."""

    ignored: ClassVar[frozenset[str]] = frozenset({"exclude", "max_tokens", "summary"})

    effort: Effort | None = None
    enabled: bool | None = None


def reasoning_switch(
    *, effort: Effort | None, reasoning: ChatReasoning | bool | None, switches: Mapping[str, bool | None]
) -> tuple[Effort | None, bool | None]:
    """Return the effort, and whether reasoning is on, of all the fields that say so; None where none does.

    Args:
        effort: `reasoning_effort`.
        reasoning: `reasoning`.
        switches: Other fields, and what they say.

    Raises:
        RequestError: Two fields contradict each other.
    """
    given = dict(switches)
    if isinstance(reasoning, bool):
        given["reasoning"] = reasoning
    elif reasoning is not None:
        given["reasoning.enabled"] = reasoning.enabled
        if reasoning.effort is not None:
            if effort not in (None, reasoning.effort):
                raise RequestError("`reasoning.effort` contradicts `reasoning_effort`", param="reasoning.effort")
            effort = reasoning.effort
    said = {name: value for name, value in given.items() if value is not None}
    if effort is not None:
        said = {"reasoning_effort": _reasons(effort), **said}
    first = next(iter(said), "")
    for name, value in said.items():
        if value != said[first]:
            raise RequestError(f"`{name}` contradicts `{first}`", param=name)
    return effort, said.get(first)


def template_arguments(
    given: Mapping[str, Any] | None,
    effort: Effort | None,
    param: str = "reasoning_effort",
    *,
    switch: bool | None = None,
) -> dict[str, Any]:
    """Return the additional variables of the chat template.

    A template reads one of two variables that control reasoning, or none: `enable_thinking` turns it on or off, and
    `reasoning_effort` has levels.

    Args:
        given: Variables that the request sets.
        effort: Sets both variables.
        param: Path of the effort in the request.
        switch: Sets `enable_thinking`, if there is no effort.

    Raises:
        RequestError: A name is reserved or not an identifier, or a variable contradicts the effort or the switch.
    """
    variables = dict(given or {})
    for name in variables:
        if name in _RESERVED:
            raise RequestError(
                f"`chat_template_kwargs.{name}` is set by the daemon", param=f"chat_template_kwargs.{name}"
            )
        if not name.isidentifier():
            raise RequestError(
                f"`chat_template_kwargs`: `{printable(name)}` is not a variable name", param="chat_template_kwargs"
            )
    wanted: dict[str, Any] = {}
    if effort is not None:
        wanted = {"enable_thinking": _reasons(effort), "reasoning_effort": effort}
    elif switch is not None:
        wanted, param = {"enable_thinking": switch}, "enable_thinking"
    for name, value in wanted.items():
        if variables.setdefault(name, value) != value:
            raise RequestError(
                f"`chat_template_kwargs.{name}` contradicts `{param}`", param=f"chat_template_kwargs.{name}"
            )
    return variables


def _reasons(effort: Effort) -> bool:
    return effort not in ("none", "minimal")
