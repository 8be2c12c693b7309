"""Keeps recent responses in memory, so that a later request can follow one by its id.

A stored response has its own items only and names the one before it; a history is put together by following the names.
Using a response makes all of its history recent.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.daemon.api.response_items import Item
from edgekit.daemon.api.validation import printable
from edgekit.errors import RequestError

__all__ = ["ResponseStore", "StoredResponse"]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response.

    Attributes:
        owner: Tenant of its sender; another one does not see it.
        body: As it was answered.
        items: The input's items, without those of earlier responses.
        previous: Id of the response that it follows.
    """

    owner: str
    body: Mapping[str, Any]
    items: Sequence[Item]
    previous: str | None

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.body["id"])

    @property
    def all_items(self) -> list[Item]:
        """Its input and its output."""
        return [*self.items, *self.body["output"]]


@dataclass(slots=True)
class _Entry:
    response: StoredResponse
    size: int
    used: float


class ResponseStore:
    """Recent responses, limited in number, bytes and age; those that were not used for longest go first.

    Args:
        max_entries: Maximum number; 0 keeps none.
        max_bytes: Maximum bytes of their JSON.
        max_age_s: Seconds without use after which one is dropped.
        clock: The time in seconds.
    """

    def __init__(
        self, *, max_entries: int, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        # The least recently used first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # The response of an item, by owner and item id: a client chooses the ids of its items.
        self._items: dict[tuple[str, str], str] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def enabled(self) -> bool:
        """Whether it keeps anything."""
        return self._max_entries > 0

    def put(self, response: StoredResponse) -> None:
        """Keep a response; one that is larger than the store is not kept."""
        size = len(json.dumps([response.body, response.items]))
        if not self.enabled or size > self._max_bytes:
            return
        with self._lock:
            self._entries[response.id] = _Entry(response, size, self._clock())
            self._bytes += size
            self._items |= {(response.owner, item["id"]): response.id for item in response.all_items}
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def get(self, response_id: str, owner: str, *, param: str | None = None) -> StoredResponse:
        """Return a response.

        Args:
            response_id: Its id.
            owner: The sender's tenant.
            param: The field of a request that names it.

        Raises:
            RequestError: `not_found`: there is none, or it is another tenant's.
        """
        with self._lock:
            return self._get(response_id, owner, param)

    def history(self, response_id: str, owner: str) -> list[Item]:
        """Return the items of a response and of those before it, oldest first.

        Raises:
            RequestError: `not_found`: one of them is not kept any more.
        """
        found: list[StoredResponse] = []
        following: str | None = response_id
        with self._lock:
            while following is not None:
                found.append(self._get(following, owner, "previous_response_id"))
                following = found[-1].previous
        return [item for response in reversed(found) for item in response.all_items]

    def item(self, item_id: str, owner: str) -> Item | None:
        """Return an item of a response; None if there is none of that id."""
        with self._lock:
            response_id = self._items.get((owner, item_id))
            if response_id is None:
                return None
            try:
                items = self._get(response_id, owner, None).all_items
            except RequestError:
                return None
        return next((item for item in items if item["id"] == item_id), None)

    def delete(self, response_id: str, owner: str) -> None:
        """Drop a response.

        Raises:
            RequestError: `not_found`, as for `get`.
        """
        with self._lock:
            self._get(response_id, owner, None)
            self._drop(response_id)

    def _get(self, response_id: str, owner: str, param: str | None) -> StoredResponse:
        now = self._clock()
        while self._entries and now - next(iter(self._entries.values())).used > self._max_age_s:
            self._drop(next(iter(self._entries)))
        entry = self._entries.get(response_id)
        if entry is None or entry.response.owner != owner:
            raise RequestError(
                f"there is no stored response `{printable(response_id)}`",
                hint="this daemon stores none; send the conversation in `input`"
                if not self.enabled
                else "it may have been dropped; send the conversation in `input`",
                code="not_found",
                param=param,
            )
        entry.used = now
        self._entries.move_to_end(response_id)
        return entry.response

    def _drop(self, response_id: str) -> None:
        entry = self._entries.pop(response_id)
        self._bytes -= entry.size
        for item in entry.response.all_items:
            place = (entry.response.owner, item["id"])
            if self._items.get(place) == response_id:
                del self._items[place]
