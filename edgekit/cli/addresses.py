"""The options that name a running daemon, for `edgekit ask` and `edgekit run`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.device_id import device_id
from edgekit.errors import ConfigError, import_failure

if TYPE_CHECKING:
    from edgekit.generation.types import Delta, Finished, Message, Restarted, ToolCallDelta

__all__ = ["Daemon", "daemon_options", "split_address"]

_Command = TypeVar("_Command", bound=Callable[..., object])

_DEFAULT_URL = "http://127.0.0.1:8090"


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon's address, from the options; HTTP on this machine unless one is given.

    Attributes:
        url: The server for HTTP.
        broker: The broker's host and port for MQTT; None for HTTP.
        device: The device's name in topics.
        login: Further arguments of `ask_mqtt`.
        timeout_s: Maximum time without data, in seconds.
    """

    url: str
    broker: tuple[str, int] | None
    device: str
    login: dict[str, Any]
    timeout_s: float

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Daemon:
        """Take the options of `daemon_options` out of a command's arguments.

        Raises:
            ConfigError: Two addresses are given, or an address or the password file is invalid.
        """
        url, broker, device = (options.pop(name) for name in ("url", "broker", "device"))
        password_file, timeout_s = options.pop("password_file"), options.pop("timeout_s")
        names = ("username", "tls", "ca_file", "prefix", "reply_prefix")
        login = {name: options.pop(name) for name in names}
        if url and broker:
            raise ConfigError("--http and --mqtt exclude each other", hint="give one of them")
        if not broker:
            return cls(url or _DEFAULT_URL, None, "", {}, timeout_s)
        if password_file is not None:
            login["password"] = _password(password_file)
        host, port = split_address(broker, 1883)
        return cls("", (host, port or 1883), device or "", login, timeout_s)

    def ask(
        self, messages: Sequence[Message], **options: Any
    ) -> Generator[Delta | ToolCallDelta | Restarted | Finished, None, None]:
        """Send a chat; see `edgekit.client`. Closing the iterator cancels the request."""
        with _client_needs():
            from edgekit.client import ask_http, ask_mqtt
        if self.broker is None:
            return ask_http(self.url, messages, timeout_s=self.timeout_s, **options)
        host, port = self.broker
        return ask_mqtt(host, port, self._device(), messages, timeout_s=self.timeout_s, **self.login, **options)

    def describe(self) -> dict[str, Any]:
        """Return the served model's `id` and further facts.

        Raises:
            EdgekitError: The daemon does not answer.
        """
        with _client_needs():
            from edgekit.client import describe_http, describe_mqtt
        if self.broker is None:
            return describe_http(self.url)
        host, port = self.broker
        return describe_mqtt(host, port, self._device(), **self.login)

    def __str__(self) -> str:
        """The address, for messages."""
        if self.broker is None:
            return self.url
        return f"{self._device()} at {self.broker[0]}:{self.broker[1]}"

    def _device(self) -> str:
        return self.device or device_id(store=False)


def daemon_options(command: _Command) -> _Command:
    """Add the options; `Daemon.from_options` reads them."""
    path = click.Path(path_type=Path, exists=True)
    for option in reversed(
        (
            click.option(
                "--http", "url", metavar="URL", help="Daemon to ask over HTTP, or unix:PATH; its key: $EDGEKIT_API_KEY."
            ),
            click.option("--mqtt", "broker", metavar="HOST[:PORT]", help="Broker through which to ask over MQTT."),
            click.option("--device", help="Device to ask over MQTT [this one: `edgekit doctor` shows its id]."),
            click.option("--username", help="User name for the broker."),
            click.option("--password-file", type=path, help="File with the password for the broker."),
            click.option("--tls", is_flag=True, help="Connect to the broker with TLS."),
            click.option("--ca-file", type=path, help="CA certificates to trust, PEM [the system's]."),
            click.option("--prefix", default="edgekit", show_default=True, help="First level of the device's topics."),
            click.option(
                "--reply-prefix", help="Prefix of the reply topic [edgekit-replies, with --username replies]."
            ),
            click.option(
                "--timeout",
                "timeout_s",
                type=float,
                default=120.0,
                show_default=True,
                help="Maximum seconds without data from a daemon.",
            ),
        )
    ):
        command = option(command)
    return command


def split_address(address: str, default_port: int | None) -> tuple[str, int | None]:
    """Split `HOST`, `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        ConfigError: The host is missing, or the port is not a number from 1 to 65,535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return address.strip("[]"), default_port
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise ConfigError(f"`{address}` is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the password in {file}: {reason}") from error


@contextmanager
def _client_needs() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        failure = import_failure(error, "daemon")
        if failure is None:
            raise
        raise failure from error
