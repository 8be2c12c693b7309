"""The HTTP door: routes, and a server in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgekit.config import HttpConfig
from edgekit.daemon.http import ollama
from edgekit.daemon.http.chat import ChatReply
from edgekit.daemon.http.completions import CompletionReply
from edgekit.daemon.http.endpoint import Dialect, Endpoint
from edgekit.daemon.http.errors import error_response, http_error
from edgekit.daemon.http.guard import Guard, is_loopback
from edgekit.daemon.http.models import Models
from edgekit.daemon.metrics import Metrics
from edgekit.errors import ConfigError, EdgekitError, RequestError
from edgekit.generation.model import ModelInfo
from edgekit.generation.scheduler import Scheduler

__all__ = ["Health", "HttpDoor"]

logger = logging.getLogger(__name__)

_START_S = 30.0


class Health(Protocol):
    """Who knows whether generation still moves; the watchdog's feeder does."""

    @property
    def healthy(self) -> bool:
        """Whether it moved lately."""


class HttpDoor:
    """The door. It may open before the model is loaded: then `/readyz` answers 503 until `attach`.

    Args:
        config: Address, port (0 lets the system choose) and limits.
        scheduler: Where requests go; None until the model is loaded.
        info: The model's name and limits; None likewise.
        metrics: What `/metrics` shows, and where requests are counted.
        health: What `/healthz` answers; None answers that all is well.
    """

    def __init__(
        self,
        config: HttpConfig,
        scheduler: Scheduler | None,
        info: ModelInfo | None,
        metrics: Metrics,
        health: Health | None = None,
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._info = info
        self._metrics = metrics
        self._health = health
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._port = config.port

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients on this machine find it, without a path."""
        host = self._config.host
        if host in {"0.0.0.0", "::", ""}:  # noqa: S104  compared, not bound
            host = "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def attach(self, scheduler: Scheduler, info: ModelInfo) -> None:
        """Begin to take requests."""
        self._info = info
        self._scheduler = scheduler

    def start(self) -> None:
        """Listen, and return once the door is open.

        Raises:
            ConfigError: The address is in use or not ours.
        """
        listener = _listen(self._config.host, self._config.port)
        self._port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                self._application(),
                # Logging is the application's; frames, cookies and lifespan are not used.
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="off",
                http="h11",
                loop="asyncio",
                timeout_graceful_shutdown=5,
            )
        )
        self._server = server
        self._thread = threading.Thread(target=_serve, args=(server, listener), name="http", daemon=True)
        self._thread.start()
        pause = threading.Event()
        waited = 0.0
        while not server.started and self._thread.is_alive() and waited < _START_S:
            pause.wait(0.01)
            waited += 0.01
        if not server.started:
            raise EdgekitError("the HTTP server did not start", hint="see the log")
        logger.info("HTTP on %s", self.url)

    def stop(self) -> None:
        """Stop listening, give open replies a moment to end, and join. Stop the scheduler before: it ends them."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._server = self._thread = None

    def _application(self) -> Starlette:
        models = Models(lambda: self._info, lambda: self._backend()[1])
        routes = [
            self._endpoint("/v1/chat/completions", ChatReply),
            self._endpoint("/v1/completions", CompletionReply),
            self._endpoint("/api/chat", ollama.chat_dialect, ollama.refusal),
            self._endpoint("/api/generate", ollama.generate_dialect, ollama.refusal),
            self._endpoint("/api/show", ollama.show_dialect, ollama.refusal),
            *models.routes(),
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._show_metrics, methods=["GET"]),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard, loopback=is_loopback(self._config.host))],
            exception_handlers={HTTPException: _on_http_error, EdgekitError: _on_error, Exception: _on_fault},
        )

    def _endpoint(
        self, path: str, dialect: Dialect, refusal: Callable[[EdgekitError], Response] = error_response
    ) -> Route:
        endpoint = Endpoint(self._backend, self._metrics, self._config.max_body_bytes, dialect, refusal)

        async def answer(request: Request) -> Response:
            return await endpoint(request)

        return Route(path, answer, methods=["POST"])

    def _backend(self) -> tuple[Scheduler, ModelInfo]:
        if self._scheduler is None or self._info is None:
            raise RequestError(
                "the model is still loading", hint="ask again in a moment", code="not_ready", retry_after_s=5.0
            )
        return self._scheduler, self._info

    async def _healthz(self, _: Request) -> Response:
        if self._health is None or self._health.healthy:
            return PlainTextResponse("ok\n")
        return PlainTextResponse("generation does not move\n", 503)

    async def _readyz(self, _: Request) -> Response:
        if self._scheduler is None:
            return PlainTextResponse("the model is loading\n", 503)
        if self._scheduler.failed:
            return PlainTextResponse("generation has failed\n", 503)
        if not self._scheduler.accepting:
            return PlainTextResponse("shutting down\n", 503)
        runner = "" if self._info is None else self._info.runner
        return PlainTextResponse(f"ready, on {runner}\n" if runner else "ready\n")

    async def _show_metrics(self, _: Request) -> Response:
        body, kind = self._metrics.render()
        return Response(body, headers={"Content-Type": kind})


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _refuse(request, http_error(status))


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgekitError)  # noqa: S101  the handler is registered for it
    return _refuse(request, error)


async def _on_fault(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _refuse(request, EdgekitError("internal error", hint="the daemon's log has the details"))


def _refuse(request: Request, error: EdgekitError) -> Response:
    return ollama.refusal(error) if request.url.path.startswith("/api/") else error_response(error)


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    with contextlib.closing(listener):
        asyncio.run(server.serve(sockets=[listener]))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on `{host}`: {error}", hint="check --host") from error
    listener = socket.socket(family, kind, protocol)
    try:
        # Restarting must not wait for connections of the last run to time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="choose another port with --port, or stop what uses this one" if port else "check --host",
        ) from error
    listener.setblocking(False)  # noqa: FBT003
    return listener
