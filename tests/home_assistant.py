"""A real Home Assistant: from PyPI, on Debian 13's Python, in a root of its own that is kept in the cache folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.arm_root import download_packages
from tests.broker import free_port

__all__ = ["HomeAssistantServer", "home_assistant_root"]

VERSION = "2026.2.3"  # the last for Python 3.13
# What Home Assistant would install by itself at the first start, pinned as in its manifests.
_REQUIREMENTS = (
    "home-assistant-frontend==20260128.6",
    "paho-mqtt==2.1.0",
    "ollama==0.5.1",
    "hassil==3.5.0",
    "home-assistant-intents==2026.1.28",
    "cronsim==2.7",
    "numpy==2.3.2",
    "psutil-home-assistant==0.0.1",
    "PyTurboJPEG==1.8.0",
    "securetar==2025.2.1",
)
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_START_S = 300.0


def home_assistant_root() -> Path:
    """Return the root, made if it is missing: apt, dpkg and pip, about two minutes."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs root (for chroot) and Debian's apt-get")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"
    root = cache / f"home-assistant-{VERSION}"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Renamed into place when it is complete.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _make(Path(folder))
            (Path(folder) / "root").rename(root)
    return root


def _make(folder: Path) -> None:
    root = folder / "root"
    root.mkdir()
    packages = ("base-files", "python3", "python3-venv", "libstdc++6")
    for package in download_packages(folder / "apt", None, *packages, suite="trixie"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    (root / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
    for file in (_CERTIFICATES, "/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(file, root / file.lstrip("/"))
    for device in ("null", "urandom", "random", "zero"):
        subprocess.run(["cp", "-a", f"/dev/{device}", str(root / "dev")], check=True)
    _run(root, "/usr/bin/python3.13", "-m", "venv", "/opt/venv")
    _run(root, "python", "-m", "pip", "install", "--quiet", "uv")
    # The pinned version has no wheel for this Python, and a compiler would be needed.
    (root / "opt/overrides.txt").write_text("lru-dict>=1.3\n")
    install = ["uv", "pip", "install", "--quiet", "--python", "/opt/venv/bin/python"]
    install += [
        "--override",
        "/opt/overrides.txt",
        "--only-binary",
        ":all:",
        "--no-binary",
        "pyric",
        "--no-binary",
        "pyturbojpeg",
    ]
    _run(root, *install, f"homeassistant=={VERSION}", *_REQUIREMENTS)


def _command(root: Path, *words: str) -> dict[str, Any]:
    """The arguments of `subprocess` that run a program in the root."""
    settings = {
        "PATH": "/opt/venv/bin:/usr/sbin:/usr/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PIP_CERT": _CERTIFICATES,
        "SSL_CERT_FILE": _CERTIFICATES,
    }
    return {"args": ["chroot", str(root), *words], "env": settings}


def _run(root: Path, *words: str) -> None:
    subprocess.run(**_command(root, *words), check=True)


class HomeAssistantServer:
    """A running Home Assistant with an owner; `with HomeAssistantServer(root) as server`.

    Args:
        root: From `home_assistant_root`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = Path(tempfile.mkdtemp(dir=root / "opt", prefix="config-"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._http = f"http:\n  server_host: 127.0.0.1\n  server_port: {port}\n"
        (self._folder / "configuration.yaml").write_text(self._http)
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> HomeAssistantServer:  # noqa: PYI034 - typing.Self needs Python 3.11
        folder = f"/opt/{self._folder.name}"
        with (self._folder / "stdout").open("wb") as output:
            command = _command(self._root, "hass", "-c", folder, "--skip-pip", "--log-file", f"{folder}/log")
            self._process = subprocess.Popen(**command, stdout=output, stderr=subprocess.STDOUT)
        self.wait_for(lambda: self._client.get("/api/onboarding").status_code == 200, "its HTTP server")
        client_id = f"{self.url}/"
        owner = {"client_id": client_id, "name": "o", "username": "o", "password": "owner", "language": "en"}
        code = self.post("/api/onboarding/users", owner)["auth_code"]
        grant = {"grant_type": "authorization_code", "code": code, "client_id": client_id}
        token = self._client.post("/auth/token", data=grant).raise_for_status().json()["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"
        self.wait_for(lambda: self.get("/api/config")["state"] == "RUNNING", "the end of its start")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self) -> str:
        """Its warnings and errors, of its log and of its standard output."""
        files = [file for name in ("log", "stdout") if (file := self._folder / name).exists()]
        return "\n".join(file.read_text(errors="replace") for file in files)

    def wait_for(self, check: Callable[[], Any], what: str, within_s: float = _START_S) -> Any:
        """Wait until `check` is true, whatever HTTP error it raises before; returns its value."""
        deadline = time.monotonic() + within_s
        while True:
            assert self._process is None or self._process.poll() is None, self.log()
            try:
                if value := check():
                    return value
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.log()}"
            time.sleep(0.2)

    def get(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()

    def post(self, path: str, body: object) -> Any:
        response = self._client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert response.is_success, (path, response.status_code, response.text)
        return response.json()

    def configure(self, configuration: str) -> None:
        """Add automations and scripts to its `configuration.yaml`, and load them."""
        (self._folder / "configuration.yaml").write_text(self._http + configuration, encoding="utf-8")
        for domain in ("script", "automation"):
            self.act(f"{domain}.reload")

    def integrate(self, handler: str, **answers: object) -> str:
        """Add an integration through its configuration flow, as its page does; returns the entry's id."""
        flow = self.post("/api/config/config_entries/flow", {"handler": handler})
        if flow["type"] == "menu":
            flow = self.post(f"/api/config/config_entries/flow/{flow['flow_id']}", {"next_step_id": "broker"})
        flow = self.post(f"/api/config/config_entries/flow/{flow['flow_id']}", answers)
        assert flow["type"] == "create_entry", flow
        return str(flow["result"]["entry_id"])

    def integrate_below(self, entry: str, kind: str, **answers: object) -> None:
        """Add a subentry to an integration, such as a conversation agent."""
        path = "/api/config/config_entries/subentries/flow"
        flow = self.post(path, {"handler": [entry, kind]})
        flow = self.post(f"{path}/{flow['flow_id']}", answers)
        assert flow["type"] == "create_entry", flow

    def states(self) -> dict[str, dict[str, Any]]:
        """All entities, by id, with state and attributes."""
        return {state["entity_id"]: state for state in self.get("/api/states")}

    def act(self, action: str, **data: object) -> Any:
        """Perform an action, such as `notify.send_message`."""
        return self.post(f"/api/services/{action.replace('.', '/')}", data)
