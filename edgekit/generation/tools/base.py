"""What a tool format is, and the pieces that its parser finds in a model's text."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgekit.generation.request import Tool, ToolChoice

if TYPE_CHECKING:
    from edgekit.generation.tools.parser import ToolParser

__all__ = ["CallArguments", "CallStart", "Piece", "TextPiece", "ToolFormat"]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text of the answer.

    Attributes:
        thinking: It belongs to the model's reasoning.
        mark: It stands around reasoning, a tag or white space. Such pieces are there so that all together are what the
            model wrote; whoever tells reasoning apart leaves them out.
    """

    text: str
    thinking: bool = False
    mark: bool = False


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of the arguments of the call begun last."""

    text: str


Piece = TextPiece | CallStart | CallArguments


class ToolFormat(ABC):
    """How one family of models writes its calls.

    Args:
        source: The chat template.
        tokens: Special tokens of the tokenizer: text and id. What is not among them is written in characters.
    """

    MARKERS: ClassVar[tuple[str, ...]] = ()
    PARSER: ClassVar[type[ToolParser]]

    def __init__(self, source: str, tokens: Mapping[str, int]) -> None:
        self.source = source
        self.tokens = dict(tokens)

    @classmethod
    @abstractmethod
    def matches(cls, source: str) -> bool:
        """Whether a chat template, which mentions `tools`, teaches this format."""

    @property
    def markers(self) -> frozenset[str]:
        """Special tokens whose text the parser must see."""
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
        """Return the grammar of an answer in llguidance's Lark, or None if there is nothing to enforce.

        Args:
            tools: What may be called.
            choice: Whether something is called. With `auto` text is free, and an opened call is held to its tool;
                with `none` no call can be opened; `required` begins with a call, and a named tool is called once.
            parallel: More than one call is allowed, if the format has it.
            thinking: The prompt opens the model's reasoning, and the answer goes on with it.
            content: A rule's body, in Lark, that an answer without calls must match; None leaves text free.
        """

    def parser(
        self,
        ids: Callable[[], str],
        tools: Sequence[Tool],
        *,
        enforced: bool = False,
        thinking: bool = False,  # noqa: ARG002  most models have none
        parallel: bool = True,
    ) -> ToolParser:
        """Return a parser for one answer.

        Args:
            ids: Makes a call's id.
            tools: What may be called; a call of anything else is text.
            enforced: The answer is held to `lark(…)`, so a begun call is a good one: its arguments are passed on as
                they come. Otherwise a call waits until it is complete, for it may turn out to be text.
            thinking: As in `lark`.
            parallel: More than one call is allowed; otherwise what follows the first is text.
        """
        return self.PARSER(ids, tools, stream=enforced, parallel=parallel)

    def new_id(self) -> str:
        """Return a new call's id, in the shape the format's templates ask for."""
        return f"call_{secrets.token_hex(12)}"

    def prompt_id(self, call_id: str) -> str:
        """Return the id that stands for a caller's one in the prompt; the same for the same."""
        return call_id
