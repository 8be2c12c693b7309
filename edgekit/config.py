"""Daemon configuration: defaults, then `edgekit.yaml`, then the environment, then flags; into frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DaemonConfig", "GenerationConfig", "HttpConfig", "MqttConfig"]


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The HTTP door.

    Attributes:
        host: Address to listen on; loopback unless the user opens it.
        port: 0 lets the system choose.
        max_body_bytes: A larger request body is refused.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 8090
    max_body_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """The MQTT door.

    Attributes:
        host: The broker; None keeps the door closed.
        device_id: Names this device in topics; the host's name unless set.
        prefix: First level of every topic.
        password_file: File that holds the password (a systemd credential, say); never the password itself.
        tls: Use TLS; `ca_file` None trusts the system's authorities.
        reply_prefixes: Response topics must start with one of these; empty allows any topic outside `prefix/…` and `$…`.
        session_expiry_s: How long the broker keeps our session, and queued requests, while we are away.
        coalesce_ms: Deltas of one answer are gathered this long into one message.
        max_payload_bytes: A larger request is refused.
    """

    host: str | None = None
    port: int = 1883
    device_id: str | None = None
    prefix: str = "edgekit"
    username: str | None = None
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    reply_prefixes: tuple[str, ...] = ()
    keepalive_s: int = 30
    session_expiry_s: int = 3600
    coalesce_ms: int = 80
    max_payload_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """The generation core.

    Attributes:
        context_length: Tokens a sequence may hold; None takes the bundle's own.
        max_queue: Requests that may wait; one more is answered `overloaded`.
        threads: Threads of the runner; None takes one per physical core.
    """

    context_length: int | None = None
    max_queue: int = 16
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Everything `edgekit serve` reads."""

    bundle: Path | None = None
    http: HttpConfig = field(default_factory=HttpConfig)
    mqtt: MqttConfig = field(default_factory=MqttConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    log_level: str = "info"
