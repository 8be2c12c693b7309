"""The store of responses: its bounds, its histories and its tenants."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.daemon.http.response_store import ResponseStore, StoredResponse
from edgekit.errors import RequestError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(**limits: Any) -> ResponseStore:
    return ResponseStore(**{"max_entries": 100, "max_bytes": 1 << 20, "max_age_s": 100.0, **limits})


def response(name: str, previous: str | None = None, *, owner: str = "", size: int = 0) -> StoredResponse:
    output = [{"id": f"out_{name}", "type": "message", "text": "x" * size}]
    return StoredResponse(owner, {"id": name, "output": output}, [{"id": f"in_{name}", "type": "message"}], previous)


def ids(kept: ResponseStore, name: str, owner: str = "") -> list[str]:
    return [item["id"] for item in kept.history(name, owner)]


def missing(kept: ResponseStore, name: str, owner: str = "") -> bool:
    try:
        kept.get(name, owner)
    except RequestError as error:
        return error.code == "not_found"
    return False


def test_a_history_is_put_together_oldest_first() -> None:
    kept = store()
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "b")):
        kept.put(response(name, previous))
    assert ids(kept, "c") == ["in_a", "out_a", "in_b", "out_b", "in_c", "out_c"]
    assert ids(kept, "d")[-2:] == ["in_d", "out_d"]


def test_of_too_many_the_least_recently_used_goes_first_and_a_history_is_used_as_a_whole() -> None:
    kept = store(max_entries=3)
    for name, previous in (("a", None), ("b", "a"), ("other", None)):
        kept.put(response(name, previous))
    assert len(ids(kept, "b")) == 4
    kept.put(response("c", "b"))
    assert missing(kept, "other")
    assert len(ids(kept, "c")) == 6


def test_a_history_that_has_lost_its_beginning_is_not_found() -> None:
    kept = store(max_entries=2)
    for name, previous in (("a", None), ("b", "a"), ("c", "b")):
        kept.put(response(name, previous))
    assert not missing(kept, "c")
    with pytest.raises(RequestError) as caught:
        kept.history("c", "")
    assert (caught.value.code, caught.value.param) == ("not_found", "previous_response_id")


def test_bytes_are_bounded_and_a_response_larger_than_the_store_is_not_kept() -> None:
    kept = store(max_bytes=10_000)
    for name in "abcde":
        kept.put(response(name, size=3000))
    assert [missing(kept, name) for name in "abcde"] == [True, True, False, False, False]
    kept.put(response("large", size=20_000))
    assert (missing(kept, "large"), missing(kept, "e"), len(kept)) == (True, False, 3)
    for name in "cde":
        kept.delete(name, "")
    assert (len(kept), kept._bytes, kept._items) == (0, 0, {})


def test_what_was_not_used_for_long_is_dropped() -> None:
    clock = Clock()
    kept = store(clock=clock)
    kept.put(response("a"))
    kept.put(response("b"))
    clock.now = 60.0
    assert not missing(kept, "a")
    clock.now = 120.0
    assert (missing(kept, "a"), missing(kept, "b"), len(kept)) == (False, True, 1)


def test_another_tenants_response_is_as_if_it_were_not() -> None:
    kept = store()
    kept.put(response("a", owner="key:1"))
    assert [missing(kept, "a", owner) for owner in ("key:1", "key:2", "")] == [False, True, True]
    assert (kept.item("out_a", "key:1") is None, kept.item("out_a", "key:2") is None) == (False, True)
    messages = set()
    for name, owner in (("a", "key:2"), ("a", ""), ("z", "key:1")):
        for ask in (kept.get, kept.history, kept.delete):
            with pytest.raises(RequestError) as caught:
                ask(name, owner)
            messages.add(caught.value.message.replace("`z`", "`a`"))
    assert len(messages) == 1
    assert not missing(kept, "a", "key:1")


def test_items_are_found_until_their_response_goes() -> None:
    kept = store()
    kept.put(response("a"))
    assert (kept.item("in_a", ""), kept.item("gone", "")) == ({"id": "in_a", "type": "message"}, None)
    kept.delete("a", "")
    assert kept.item("in_a", "") is None


def test_tenants_may_have_items_of_the_same_id() -> None:
    kept = store()
    for name, owner in (("a", "key:1"), ("b", "key:2")):
        item = {"id": "msg_1", "type": "message", "text": owner}
        kept.put(StoredResponse(owner, {"id": name, "output": []}, [item], None))
    assert [(kept.item("msg_1", owner) or {}).get("text") for owner in ("key:1", "key:2", "")] == [
        "key:1",
        "key:2",
        None,
    ]
    kept.delete("b", "key:2")
    assert (kept.item("msg_1", "key:1") is None, kept.item("msg_1", "key:2") is None) == (False, True)
    kept.delete("a", "key:1")
    assert kept._items == {}


def test_a_store_of_none_keeps_none() -> None:
    kept = store(max_entries=0)
    kept.put(response("a"))
    assert (len(kept), kept.enabled, missing(kept, "a")) == (0, False, True)
    with pytest.raises(RequestError) as caught:
        kept.get("a", "")
    assert "stores none" in (caught.value.hint or "")
