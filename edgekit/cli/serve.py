"""`edgekit serve`: the daemon."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from edgekit.cli.output import print_error
from edgekit.cli.runner_option import RUNNERS
from edgekit.config import load_config
from edgekit.daemon.launchd import is_launchd_job
from edgekit.daemon.log_format import LogFormatter
from edgekit.errors import ConfigError

__all__ = ["serve"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="Further name of the model; repeatable [none].",
)
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file [the first edgekit.yaml found].")
@click.option("--host", help="Address of the HTTP API [127.0.0.1].")
@click.option("--port", "--http-port", type=int, help="Port of the HTTP API [8090]; 0 takes a free one.")
@click.option("--socket", type=click.Path(path_type=Path), help="Unix socket of the HTTP API, besides the port [none].")
@click.option("--insecure", is_flag=True, help="Answer other machines without API keys (`edgekit key`).")
@click.option("--no-http", is_flag=True, help="Disable the HTTP API.")
@click.option("--mqtt", "broker", metavar="HOST[:PORT]", help="Enable the MQTT API, through this broker.")
@click.option("--device", help="This device's id in MQTT topics [`edgekit doctor` shows it].")
@click.option("--context-length", type=int, help="Maximum tokens of a chat [the bundle's].")
@click.option("--runner", type=RUNNERS, help="What runs the model [auto: the best that works here].")
@click.option("--no-build", is_flag=True, help="Build no TensorRT engine.")
@click.option("--threads", type=int, help="Compute threads [one per usable core].")
@click.option(
    "--draft-bundle",
    "--model-draft",
    type=click.Path(path_type=Path),
    help="Bundle of a draft model with the same tokenizer, for speculative decoding [none].",
)
@click.option("--draft-max", type=int, help="Maximum draft tokens per step [8].")
@click.option("--ignore-compatible", is_flag=True, help="Serve a bundle that was made for other targets.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
def serve(
    *,
    bundle: Path | None,
    aliases: tuple[str, ...],
    config: Path | None,
    host: str | None,
    port: int | None,
    socket: Path | None,
    insecure: bool,
    no_http: bool,
    broker: str | None,
    device: str | None,
    context_length: int | None,
    runner: str | None,
    no_build: bool,
    threads: int | None,
    draft_bundle: Path | None,
    draft_max: int | None,
    ignore_compatible: bool,
    log_level: str | None,
) -> None:
    """Serve BUNDLE over HTTP and MQTT until SIGTERM or Ctrl-C."""
    from edgekit.cli.addresses import split_address

    mqtt_host, mqtt_port = split_address(broker, None) if broker else (None, None)
    flags: dict[str, object | None] = {
        "bundle": bundle,
        # Commas separate them, as in llama-server's option of this name and in the variable.
        "aliases": [name.strip() for given in aliases for name in given.split(",")] or None,
        "http.host": host,
        "http.port": port,
        "http.socket": socket,
        "http.insecure": True if insecure else None,
        "http.enabled": False if no_http else None,
        "mqtt.host": mqtt_host,
        "mqtt.port": mqtt_port,
        "mqtt.device_id": device,
        "generation.context_length": context_length,
        "generation.runner": runner,
        "generation.build_engine": False if no_build else None,
        "generation.threads": threads,
        "generation.draft_bundle": draft_bundle,
        "generation.draft_max": draft_max,
        "generation.ignore_compatible": True if ignore_compatible else None,
        "log_level": log_level,
    }
    overrides = {key: value for key, value in flags.items() if value is not None}
    try:
        _serve(config, overrides)
    except ConfigError as error:
        if not is_launchd_job():
            raise
        # launchd restarts a job after any other status, and a restart does not change the configuration.
        print_error(error.message, error.hint)


def _serve(config: Path | None, overrides: dict[str, object]) -> None:
    from edgekit.daemon.app import Daemon

    settings = load_config(config, env=os.environ, overrides=overrides)
    # The journal adds the time itself.
    journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(with_time=not journal))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    Daemon(settings).run()
