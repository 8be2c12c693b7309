"""`edgekit key`: add, list and revoke API keys of the daemon on this machine."""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click

from edgekit.cli.console import console, stderr
from edgekit.cli.output import print_json
from edgekit.errors import ConfigError

__all__ = ["key"]

_file = click.option(
    "--file", "file", type=click.Path(path_type=Path), help="The keys file [the configuration's, else the daemon's]."
)
_config = click.option("--config", type=click.Path(path_type=Path), help="Configuration file that names the keys file.")
_json = click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
_SYSTEMD = {
    "CACHE_DIRECTORY": "/var/cache/edgekit",
    "CREDENTIALS_DIRECTORY": "/run/credentials/edgekit.service",
    "RUNTIME_DIRECTORY": "/run/edgekit",
    "STATE_DIRECTORY": "/var/lib/edgekit",
}
_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


@click.group()
def key() -> None:
    """Add, list or revoke API keys; a running daemon sees the change at once.

    Without keys the daemon answers everyone on this machine, and does not listen on other addresses.
    """


@key.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help="inference, metrics or admin; may be repeated [inference].")
@click.option("--expires", help="When it ceases to be valid: 30d, 12h, 1y or 2027-01-31 [never].")
@click.option("--requests-per-minute", type=int, help="Maximum rate of requests that generate [no limit].")
@click.option("--tokens-per-minute", type=int, help="Maximum rate of prompt and completion tokens [no limit].")
@click.option("--share", type=float, default=1.0, help="Weight in the queue [1].")
@click.option(
    "--priority", type=int, default=0, help="Smallest `priority` of its requests [0]; smaller is served first."
)
@click.option("--model", "models", multiple=True, help="A model that it may use; may be repeated [all].")
@click.option("--tenant", help="Keys of one tenant share cached prompts [a tenant of its own].")
@_json
@_file
@_config
def add(
    *,
    name: str,
    scopes: tuple[str, ...],
    expires: str | None,
    models: tuple[str, ...],
    as_json: bool,
    file: Path | None,
    config: Path | None,
    **limits: Any,
) -> None:
    """Make a key for NAME and print it. It is shown only now: the file has its hash."""
    from edgekit.daemon.access.key_file import add_key
    from edgekit.daemon.access.keys import ApiKey, digest_of, new_secret, timestamp

    path = _path(file, config)
    now = datetime.now(timezone.utc)
    key_id, secret = new_secret()
    made = ApiKey(
        key_id,
        name,
        digest_of(secret.encode()),
        timestamp(now),
        expires=None if expires is None else timestamp(_time(expires, now)),
        scopes=tuple(dict.fromkeys(scopes)) or ("inference",),  # type: ignore[arg-type]  # checked by ApiKey
        models=models,
        **limits,
    )
    add_key(path, made)
    if as_json:
        print_json({"key": secret, **_shown(made)})
        return
    click.echo(secret)
    stderr.print(f"\nadded `{name}` to {path}; the key is not shown again", style="dim")


@key.command("list")
@_json
@_file
@_config
def list_keys(*, as_json: bool, file: Path | None, config: Path | None) -> None:
    """List the keys and what they may be used for."""
    from rich.table import Table

    from edgekit.daemon.access.key_file import read_keys

    path = _path(file, config)
    try:
        keys = read_keys(path)
    except FileNotFoundError:
        keys = ()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="run it as the daemon's account or as root"
        ) from error
    if as_json:
        print_json([_shown(one) for one in keys])
        return
    if not keys:
        stderr.print(f"there are no keys in {path}")
        return
    table = Table("name", "id", "scopes", "limits", "expires", box=None, pad_edge=False)
    for one in keys:
        rates = ((one.requests_per_minute, "requests/min"), (one.tokens_per_minute, "tokens/min"))
        limits = [f"{rate} {unit}" for rate, unit in rates if rate is not None]
        limits += [f"share {one.share:g}"] if one.share != 1 else []
        limits += [f"priority {one.priority}"] if one.priority else []
        limits += [f"model {model}" for model in one.models]
        limits += [f"tenant {one.tenant}"] if one.tenant else []
        expires = "never" if one.expires is None else one.expires + (" (expired)" if one.expired() else "")
        table.add_row(one.name, one.id, " ".join(one.scopes), ", ".join(limits), expires)
    console.print(table)


@key.command()
@click.argument("name")
@_file
@_config
def revoke(*, name: str, file: Path | None, config: Path | None) -> None:
    """Remove the key with this name or id."""
    from edgekit.daemon.access.key_file import read_keys, revoke_key

    path = _path(file, config)
    revoked = revoke_key(path, name)
    console.print(f"revoked `{revoked.name}` ({revoked.id})")
    if not read_keys(path):
        stderr.print(f"\nhint: no keys are left, and requests need one; remove {path} to serve without keys")


def _path(file: Path | None, config: Path | None) -> Path:
    """Return the keys file: that of the flag, else of the configuration, else the daemon's default.

    Raises:
        ConfigError: There is no folder for it, or the configuration is wrong.
    """
    from edgekit.config import load_config
    from edgekit.daemon.access.key_file import default_keys_file

    path = file
    if path is None:
        # The service's configuration may use variables that systemd sets for the service only.
        settings = load_config(config, env={**_SYSTEMD, **os.environ}, overrides={})
        path = settings.access.keys_file or default_keys_file()
    if path is None:
        raise ConfigError("there is no folder for the keys", hint="name the keys file with --file")
    return path


def _shown(one: Any) -> dict[str, Any]:
    return {name: value for name, value in one.to_json().items() if name != "sha256"}


def _time(text: str, now: datetime) -> datetime:
    found = re.fullmatch(r"([0-9]{1,5})([hdwy])", text)
    try:
        if found:
            return now + timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"`{text}` is not a time", hint="write it as 30d, 12h, 1y or 2027-01-31") from error
    at = at if at.tzinfo else at.replace(tzinfo=timezone.utc)
    if at <= now:
        raise ConfigError(f"`{text}` has passed", hint="write it as 30d, 12h, 1y or a date in the future")
    return at
