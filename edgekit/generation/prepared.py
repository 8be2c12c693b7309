"""A request that is ready for the engine: its prompt as tokens, and what constrains and parses its output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.generation.grammar import Grammar
from edgekit.generation.tools import ToolFormat, ToolParser
from edgekit.generation.types import ChatRequest

__all__ = ["PreparedRequest"]

# A list's item and the integer.
_TOKEN_BYTES = 36


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """What `TextModel.prepare` makes of a `ChatRequest`.

    Attributes:
        prompt: Token ids.
        grammar: Constrains decoding; None leaves it free.
        tool_format: How the output writes tool calls and reasoning; None looks for neither.
        left_out: Messages dropped by truncation.
        thinking: The prompt ends inside the model's reasoning; the output continues it.
        end_tokens: Tokens that end the output, besides the model's own.
    """

    request: ChatRequest
    prompt: Sequence[int]
    grammar: Grammar | None = None
    tool_format: ToolFormat | None = None
    left_out: int = 0
    thinking: bool = False
    end_tokens: frozenset[int] = frozenset()

    @property
    def size_bytes(self) -> int:
        """Roughly how much memory it takes while it waits: the prompt, as tokens and as the text of its messages."""
        texts = [message.content for message in self.request.messages] + [self.request.prompt or ""]
        return _TOKEN_BYTES * len(self.prompt) + sum(map(sys.getsizeof, texts))

    def parser(self) -> ToolParser | None:
        """Return a parser for one choice's output; None if `tool_format` is None."""
        if self.tool_format is None:
            return None
        request = self.request
        return self.tool_format.parser(
            self.tool_format.new_id,
            # With `tool_choice` none, text that looks like a call stays text.
            () if request.tool_choice.mode == "none" else request.tools,
            enforced=self.grammar is not None,
            required=request.tool_choice.mode == "required",
            thinking=self.thinking,
            parallel=request.parallel_tool_calls,
        )
