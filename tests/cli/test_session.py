from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.cli.chat.session import Session
from edgekit.cli.chat.settings import Settings
from edgekit.errors import ConfigError
from edgekit.generation.types import Message


def conversation() -> Session:
    session = Session("Be brief.", Settings({}))
    session.messages.append(Message("user", "Hello"))
    return session


def test_a_saved_chat_may_be_saved_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat.json"
    conversation().save(path)
    longer = conversation()
    longer.messages.append(Message("assistant", "Hi"))
    longer.save(path)
    loaded = Session("", Settings({}))
    loaded.load(path)
    assert [message.content for message in loaded.messages] == ["Hello", "Hi"]


@pytest.mark.parametrize("contents", [b"\xff\xd8 a photo", b'{"format": "another"}', b"[]"])
def test_a_file_that_is_no_saved_chat_is_not_overwritten(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(contents)
    with pytest.raises(ConfigError, match="is there and is no saved chat"):
        conversation().save(path)
    assert path.read_bytes() == contents
