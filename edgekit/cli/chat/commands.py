"""The commands of the chat, such as `/set`: names as in `ollama run` where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from edgekit.cli.chat.answering import Answering
from edgekit.cli.chat.rendering import show_note
from edgekit.cli.chat.session import Session, saved_chat
from edgekit.cli.chat.settings import PARAMETERS
from edgekit.cli.chat.typed import unquote
from edgekit.cli.console import stderr
from edgekit.errors import ConfigError, nearest
from edgekit.generation.message_json import read_tools
from edgekit.generation.types import ResponseFormat
from edgekit.machine import user_path

__all__ = ["Commands"]

_SET = ("parameter", "system", "format", "noformat", "think", "nothink", "verbose", "quiet", "history", "nohistory")
_SHOW = ("info", "system", "parameters", "messages", "tools", "license", "template")
_HELP = (
    ("/set parameter NAME VALUE", f"{', '.join(PARAMETERS)}"),
    ("/set format json|FILE", "answers in JSON, or by the JSON schema in FILE; /set noformat"),
    ("/set think, /set nothink", "whether a reasoning model reasons first"),
    ("/set verbose, /set quiet", "tokens/s after each answer"),
    ("/set history, /set nohistory", "whether what you type is kept for later chats"),
    ("/show", "the model; also /show system, parameters, messages, tools, license, template"),
    ("/system TEXT", "set the system message; /system alone shows it, /system \"\" removes it"),
    ("/tools FILE", "tools that the model may call, as in the OpenAI API; /tools off"),
    ("/save NAME, /load NAME", "write the chat to a file, continue a saved one"),
    ("/clear", "forget the conversation (also /new)"),
    ("/bye", "end the chat (also /exit, Ctrl-D)"),
    ("/?", "this help (also /help)"),
)  # fmt: skip
_KEYS = (
    ('"""', "begins and ends a text of several lines; a pasted block is one text anyway"),
    ("Alt-Enter, Ctrl-J", "begin a new line"),
    ("Ctrl-C", "stops the answer"),
    ("Up, Down, Ctrl-R", "earlier input"),
)


class KeepHistory(Protocol):
    """Turns the history on or off."""

    def __call__(self, *, on: bool) -> None:
        """Keep what is typed for later chats, or do not."""


class Commands:
    """Runs commands on a session.

    Attributes:
        names: All commands, for completion.
        ended: `/bye` was entered.

    Args:
        session: Changed by the commands.
        model: Described by `/show`.
        folder: Where chats are saved by name; None if there is no home folder.
        keep_history: Called by `/set history` and `/set nohistory`.
    """

    def __init__(self, session: Session, model: Answering, folder: Path | None, keep_history: KeepHistory) -> None:
        self._session = session
        self._model = model
        self._folder = folder
        self._keep_history = keep_history
        self.ended = False
        self._verbs: dict[str, Callable[[str], None]] = {
            "/set": self._set, "/show": self._show, "/system": self._system, "/tools": self._tools,
            "/save": self._save, "/load": self._load, "/clear": self._clear, "/new": self._clear,
            "/bye": self._bye, "/exit": self._bye, "/quit": self._bye, "/help": self._help, "/?": self._help,
        }  # fmt: skip
        self.names = (*self._verbs, *(f"/set {name}" for name in _SET), *(f"/show {name}" for name in _SHOW))

    def run(self, text: str) -> None:
        """Run a command.

        Raises:
            ConfigError: It is unknown, or its argument is wrong.
            EdgekitError: The daemon does not answer.
        """
        verb, _, argument = text.strip().partition(" ")
        verb, _, more = verb.partition("\n")
        found = self._verbs.get(verb.lower())
        if found is None:
            close = nearest(verb.lower(), self._verbs)
            hint = f"did you mean {close}?" if close else "/? lists the commands"
            raise ConfigError(f"unknown command {verb}", hint=hint)
        found("\n".join(filter(None, (more, argument.strip()))))

    def _help(self, _argument: str) -> None:
        for rows in (_HELP, _KEYS):
            for name, text in rows:
                stderr.print(f"  {name:<30} {text}")
            stderr.print()

    def _bye(self, _argument: str) -> None:
        self.ended = True

    def _clear(self, _argument: str) -> None:
        self._session.clear()
        show_note("the conversation is forgotten")

    def _system(self, argument: str) -> None:
        if argument:
            text = unquote(argument)
            self._session.system = "" if text in {'""', "''"} else text
        show_note(self._session.system or "no system message")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        value = value.strip()
        if name not in _SET:
            close = nearest(name, _SET)
            hint = f"did you mean /set {close}?" if close else "/? lists them"
            raise ConfigError(f"unknown setting `{name}`" if name else "/set needs a setting", hint=hint)
        session, settings = self._session, self._session.settings
        if name == "parameter":
            key, _, number = value.partition(" ")
            if not number.strip():
                raise ConfigError("a name and a value are needed", hint="such as /set parameter temperature 0.7")
            session.settings = settings.with_parameter(key, number.strip().strip('"'))
            show_note(f"{key} is {number.strip()}")
        elif name == "system":
            self._system(value)
        elif name in {"format", "noformat"}:
            wanted = None if name == "noformat" else _read_format(value)
            session.settings = replace(settings, response_format=wanted)
        elif name in {"think", "nothink"}:
            session.settings = replace(settings, think=name == "think")
        elif name in {"verbose", "quiet"}:
            session.verbose = name == "verbose"
        else:
            self._keep_history(on=name == "history")

    def _show(self, argument: str) -> None:
        session = self._session
        if argument in {"", "info", "model"}:
            _rows(dict(self._model.describe()))
        elif argument == "system":
            self._system("")
        elif argument == "parameters":
            _rows(session.settings.describe() or {"parameters": "all have their defaults"})
        elif argument == "tools":
            _rows({tool.name: tool.description for tool in session.settings.tools} or {"tools": "none; /tools FILE"})
        elif argument == "messages":
            for message in session.with_system():
                stderr.print(f"{message.role}: {message.content}")
        elif argument in {"license", "licence", "template"}:
            text = self._model.text("template" if argument == "template" else "license")
            stderr.print(text or f"the {argument} is not known here")
        else:
            raise ConfigError(f"/show does not know `{argument}`", hint=f"known: {', '.join(_SHOW)}")

    def _tools(self, argument: str) -> None:
        if argument == "off":
            self._session.settings = replace(self._session.settings, tools=())
        elif argument:
            tools = read_tools(_read_json(argument))
            changed = replace(self._session.settings, tools=tools)
            changed.check()
            self._session.settings = changed
        self._show("tools")

    def _save(self, argument: str) -> None:
        path = saved_chat(_needed(argument, "/save"), self._folder)
        self._session.save(path)
        show_note(f"saved {len(self._session.messages)} messages to {path}")

    def _load(self, argument: str) -> None:
        path = saved_chat(_needed(argument, "/load"), self._folder)
        self._session.load(path)
        show_note(f"loaded {len(self._session.messages)} messages from {path}")


def _needed(argument: str, verb: str) -> str:
    if not argument:
        raise ConfigError(f"{verb} needs a name", hint=f"such as {verb} holiday, or {verb} ./chat.json")
    return argument


def _rows(rows: dict[str, str]) -> None:
    for name, value in rows.items():
        stderr.print(f"  {name:<16} {value}")


def _read_format(argument: str) -> ResponseFormat:
    if argument in {"json", ""}:
        return ResponseFormat("json_object")
    return ResponseFormat("json_schema", _read_json(argument))


def _read_json(name: str) -> object:
    path = user_path(name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
