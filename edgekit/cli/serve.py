"""`edgekit serve`: the daemon."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from edgekit.config import load_config

__all__ = ["serve"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration file [edgekit.yaml, where there is one]."
)
@click.option("--host", help="Address the HTTP door listens on [127.0.0.1].")
@click.option("--port", "--http-port", type=int, help="Port of the HTTP door [8090]; 0 takes a free one.")
@click.option("--no-http", is_flag=True, help="Keep the HTTP door closed.")
@click.option("--mqtt", "broker", metavar="HOST[:PORT]", help="Broker of the MQTT door [closed].")
@click.option("--device", help="This device's name in MQTT topics [the host's name].")
@click.option("--context-length", type=int, help="Tokens a chat may hold [the bundle's].")
@click.option("--threads", type=int, help="Threads that compute [one per physical core].")
@click.option(
    "--draft-bundle",
    "--model-draft",
    type=click.Path(path_type=Path),
    help="Bundle of a smaller model of the same tokenizer, which guesses ahead [none].",
)
@click.option("--draft-max", type=int, help="Tokens that it guesses at most in a step [8].")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
def serve(
    *,
    bundle: Path | None,
    config: Path | None,
    host: str | None,
    port: int | None,
    no_http: bool,
    broker: str | None,
    device: str | None,
    context_length: int | None,
    threads: int | None,
    draft_bundle: Path | None,
    draft_max: int | None,
    log_level: str | None,
) -> None:
    """Answer over HTTP and MQTT from BUNDLE until told to stop."""
    from edgekit.cli.ask import split_address
    from edgekit.daemon.app import Daemon

    mqtt_host, mqtt_port = split_address(broker, None) if broker else (None, None)
    flags: dict[str, object | None] = {
        "bundle": bundle,
        "http.host": host,
        "http.port": port,
        "http.enabled": False if no_http else None,
        "mqtt.host": mqtt_host,
        "mqtt.port": mqtt_port,
        "mqtt.device_id": device,
        "generation.context_length": context_length,
        "generation.threads": threads,
        "generation.draft_bundle": draft_bundle,
        "generation.draft_max": draft_max,
        "log_level": log_level,
    }
    overrides = {key: value for key, value in flags.items() if value is not None}
    settings = load_config(config, env=os.environ, overrides=overrides)
    # The journal adds the time itself.
    form = "%(levelname)s %(name)s: %(message)s" if "JOURNAL_STREAM" in os.environ else None
    logging.basicConfig(level=settings.log_level.upper(), format=form or "%(asctime)s %(levelname)s %(message)s")
    Daemon(settings).run()
