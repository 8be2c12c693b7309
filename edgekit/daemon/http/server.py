"""The HTTP server: routes, and uvicorn in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from edgekit.config import HttpConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.http.authentication import Authentication
from edgekit.daemon.http.connections import HEADER_S, KEEP_ALIVE_S, Connections
from edgekit.daemon.http.endpoint import BodyBudget, Dialect, Endpoint
from edgekit.daemon.http.errors import http_error
from edgekit.daemon.http.listeners import UnixListener, is_private, listen_tcp, resolve
from edgekit.daemon.http.models import Models
from edgekit.daemon.http.ollama_models import OllamaModels
from edgekit.daemon.http.operations import Answer, Errors, Operation
from edgekit.daemon.http.origin_check import OriginCheck, is_loopback
from edgekit.daemon.http.origins import cors, origin_pattern
from edgekit.daemon.http.refusals import refusal
from edgekit.daemon.http.response_routes import Responses
from edgekit.daemon.http.route_index import RouteIndex
from edgekit.daemon.http.route_table import route_table
from edgekit.daemon.http.tls import Certificate
from edgekit.daemon.http.utilities import Utilities
from edgekit.daemon.metrics import Metrics
from edgekit.daemon.not_ready import not_ready
from edgekit.errors import ConfigError, EdgekitError
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import ModelInfo

__all__ = ["Health", "HttpServer"]

logger = logging.getLogger(__name__)

_START_S = 30.0
_BODIES_BYTES = 32 << 20


class Health(Protocol):
    """The part of `Watchdog` that the server uses."""

    @property
    def problem(self) -> str | None:
        """What is stalled or has failed; None if the daemon is healthy."""


class HttpServer:
    """The HTTP server. It may start before the model is loaded: `/readyz` then returns 503 until `attach`.

    Args:
        config: Address, port (0 lets the system choose) and limits.
        worker: Where requests are submitted; None until the model is loaded.
        info: The model's name and limits; None until the model is loaded.
        metrics: Counts requests and renders `/metrics`.
        health: Answers `/healthz`; None always reports healthy.
        activity: Returns what the daemon does besides, or before it answers; empty for nothing.
        access: The API keys and the audit log; None has none.

    Raises:
        ConfigError: A trusted proxy is not an address, or an allowed origin not an origin.
    """

    def __init__(
        self,
        config: HttpConfig,
        worker: EngineWorker | None,
        info: ModelInfo | None,
        metrics: Metrics,
        health: Health | None = None,
        *,
        activity: Callable[[], str] = str,
        access: Access | None = None,
    ) -> None:
        self._config = config
        self._worker = worker
        self._info = info
        self._metrics = metrics
        self._health = health
        self._activity = activity
        self._access = access or Access(metrics=metrics)
        self._origins = origin_pattern(config.allowed_origins)
        self._certificate: Certificate | None = None
        # Whether other machines can reach it, and must present a key even if none is configured any more.
        self._keys_required = False
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._port = config.port
        self._connections = Connections(config)
        self._bodies = BodyBudget(max(_BODIES_BYTES, 4 * config.max_body_bytes))
        self._heartbeat = 0.0

    @property
    def port(self) -> int:
        """The port that the server listens on, once started."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL for clients on this machine, without a path."""
        if not self._config.tcp:
            return f"unix:{self._config.socket}"
        host = self._config.host
        if host in {"0.0.0.0", "::", ""}:  # noqa: S104  compared, not bound
            host = "127.0.0.1"
        return (
            f"{'http' if self._certificate is None else 'https'}://{f'[{host}]' if ':' in host else host}:{self._port}"
        )

    def seconds_since_heartbeat(self) -> float:
        """Seconds since the event loop last ran its timer; 0 unless it is running."""
        return 0.0 if self._thread is None else time.monotonic() - self._heartbeat

    def attach(self, worker: EngineWorker, info: ModelInfo) -> None:
        """Start accepting requests; call it again if the model's description changes."""
        self._info = info
        self._worker = worker

    def start(self) -> None:
        """Start listening; returns once connections are accepted.

        Raises:
            ConfigError: It cannot listen on such an address; or other machines could reach it without API keys; or the
                certificate cannot be used.
            EdgekitError: `address_unavailable`: the address is in use, or not one of this machine yet.
        """
        config = self._config
        if not config.tcp and config.socket is None:
            raise ConfigError("`http.tcp` is off, and there is no `http.socket`", hint="set one of them")
        if (config.tls_certificate is None) != (config.tls_key is None):
            raise ConfigError("`http.tls_certificate` and `http.tls_key` need each other", hint="set both, or neither")
        if config.tls_certificate is not None and config.tls_key is not None:
            self._certificate = Certificate(config.tls_certificate, config.tls_key)
        with contextlib.ExitStack() as stack:
            sockets: list[socket.socket] = []
            if config.tcp:
                found = resolve(config.host, config.port)
                self._keys_required = not (is_private(found) or config.insecure)
                if self._keys_required and not self._access.keys.load().keys:
                    raise _no_keys(config.host)
                listener = stack.enter_context(contextlib.closing(listen_tcp(found, config.host, config.port)))
                self._port = listener.getsockname()[1]
                if self._certificate is not None:
                    listener.on_accept = self._connections.accepted
                sockets.append(listener)
            if config.socket is not None:
                unix = UnixListener(config.socket, int(config.socket_mode, 8))
                stack.callback(unix.close)
                sockets.append(unix.socket)
            self._start(sockets, stack.pop_all())

    def _start(self, sockets: list[socket.socket], listening: contextlib.ExitStack) -> None:
        server = uvicorn.Server(
            uvicorn.Config(
                self._application(),
                # The application configures logging; websockets and lifespan events are not used.
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="off",
                http=self._connections.protocol,  # type: ignore[arg-type]  # called like the class
                loop="asyncio",
                timeout_graceful_shutdown=5,
                timeout_keep_alive=KEEP_ALIVE_S,
                # Otherwise any local caller could claim another address.
                proxy_headers=bool(self._config.trusted_proxies),
                forwarded_allow_ips=[*self._config.trusted_proxies],
            )
        )
        server.config.load()
        server.config.ssl = None if self._certificate is None else self._certificate.context
        self._server = server
        self._heartbeat = time.monotonic()
        arguments = (server, sockets, listening)
        self._thread = threading.Thread(target=self._serve, args=arguments, name="http", daemon=True)
        self._thread.start()
        pause = threading.Event()
        waited = 0.0
        while not server.started and self._thread.is_alive() and waited < _START_S:
            pause.wait(0.01)
            waited += 0.01
        if not server.started:
            raise EdgekitError("the HTTP server did not start", hint="the log has the details")
        logger.info("listening on %s", self.url)
        if self._config.tcp and self._config.socket is not None:
            logger.info("listening on %s", self._config.socket)
        keys = self._keys_required or self._access.keys.current().configured
        if self._config.tcp and not is_loopback(self._config.host) and not (self._config.allowed_hosts or keys):
            logger.warning(
                "http: other machines can reach the daemon on %s without API keys, and so can web pages in their "
                "browsers, under any host name (hint: make a key with `edgekit key add NAME`, and list the names by "
                "which clients call the daemon in http.allowed_hosts)",
                self._config.host,
            )

    def reload(self) -> None:
        """Read the certificate again; the connections that are open keep theirs."""
        if self._certificate is not None:
            self._certificate.reload()

    def stop(self) -> None:
        """Stop listening, let open replies finish, and join. Stop the worker first: it ends them."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._server = self._thread = None

    def _serve(self, server: uvicorn.Server, sockets: list[socket.socket], listening: contextlib.ExitStack) -> None:
        async def serve() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(self._connections.on_loop_error)
            create = loop.create_server

            async def create_server(*args: Any, **options: Any) -> asyncio.Server:
                # uvicorn has one setting for all sockets, and none for slow handshakes.
                if options["sock"].family == socket.AF_UNIX:
                    options["ssl"] = None
                if options.get("ssl") is not None:
                    options["ssl_handshake_timeout"] = HEADER_S
                return await create(*args, **options)

            loop.create_server = create_server  # type: ignore[method-assign]
            beat = asyncio.create_task(self._beat())
            try:
                await server.serve(sockets=sockets)
            finally:
                beat.cancel()

        with listening:
            asyncio.run(serve())

    async def _beat(self) -> None:
        while True:
            self._heartbeat = time.monotonic()
            self._connections.check()
            await asyncio.sleep(1.0)

    def _operations(self) -> list[Operation]:
        return route_table(
            self._endpoint,
            models=Models(lambda: self._backend()[1]),
            ollamas=OllamaModels(lambda: self._info, lambda: self._backend()[1]),
            utility=Utilities(self._backend, self._problem),
            responses=Responses(self._config),
            healthz=self._healthz,
            readyz=self._readyz,
            metrics=self._show_metrics,
        )

    def _application(self) -> Starlette:
        config, operations = self._config, self._operations()
        index = RouteIndex(operations)
        return Starlette(
            routes=[operation.route() for operation in operations],
            middleware=[
                Middleware(
                    OriginCheck,
                    loopback=is_loopback(config.host),
                    allowed=config.allowed_hosts,
                    origins=self._origins,
                ),
                cors(self._origins),
                Middleware(
                    Authentication,
                    access=self._access,
                    metrics=self._metrics,
                    required=lambda: self._keys_required,
                    names=lambda: () if self._info is None else self._info.names,
                    index=index,
                ),
            ],
            exception_handlers={
                HTTPException: partial(_on_http_error, index),
                EdgekitError: partial(_on_error, index),
                Exception: partial(_on_fault, index),
            },
        )

    def _endpoint(self, dialect: Dialect, errors: Errors) -> Answer:
        endpoint = Endpoint(
            self._backend,
            self._metrics,
            self._config.max_body_bytes,
            self._bodies,
            dialect=dialect,
            refusal=partial(refusal, errors),
            access=self._access,
        )

        async def answer(request: Request) -> Response:
            return await endpoint(request)

        return answer

    def _backend(self) -> tuple[EngineWorker, ModelInfo]:
        if self._worker is None or self._info is None:
            raise not_ready(self._activity())
        return self._worker, self._info

    def _problem(self) -> str | None:
        """Return why no request can be served; None if requests are accepted."""
        if self._worker is None:
            return self._activity() or "the model is loading"
        if self._worker.failed:
            return "generation has failed"
        return None if self._worker.accepting else "shutting down"

    async def _healthz(self, _: Request) -> Response:
        problem = None if self._health is None else self._health.problem
        return PlainTextResponse("ok\n") if problem is None else PlainTextResponse(f"{problem}\n", 503)

    async def _readyz(self, _: Request) -> Response:
        problem = self._problem()
        if problem is not None:
            return PlainTextResponse(f"{problem}\n", 503)
        info, activity = self._info, self._activity()
        if info is None or self._keys_required or self._access.keys.current().configured:
            # No details for senders without a key.
            return PlainTextResponse("ready\n")
        besides = f"; {activity}" if activity else ""
        if not info.runner:
            return PlainTextResponse(f"ready{besides}\n")
        better = "".join(f"not on {one}\n" for one in info.rejected)
        return PlainTextResponse(f"ready, on {info.runner}{besides}\n{better}")

    async def _show_metrics(self, _: Request) -> Response:
        # On another thread: a board's sensors take a while to answer, and answers are streamed from this one.
        body, kind = await asyncio.to_thread(self._metrics.render)
        return Response(body, headers={"Content-Type": kind})


async def _on_http_error(index: RouteIndex, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  the handler is registered for it
    allowed = (error.headers or {}).get("Allow", "")
    path = request.scope["path"]
    refused = http_error(error.status_code, request.method, path, allowed=allowed, paths=index.paths)
    response = refusal(index.errors(path), refused)
    if allowed:
        response.headers["Allow"] = allowed
    return response


async def _on_error(index: RouteIndex, request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgekitError)  # noqa: S101  the handler is registered for it
    return refusal(index.errors(request.scope["path"]), error)


async def _on_fault(index: RouteIndex, request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    fault = EdgekitError("internal error", hint="the daemon's log has the details")
    return refusal(index.errors(request.scope["path"]), fault)


def _no_keys(host: str) -> ConfigError:
    return ConfigError(
        f"on {host} other machines could use the daemon without an API key",
        hint="make one with `edgekit key add NAME`, or listen on 127.0.0.1, or allow it: `http.insecure: true` "
        "(--insecure)",
        code="keys_required",
    )
