"""`edgekit ask`: ask a running daemon, over either door."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from edgekit.cli.output import print_piece, stderr
from edgekit.errors import ConfigError
from edgekit.generation.request import Delta, Finish, Message

__all__ = ["ask", "split_address"]


@click.command()
@click.argument("prompt")
@click.option("--http", "url", metavar="URL", help="Server [http://127.0.0.1:8090].")
@click.option("--mqtt", "broker", metavar="HOST[:PORT]", help="Ask over MQTT through this broker instead.")
@click.option("--device", help="Which device to ask over MQTT [this host's name].")
@click.option("--username", help="At the broker.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True), help="File with the password.")
@click.option("--tls", is_flag=True, help="Speak TLS with the broker.")
@click.option("--ca-file", type=click.Path(path_type=Path, exists=True), help="Authorities to trust [the system's].")
@click.option("--prefix", default="edgekit", show_default=True, help="First level of the device's topics.")
@click.option("--reply-prefix", default="edgekit-replies", show_default=True, help="Where the answer is listened for.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=int)
@click.option("--temperature", type=float)
@click.option("--seed", type=int)
@click.option(
    "--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds of silence to bear."
)
@click.option("--stats", is_flag=True, help="Print tokens/s to stderr.")
def ask(
    *,
    prompt: str,
    url: str | None,
    broker: str | None,
    device: str | None,
    username: str | None,
    password_file: Path | None,
    tls: bool,
    ca_file: Path | None,
    prefix: str,
    reply_prefix: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    timeout_s: float,
    stats: bool,
) -> None:
    """Ask PROMPT of a running daemon and stream the answer. A prompt of `-` is read from standard input."""
    if url and broker:
        raise ConfigError("--http and --mqtt are two doors: choose one")
    text = sys.stdin.read() if prompt == "-" else prompt
    messages = ([Message("system", system)] if system else []) + [Message("user", text)]
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    events: Iterator[Delta | Finish]
    if broker:
        from edgekit.client.mqtt import ask_mqtt
        from edgekit.daemon.mqtt.topics import default_device_id

        host, port = split_address(broker, 1883)
        password = password_file.read_text(encoding="utf-8").rstrip("\r\n") if password_file else None
        events = ask_mqtt(
            host,
            port or 1883,
            device or default_device_id(),
            messages,
            username=username,
            password=password,
            tls=tls,
            ca_file=ca_file,
            prefix=prefix,
            reply_prefix=reply_prefix,
            timeout_s=timeout_s,
            **options,
        )
    else:
        from edgekit.client.http import ask_http

        events = ask_http(url or "http://127.0.0.1:8090", messages, timeout_s=timeout_s, **options)
    # Closing the iterator on Ctrl-C tells the daemon to stop generating.
    with closing(events):
        for event in events:
            if isinstance(event, Delta):
                print_piece(event)
            else:
                sys.stdout.write("\n")
                sys.stdout.flush()  # before what follows on stderr
                if stats:
                    stderr.print(_stats(event), style="dim")


def _stats(finish: Finish) -> str:
    rates = finish.timings.as_rates(finish.usage)
    words = [f"{finish.usage.prompt_tokens} + {finish.usage.completion_tokens} tokens"]
    names = {"prompt_tokens_per_s": "prompt", "decode_tokens_per_s": "decode"}
    words += [f"{names[key]} {value:.0f} tokens/s" for key, value in rates.items()]
    return ", ".join(words)


def split_address(address: str, default_port: int | None) -> tuple[str, int | None]:
    """Split `HOST`, `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        ConfigError: The port is no port.
    """
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return address.strip("[]"), default_port
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise ConfigError(f"`{address}` is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)
