"""A Debian root for 64-bit Arm, whose programs run under qemu: made by apt and dpkg in a folder, and never booted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["ArmRoot", "download_packages"]

# What a Jetson's system has too: Python, and the C++ library that wheels are linked with.
_PACKAGES = ("python3", "libstdc++6")


class ArmRoot:
    """The root.

    Args:
        folder: Where to make it.
    """

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("needs root (for chroot) and Debian's apt-get")
        self.path = folder / "root"
        self.path.mkdir()
        for package in download_packages(folder / "arm64", "arm64", *_PACKAGES):
            subprocess.run(["dpkg", "-x", str(package), str(self.path)], check=True)
        # Installed nowhere: tests that use an installed one do not change by this one.
        for package in download_packages(folder / "qemu", None, "qemu-user-static"):
            if package.name.startswith("qemu-user-static_"):
                subprocess.run(["dpkg", "-x", str(package), str(folder / "qemu/files")], check=True)
        shutil.copy(folder / "qemu/files/usr/bin/qemu-aarch64-static", self.path)
        for name in ("dev", "proc", "sys", "tmp"):
            (self.path / name).mkdir(exist_ok=True)
        (python,) = self.path.glob("usr/bin/python3.[0-9]*[0-9]")
        self.python = python.name.removeprefix("python")

    def pip_install(self, *requirements: str) -> None:
        """Install wheels for 64-bit Arm into /opt/site, resolved by this machine's pip."""
        platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 36))]
        abis = (f"cp{self.python.replace('.', '')}", "abi3", "none")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        command += ["--target", str(self.path / "opt/site"), "--python-version", self.python, "--implementation", "cp"]
        command += [word for abi in abis for word in ("--abi", abi)]
        command += [word for platform in platforms for word in ("--platform", platform)]
        subprocess.run([*command, *requirements], check=True)

    def popen(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start Python in the root; its output goes to a file."""
        command = ["chroot", str(self.path), "/qemu-aarch64-static", "-cpu", "max", f"/usr/bin/python{self.python}"]
        settings = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/tmp", "PYTHONPATH": "/opt/site", "PYTHONUNBUFFERED": "1"}  # noqa: S108  in the root
        with log.open("wb") as file:
            return subprocess.Popen([*command, *arguments], env=settings, stdout=file, stderr=subprocess.STDOUT)


def download_packages(folder: Path, architecture: str | None, *packages: str, suite: str | None = None) -> list[Path]:
    """Download packages with all that they depend on, as for an empty system.

    Args:
        folder: Where to.
        architecture: None is this machine's.
        packages: Their names.
        suite: Debian's release; None takes this machine's sources.
    """
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    options = [f"Dir::State={folder}/state", f"Dir::Cache={folder}/cache", f"Dir::State::status={folder}/status"]
    options.append("APT::Sandbox::User=root")
    if suite is not None:
        sources = folder / "sources.list"
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        sources.write_text(f"deb [signed-by={keyring}] http://deb.debian.org/debian {suite} main\n")
        options += [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null"]
    if architecture is not None:
        options += [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}"]
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", *packages], check=True)
    return sorted((folder / "cache/archives").glob("*.deb"))
