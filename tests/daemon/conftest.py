"""A machine with a GPU and TensorRT, which are doubles, and daemons on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.config import DaemonConfig, GenerationConfig, HttpConfig, MqttConfig
from edgekit.daemon.app import Daemon
from edgekit.daemon.notify import Notifier
from edgekit.generation.engine_wanted import this_target
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.tensorrt.builder_double import CAPABILITY, BuilderDouble, export_two, machine_with_tensorrt


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_two(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BuilderDouble, DriverDouble]]:
    with machine_with_tensorrt(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def builder(machine: tuple[BuilderDouble, DriverDouble]) -> BuilderDouble:
    return machine[0]


@pytest.fixture
def driver(machine: tuple[BuilderDouble, DriverDouble]) -> DriverDouble:
    return machine[1]


MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def make_daemon(exported: Path, tmp_path: Path, builder: BuilderDouble) -> Iterator[MakeDaemon]:
    """Returns a function that makes a daemon on a machine with a GPU; all share a copy of the bundle."""
    made: list[Daemon] = []
    bundle = Path(shutil.copytree(exported / "bundle", tmp_path / "bundle"))

    def make(
        mqtt_port: int | None = None,
        *,
        device_id: str = "box",
        notify: Notifier | None = None,
        **options: Any,
    ) -> Daemon:
        options = {"threads": 1, "parallel": 3, "context_length": 128, "ignore_compatible": True, **options}
        config = DaemonConfig(
            bundle=bundle,
            http=HttpConfig(port=0),
            mqtt=MqttConfig(
                host=None if mqtt_port is None else "127.0.0.1", port=mqtt_port or 1883, device_id=device_id
            ),
            generation=GenerationConfig(**options),
        )
        here = replace(this_target(), compute_capability=CAPABILITY)
        made.append(Daemon(config, notify, find_target=lambda: here))
        return made[-1]

    yield make
    builder.go_on.set()
    for daemon in made:
        daemon.stop(drain_s=0.0)
