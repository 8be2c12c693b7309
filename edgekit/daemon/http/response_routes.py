"""The Responses API: creates, returns, lists and deletes responses over one store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgekit.config import HttpConfig
from edgekit.daemon.api import check_model
from edgekit.daemon.api.response_request import ResponseCall, parse_response
from edgekit.daemon.http.endpoint import Reply, RequestContext
from edgekit.daemon.http.response_store import ResponseStore, StoredResponse
from edgekit.daemon.http.responses import ResponseReply
from edgekit.errors import RequestError

if TYPE_CHECKING:
    from edgekit.daemon.api.response_types import DeletedResponse, InputTokens, ItemList, ListedItem

__all__ = ["Responses"]

_MAX_LISTED = 100
_LISTED = 20


class Responses:
    """The endpoints' handlers.

    Args:
        config: The limits of the store.
    """

    def __init__(self, config: HttpConfig) -> None:
        self._store = ResponseStore(
            max_entries=config.stored_responses,
            max_bytes=config.stored_responses_mib << 20,
            max_age_s=config.stored_responses_hours * 3600.0,
        )

    def create(self, body: bytes, context: RequestContext) -> Reply | Response:
        """Parse a body of `/v1/responses`."""
        call, owner = self.parse(body, context), context.identity.tenant

        def keep(response: dict[str, Any]) -> None:
            self._store.put(StoredResponse(owner, response, call.items, call.previous))

        return ResponseReply(call, context.model.name, keep)

    def count(self, body: bytes, context: RequestContext) -> Response:
        """Parse a body of `/v1/responses/input_tokens`, and answer it."""
        tokens = context.worker.count_tokens(self.parse(body, context).request)
        counted: InputTokens = {"object": "response.input_tokens", "input_tokens": tokens}
        return JSONResponse(counted)

    def parse(self, body: bytes, context: RequestContext) -> ResponseCall:
        """Parse a body whose history may be in the store."""
        owner = context.identity.tenant
        call = parse_response(
            body,
            request_id=context.id,
            client=context.client,
            history=lambda response_id: self._store.history(response_id, owner),
            find=lambda item_id: self._store.item(item_id, owner),
            stores=self._store.enabled,
        )
        check_model(call.options.model, context.model)
        return call

    async def retrieve(self, request: Request) -> Response:
        """Answer `GET /v1/responses/ID`."""
        if request.query_params.get("stream") == "true":
            raise RequestError(
                "a stored response is not streamed", hint="leave out `stream`", code="unsupported_parameter"
            )
        return JSONResponse(dict(self._found(request).body))

    async def delete(self, request: Request) -> Response:
        """Answer `DELETE /v1/responses/ID`."""
        response_id = request.path_params["id"]
        self._store.delete(response_id, request.state.identity.tenant)
        deleted: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
        return JSONResponse(deleted)

    async def list_items(self, request: Request) -> Response:
        """Answer `GET /v1/responses/ID/input_items`."""
        found = self._found(request)
        items = self._store.history(found.id, request.state.identity.tenant)[: -len(found.body["output"]) or None]
        if request.query_params.get("order", "desc") == "desc":
            items.reverse()
        after = request.query_params.get("after")
        if after is not None:
            places = [number for number, item in enumerate(items) if item["id"] == after]
            if not places:
                raise RequestError("`after` is no item of this response", code="not_found", param="after")
            items = items[places[0] + 1 :]
        limit = _limit(request.query_params.get("limit"))
        listed = items[:limit]
        found_items: ItemList = {
            "object": "list",
            "data": cast("list[ListedItem]", listed),
            "first_id": listed[0]["id"] if listed else None,
            "last_id": listed[-1]["id"] if listed else None,
            "has_more": len(items) > limit,
        }
        return JSONResponse(found_items)

    async def cancel(self, request: Request) -> Response:
        """Answer `POST /v1/responses/ID/cancel`."""
        self._found(request)
        raise RequestError(
            "this response is complete; only responses in the background can be cancelled, and none are here",
            hint="close the connection to cancel a response that is being generated",
        )

    def _found(self, request: Request) -> StoredResponse:
        return self._store.get(request.path_params["id"], request.state.identity.tenant)


def _limit(given: str | None) -> int:
    if given is None:
        return _LISTED
    if not (given.isascii() and given.isdecimal() and len(given) <= 4 and 1 <= int(given) <= _MAX_LISTED):
        raise RequestError(f"`limit` must be between 1 and {_MAX_LISTED}", param="limit")
    return int(given)
