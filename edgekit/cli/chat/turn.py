"""One turn of a conversation: sends messages, prints the answer, and keeps both."""

from __future__ import annotations

from contextlib import closing

from edgekit.cli.chat.answering import Answering, LocalModel
from edgekit.cli.chat.rendering import AnswerView, show_calls
from edgekit.cli.chat.session import Session
from edgekit.cli.chat.settings import Settings
from edgekit.generation.types import Finished, Message

__all__ = ["answer", "continue_text"]


def answer(model: Answering, session: Session, *messages: Message) -> Finished | None:
    """Print the answer to `messages`, and add both to the conversation.

    After an error or Ctrl-C the part that was printed is kept; if nothing was, the conversation is as before.

    Returns:
        The end of the answer.

    Raises:
        EdgekitError: The request failed.
        KeyboardInterrupt: It was interrupted.
    """
    view = AnswerView()
    try:
        with closing(model.answer(session.with_system(*messages), session.settings)) as events:
            for event in events:
                view.show(event)
    finally:
        reply = view.message()
        if reply.content or reply.tool_calls or view.complete:
            view.end_line()
            session.messages += [*messages, reply]
    show_calls(reply)
    return view.finished


def continue_text(model: LocalModel, text: str, settings: Settings) -> Finished | None:
    """Print how the model continues a text, without a chat template.

    Returns:
        The end of the answer.

    Raises:
        EdgekitError: The request failed.
        KeyboardInterrupt: It was interrupted.
    """
    view = AnswerView()
    try:
        with closing(model.continue_text(text, settings)) as events:
            for event in events:
                view.show(event)
    finally:
        if view.message().content or view.complete:
            view.end_line()
    return view.finished
