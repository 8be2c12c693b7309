"""`edgekit service uninstall` takes the device out of Home Assistant; a double of systemctl, a real broker."""

from __future__ import annotations

import plistlib
from pathlib import Path

import pytest

from edgekit.config import MqttConfig
from edgekit.daemon.mqtt.home_assistant import announced_topic
from edgekit.device_id import device_id
from edgekit.machine import state_folder
from edgekit.service import ServiceSpec, launchd, manage, systemd
from edgekit.service.configured import configuration_of, state_folder_of
from tests.broker import Broker, Caller, free_port
from tests.conftest import edgekit


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unit of a user's service whose configuration has a space and a per cent sign in its path."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(manage, "_require_manager", lambda _: None)
    monkeypatch.setattr(manage, "_on_macos", lambda: False)
    monkeypatch.setattr(systemd, "systemctl", lambda *_, **__: "")
    spec = ServiceSpec(Path("/opt/edgekit/bin/edgekit"), config=tmp_path / "a 100% file.yaml", scope="user")
    path = systemd.unit_path("user", None)
    path.parent.mkdir(parents=True)
    path.write_text(systemd.render_unit(spec))
    return path


def configure(unit: Path, **mqtt: object) -> None:
    lines = "".join(f"  {key}: {value}\n" for key, value in mqtt.items())
    (unit.parents[3] / "a 100% file.yaml").write_text(f"mqtt:\n  host: 127.0.0.1\n{lines}")


@pytest.mark.broker
def test_the_device_is_removed_from_home_assistant_with_the_service(unit: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("kitchen\n")
    with Broker(tmp_path) as broker:
        settings = {"port": broker.port, "device_id": "kitchen", "username": "kitchen", "password_file": password}
        configure(unit, **settings, home_assistant="true")
        topic = announced_topic(MqttConfig(), "kitchen")
        with Caller(broker.port) as caller:
            caller.publish(topic, {"device": {}}, retain=True)
        done = edgekit("service", "uninstall", "--user")
        assert done.stdout == f"removed {unit}\nremoved kitchen from Home Assistant\n"
        assert not unit.exists()
        with Caller(broker.port, topic) as caller:
            assert caller.silent(0.2)


@pytest.mark.broker
def test_without_a_device_id_the_one_of_the_state_folder_is_removed(unit: Path, tmp_path: Path) -> None:
    name = device_id(state=state_folder())  # as the daemon has kept it
    with Broker(tmp_path) as broker:
        configure(unit, port=broker.port, home_assistant="true", home_assistant_prefix="ha/x")
        done = edgekit("service", "uninstall", "--user")
    assert done.stdout == f"removed {unit}\nremoved {name} from Home Assistant\n"


def test_a_broker_that_is_gone_is_a_warning_with_the_command_that_helps(unit: Path) -> None:
    configure(unit, port=free_port(), device_id="kitchen", home_assistant="true")
    done = edgekit("service", "uninstall", "--user")
    assert done.stdout == f"removed {unit}\n"
    assert "warning: the device was not removed from Home Assistant: cannot reach the broker" in done.stderr
    assert "mosquitto_pub -r -n -t homeassistant/device/edgekit_kitchen/config" in done.stderr


@pytest.mark.parametrize("content", ["mqtt: {host: nowhere.invalid}\n", "mqtt: [\n", None])
def test_a_device_that_was_not_announced_needs_no_broker(unit: Path, content: str | None) -> None:
    if content is not None:
        (unit.parents[3] / "a 100% file.yaml").write_text(content)
    done = edgekit("service", "uninstall", "--user")
    assert (done.stdout, done.stderr) == (f"removed {unit}\n", "")


def test_the_configuration_of_a_job_of_launchd_and_of_a_system_service_is_found(tmp_path: Path) -> None:
    config = tmp_path / "edgekit.yaml"
    config.write_text("mqtt:\n  host: broker\n  password_file: $CREDENTIALS_DIRECTORY/mqtt-password\n")
    spec = ServiceSpec(Path("/opt/bin/edgekit"), config=config, scope="system", run_as="alice")
    job, unit = tmp_path / "job.plist", tmp_path / "edgekit.service"
    job.write_text(launchd.render_plist(spec))
    unit.write_text(systemd.render_unit(spec))
    assert str(config) in plistlib.loads(job.read_bytes())["ProgramArguments"]
    for file in (job, unit):
        # Where the unit's LoadCredential= reads it: only the daemon sees systemd's copy.
        assert configuration_of(file, "system").mqtt.password_file == Path("/etc/edgekit/mqtt-password")
    assert state_folder_of(unit, "system") == Path("/var/lib/edgekit")
    assert state_folder_of(job, "system") == state_folder_of(unit, "user") == state_folder()
