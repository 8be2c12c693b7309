"""What an endpoint is: its route, and the types of its bodies for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgekit.daemon.access.keys import Scope

__all__ = ["Answer", "Errors", "Group", "Operation", "Query"]

Answer = Callable[[Request], Awaitable[Response]]
Errors = Literal["anthropic", "ollama", "openai"]
Method = Literal["DELETE", "GET", "HEAD", "POST"]
Group = Literal[
    "OpenAI", "Responses", "Anthropic", "Ollama", "Code completion", "Utilities", "LM Studio", "Health and metrics"
]


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter in the query.

    Attributes:
        name: Its name.
        type: The type of its value.
        text: What it does.
    """

    name: str
    type: Any
    text: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        method: The method; GET serves HEAD too.
        path: The path, as Starlette writes it.
        answer: Answers a request.
        text: What it does, in one line.
        group: The API that it belongs to.
        scope: The scope that its API key needs; None needs no key.
        errors: The API whose errors it has.
        body: The name of the type of the request's body, in `document_types`; None takes none.
        reply: The type of the reply's JSON; `Text` is plain text, None is no body.
        stream: The type of a chunk of a streamed reply; None is never streamed.
        stream_type: The media type of a streamed reply.
        failure: The type of the body of an error reply of its own; None has its API's errors.
        query: The parameters in the query.
        refused: It is refused always, with 501.
    """

    method: Method
    path: str
    answer: Answer
    text: str
    group: Group
    scope: Scope | None
    errors: Errors
    body: str | None = None
    reply: str | None = None
    stream: str | None = None
    stream_type: Literal["text/event-stream", "application/x-ndjson"] = "text/event-stream"
    failure: str | None = None
    query: tuple[Query, ...] = ()
    refused: bool = False

    def route(self) -> Route:
        """Return its route."""
        return Route(self.path, self.answer, methods=[self.method])
