"""A conversation: the messages so far and what the next request asks for."""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.atomic_file import replace_file
from edgekit.cli.chat.settings import Settings
from edgekit.errors import ConfigError
from edgekit.generation.message_json import message_body, read_messages
from edgekit.generation.types import Message, ToolCall
from edgekit.machine import user_path

__all__ = ["Session", "saved_chat"]

_FORMAT = "edgekit chat"


class Session:
    """Messages, system message and settings of a chat.

    Attributes:
        system: The system message; empty for none.
        messages: The conversation without the system message.
        settings: Parameters of the requests.
        verbose: Print tokens/s after each answer.
    """

    def __init__(self, system: str, settings: Settings, *, verbose: bool = False) -> None:
        self.system = system
        self.settings = settings
        self.verbose = verbose
        self.messages: list[Message] = []

    @property
    def open_calls(self) -> list[ToolCall]:
        """The tool calls that have no result yet, oldest first."""
        answered = {message.tool_call_id for message in self.messages if message.role == "tool"}
        last = next((item for item in reversed(self.messages) if item.role != "tool"), None)
        return [call for call in (last.tool_calls if last else ()) if call.id not in answered]

    def with_system(self, *more: Message) -> list[Message]:
        """The messages of a request: the system message, the conversation and `more`."""
        return [*([Message("system", self.system)] if self.system else []), *self.messages, *more]

    def clear(self) -> None:
        """Forget the conversation; the system message and the settings stay."""
        self.messages.clear()

    def save(self, path: Path) -> None:
        """Write system message, conversation and sampling parameters, readable by their owner alone.

        Raises:
            ConfigError: The file cannot be written, or there is another file of this name that is no saved chat.
        """
        if not _may_replace(path):
            raise ConfigError(f"{path} is there and is no saved chat", hint="give another file: /save FILE")
        body = {
            "format": _FORMAT,
            "system": self.system,
            "parameters": dict(self.settings.sampling),
            "messages": [message_body(message) for message in self.messages],
        }
        text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode(errors="surrogateescape"))
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}", hint="give another file: /save FILE") from error

    def load(self, path: Path) -> None:
        """Continue a saved chat; on an error, this one is unchanged.

        Raises:
            ConfigError: The file cannot be read, or is not a saved chat.
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", hint="/save NAME writes a chat") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a saved chat: {error}", hint="give a file that /save wrote") from error
        if not _is_saved(body):
            raise ConfigError(f"{path} is not a saved chat", hint="give a file that /save wrote")
        messages, settings = read_messages(body.get("messages")), self.settings
        parameters = body.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ConfigError("`parameters` is not a JSON object", hint="give a file that /save wrote")
        for name, value in parameters.items():
            settings = settings.with_parameter(name, str(value))
        self.system, self.messages, self.settings = str(body.get("system") or ""), messages, settings


def _is_saved(body: object) -> bool:
    return isinstance(body, dict) and body.get("format") == _FORMAT


def _may_replace(path: Path) -> bool:
    """Whether there is nothing to lose: no file, an empty one, or a saved chat."""
    try:
        text = path.read_text(encoding="utf-8")
        return not text.strip() or _is_saved(json.loads(text))
    except FileNotFoundError:
        return True
    except (OSError, ValueError, RecursionError):
        # A folder, say: writing reports it.
        return not path.is_file()


def saved_chat(name: str, folder: Path | None) -> Path:
    """Return the file of a chat's name: a path with a `/` or a suffix is taken as it is.

    Args:
        name: As typed.
        folder: Where chats are saved by name; None if there is no home folder.

    Raises:
        ConfigError: There is no folder for names.
    """
    path = user_path(name)
    if "/" in name or path.suffix:
        return path
    if folder is None:
        raise ConfigError("there is no home folder to save chats in", hint="give a path, such as ./chat.json")
    return folder / f"{name}.json"
