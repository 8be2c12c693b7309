"""The daemon as a service: write, enable, remove and inspect a systemd unit or a launchd job."""

from __future__ import annotations

from edgekit.service.manage import Installed, ServiceStatus, install, service_file, status, uninstall
from edgekit.service.spec import ServiceSpec, find_executable

__all__ = [
    "Installed",
    "ServiceSpec",
    "ServiceStatus",
    "find_executable",
    "install",
    "service_file",
    "status",
    "uninstall",
]
