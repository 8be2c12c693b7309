"""`edgekit service`: install, remove or inspect the system service."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.console import console, stderr
from edgekit.cli.output import print_json, print_warning
from edgekit.config import MqttConfig
from edgekit.errors import EdgekitError
from edgekit.service.spec import Scope

__all__ = ["service"]

_scope = click.option("--user", "scope", flag_value="user", default="system", help="A service of your own account.")
_root = click.option("--root", type=click.Path(path_type=Path), help="Work on this image instead of this machine.")


@click.group()
def service() -> None:
    """Install, remove or inspect the system service (systemd, or launchd on macOS)."""


@service.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file of the daemon.")
@click.option("--run-as", help="Account to run as [systemd: a dynamic user].")
@click.option("--executable", type=click.Path(path_type=Path), help="The edgekit program [this one].")
@click.option("--no-start", is_flag=True, help="Enable it, but do not start it now.")
@click.option("--print", "show", is_flag=True, help="Print the unit or property list and write nothing.")
@_scope
@_root
def install(
    *,
    bundle: Path | None,
    config: Path | None,
    run_as: str | None,
    executable: Path | None,
    no_start: bool,
    show: bool,
    scope: str,
    root: Path | None,
) -> None:
    """Write, enable and start a service that serves BUNDLE."""
    from edgekit.service.manage import install as install_service
    from edgekit.service.manage import service_file
    from edgekit.service.spec import ServiceSpec, find_executable

    spec = ServiceSpec(
        executable=(executable or find_executable()).absolute(),
        bundle=bundle.absolute() if bundle else None,
        config=config.absolute() if config else None,
        scope="user" if scope == "user" else "system",
        run_as=run_as,
    )
    if show:
        path, text = service_file(spec, root=root)
        stderr.print(f"# {path}", style="dim")
        click.echo(text, nl=False)
        return
    done = install_service(spec, root=root, start=not no_start)
    console.print(f"wrote and enabled {done.path}" + ("; the service is running" if done.started else ""))
    if done.hint:
        stderr.print(f"\nnext: {done.hint}")


@service.command()
@_scope
@_root
def uninstall(*, scope: str, root: Path | None) -> None:
    """Stop, disable and remove the service, and its device from Home Assistant; bundles and configuration stay."""
    from edgekit.service.manage import uninstall as uninstall_service

    where: Scope = "user" if scope == "user" else "system"
    announced = None if root is not None else _announced(where)
    removed = uninstall_service(where, root=root)
    console.print(f"removed {removed}" if removed else "no service was installed")
    if announced is not None:
        _remove_from_home_assistant(*announced)


def _announced(scope: Scope) -> tuple[MqttConfig, str] | None:
    """Return the broker and the id of the installed service's device; None if it is not in Home Assistant."""
    from edgekit.device_id import device_id
    from edgekit.service.configured import configuration_of, state_folder_of
    from edgekit.service.manage import installed_file

    file = installed_file(scope)
    if file is None:
        return None
    try:
        config = configuration_of(file, scope).mqtt
    except (EdgekitError, OSError):
        return None  # it does not say where the device was announced
    if config.host is None or not config.home_assistant:
        return None
    return config, config.device_id or device_id(state=state_folder_of(file, scope), store=False)


def _remove_from_home_assistant(config: MqttConfig, device: str) -> None:
    from edgekit.daemon.mqtt.removal import remove_device

    try:
        remove_device(config, device)
    except EdgekitError as error:
        print_warning(error.message, error.hint)
        return
    console.print(f"removed {device} from Home Assistant")


@service.command()
@_scope
@_root
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def status(*, scope: str, root: Path | None, as_json: bool) -> None:
    """Show whether the service is installed, enabled and running."""
    from edgekit.service.manage import status as service_status

    found = service_status("user" if scope == "user" else "system", root=root)
    if as_json:
        print_json(found.to_json())
        return
    states = [found.state, "" if found.enabled is None else "enabled" if found.enabled else "not enabled"]
    console.print(f"edgekit ({found.manager}, {found.scope}): {', '.join(state for state in states if state)}")
    for name, value in (("status", found.text), ("pid", found.pid), ("restarts", found.restarts), ("file", found.path)):
        if value is not None:
            console.print(f"  {name}: {value}")
    if found.hint:
        stderr.print(f"\nhint: {found.hint}")
    if found.state != "active":
        raise click.exceptions.Exit(1)
