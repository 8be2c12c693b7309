"""The Responses API: creates, returns, lists and deletes responses over one store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit.config import HttpConfig
from edgekit.daemon.api import check_model
from edgekit.daemon.api.response_request import ResponseCall, parse_response
from edgekit.daemon.http.endpoint import Reply, RequestContext
from edgekit.daemon.http.response_store import ResponseStore, StoredResponse
from edgekit.daemon.http.responses import ResponseReply
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest

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

    def routes(self) -> list[Route]:
        """Return the routes of stored responses."""
        return [
            Route("/v1/responses/{id}", self._retrieve, methods=["GET"]),
            Route("/v1/responses/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/responses/{id}/input_items", self._list_items, methods=["GET"]),
            Route("/v1/responses/{id}/cancel", self._cancel, methods=["POST"]),
        ]

    def create(self, body: bytes, context: RequestContext) -> Reply | Response:
        """Parse a body of `/v1/responses`."""
        call, owner = self.parse(body, context), context.identity.tenant

        def keep(response: dict[str, Any]) -> None:
            self._store.put(StoredResponse(owner, response, call.items, call.previous))

        return ResponseReply(call, context.model.name, keep)

    def count(self, body: bytes, context: RequestContext, count: Callable[[ChatRequest], int]) -> Response:
        """Parse a body of `/v1/responses/input_tokens`, and answer it.

        Args:
            body: The body.
            context: What else is known of the request.
            count: Returns the number of prompt tokens.
        """
        tokens = count(self.parse(body, context).request)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})

    def parse(self, body: bytes, context: RequestContext) -> ResponseCall:
        """Parse a body whose history may be in the store."""
        owner = context.identity.tenant
        call = parse_response(
            body,
            request_id=context.id,
            client=context.client,
            history=lambda response_id: self._store.history(response_id, owner),
            find=lambda item_id: self._store.item(item_id, owner),
        )
        check_model(call.options.model, context.model)
        return call

    async def _retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise RequestError(
                "a stored response is not streamed", hint="leave out `stream`", code="unsupported_parameter"
            )
        return JSONResponse(dict(self._found(request).body))

    async def _delete(self, request: Request) -> Response:
        response_id = request.path_params["id"]
        self._store.delete(response_id, request.state.identity.tenant)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    async def _list_items(self, request: Request) -> Response:
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
        return JSONResponse(
            {
                "object": "list",
                "data": listed,
                "first_id": listed[0]["id"] if listed else None,
                "last_id": listed[-1]["id"] if listed else None,
                "has_more": len(items) > limit,
            }
        )

    async def _cancel(self, request: Request) -> Response:
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
