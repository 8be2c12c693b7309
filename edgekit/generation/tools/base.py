"""The base class of tool-call formats."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from edgekit.generation.tools.parser import ToolParser
from edgekit.generation.types import Tool, ToolChoice

__all__ = ["ToolFormat"]


class ToolFormat(ABC):
    """How one family of models writes tool calls.

    Args:
        source: The chat template.
        tokens: The tokenizer's special tokens, text to id. Markers that are not among them are ordinary text.
    """

    MARKERS: ClassVar[tuple[str, ...]] = ()
    PARSER: ClassVar[type[ToolParser]]

    def __init__(self, source: str, tokens: Mapping[str, int]) -> None:
        self.source = source
        self.tokens = dict(tokens)

    @classmethod
    @abstractmethod
    def matches(cls, source: str) -> bool:
        """Whether a chat template that mentions `tools` uses this format."""

    @property
    def markers(self) -> frozenset[str]:
        """Markers that are special tokens; the detokenizer must pass their text to the parser."""
        return frozenset(marker for marker in self.MARKERS if marker in self.tokens)

    @abstractmethod
    def lark(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        *,
        thinking: bool = False,
        content: str | None = None,
    ) -> str | None:
        """Return the grammar of the output in llguidance's Lark syntax, or None if there is nothing to enforce.

        Args:
            tools: Tools that may be called.
            choice: Whether a tool is called. `auto`: text is free, and a call that has begun must match its tool;
                `none`: no call can begin; `required`: the output starts with a call, and a named tool is called once.
            parallel: Allow several calls, if the format supports it.
            thinking: The prompt ends inside the model's reasoning, which the output continues.
            content: Lark rule body that output without calls must match; None leaves text free.
        """

    def parser(
        self,
        ids: Callable[[], str],
        tools: Sequence[Tool],
        *,
        enforced: bool = False,
        required: bool = False,
        thinking: bool = False,  # noqa: ARG002  most formats have no reasoning
        parallel: bool = True,
    ) -> ToolParser:
        """Return a parser for one output.

        Args:
            ids: Generates call ids.
            tools: Tools that may be called; a call to any other tool is text.
            enforced: The output is constrained by `lark(…)`, so a call that has begun is valid and its arguments are
                streamed. Otherwise a call is held back until it is complete, since it may turn out to be text.
            required: The output starts with a call, by its grammar.
            thinking: As in `lark`.
            parallel: Allow several calls; otherwise everything after the first is text.
        """
        return self.PARSER(ids, tools, stream=enforced, required=required, parallel=parallel)

    def new_id(self) -> str:
        """Return a new call id in the form that the format's templates expect."""
        return f"call_{secrets.token_hex(12)}"

    def prompt_id(self, call_id: str) -> str:
        """Map a caller's call id to the id written in the prompt (deterministic)."""
        return call_id
