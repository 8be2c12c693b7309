"""The loop of the chat: reads a text, runs it if it is a command, answers it otherwise."""

from __future__ import annotations

from edgekit.cli.chat.answering import Answering
from edgekit.cli.chat.commands import Commands
from edgekit.cli.chat.prompt import Editor
from edgekit.cli.chat.rendering import show_error, show_finish, show_note
from edgekit.cli.chat.session import Session
from edgekit.cli.chat.turn import answer
from edgekit.cli.chat.typed import is_command, unquote
from edgekit.cli.console import stderr
from edgekit.cli.input import check_text
from edgekit.errors import EdgekitError
from edgekit.generation.types import Message
from edgekit.machine import state_folder

__all__ = ["chat"]


def chat(model: Answering, session: Session) -> None:
    """Chat until Ctrl-D or `/bye`; an error or Ctrl-C ends one answer, not the chat."""
    folder = state_folder()
    editor = Editor(folder)
    commands = Commands(session, model, folder, editor.keep_history)
    editor.complete(commands.names)
    show_note(f"{model.name}; /? for help, Ctrl-D to end")
    while not commands.ended:
        try:
            text = editor.read()
        except EOFError:
            return
        except KeyboardInterrupt:
            show_note("Ctrl-D or /bye ends the chat")
            continue
        try:
            text = check_text(text, "the input")
            if is_command(text):
                commands.run(text)
            elif text := unquote(text):
                _send(model, session, Message("user", text))
                _answer_calls(model, session, editor)
        except KeyboardInterrupt:
            show_note("(stopped)")
        except EdgekitError as error:
            show_error(error)


def _send(model: Answering, session: Session, *messages: Message) -> None:
    finished = answer(model, session, *messages)
    if finished is not None:
        show_finish(finished, session.settings.max_tokens, verbose=session.verbose)


def _answer_calls(model: Answering, session: Session, editor: Editor) -> None:
    """Ask the user for the results of the tool calls, and let the model go on."""
    while calls := session.open_calls:
        for call in calls:
            try:
                result = check_text(editor.ask(f"result of {call.name}> ").strip(), "the result")
            except (EOFError, KeyboardInterrupt):
                result = ""
            session.messages.append(Message("tool", result or "no result", tool_call_id=call.id, name=call.name))
        stderr.print()
        _send(model, session)
