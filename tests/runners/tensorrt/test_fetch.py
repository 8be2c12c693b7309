"""Engines of other devices, over a real ssh and a real sshd, which are connected by a pipe instead of a network."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.engine_set import read_engine_set, verify_files
from edgekit.runners.tensorrt.fetch import fetch_engine, find_offer, is_host
from edgekit.runners.tensorrt.store import EngineStore
from tests.runners.tensorrt.test_store import WANTED, Maker

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
SSH = shutil.which("ssh")
HOST = f"{getpass.getuser()}@jetson"

needs_sshd = pytest.mark.skipif(not (SSHD and SSH), reason="openssh-server is not installed")


def test_a_host_is_a_user_and_a_name_and_not_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_host("pi@jetson.local")
    assert not any(map(is_host, ("engine", "-oProxyCommand=x@y", "a/b@c", "user@-h", "user@", "user@a b")))
    (tmp_path / "user@host").mkdir()
    assert not is_host("user@host")


def test_a_missing_a_short_and_a_changed_segment_of_a_folder_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    Maker()(source)
    segment = source / "segment-01.engine"
    data = segment.read_bytes()
    for index, change in enumerate((None, data[:-1], data[:-1] + b"x")):
        segment.unlink(missing_ok=True)
        if change is not None:
            segment.write_bytes(change)
        folder = tmp_path / f"copy-{index}"
        folder.mkdir()
        with pytest.raises(RunnerError, match=r"segment-01\.engine .*(No such file|is damaged)"):
            fetch_engine(find_offer(str(source), WANTED), folder)
        assert not (folder / "engine.json").exists()


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of another device, which `ssh` reaches."""
    keys = tmp_path / "ssh"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as the service does: sshd wants it
    (keys / "sshd_config").write_text(
        f"HostKey {keys / 'host'}\nAuthorizedKeysFile {keys / 'user.pub'}\nStrictModes no\nPermitRootLogin yes\n"
        f'UsePAM no\nPidFile none\nSetEnv EDGEKIT_CACHE="{tmp_path / "remote cache"}"\n'
    )
    (keys / "ssh_config").write_text(
        f"Host jetson\n  ProxyCommand {SSHD} -i -e -f {keys / 'sshd_config'}\n  IdentityFile {keys / 'user'}\n"
        f"Host *\n  ConnectTimeout 60\n  BatchMode yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        f"  LogLevel ERROR\nHost gone\n  ProxyCommand false\n"
    )
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ssh"
    program.write_text(f'#!/bin/sh\nexec {SSH} -F {keys / "ssh_config"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "remote cache"


@needs_sshd
def test_an_engine_is_taken_from_another_devices_store(remote: Path, tmp_path: Path) -> None:
    store, bundle = EngineStore(remote / "engines"), tmp_path / "bundle"
    bundle.mkdir()
    other = replace(WANTED, context_length=2048)
    (tmp_path / "other").mkdir()
    store.obtain(tmp_path / "other", other, Maker(other))
    made = store.obtain(bundle, WANTED, Maker())
    folder, copied = tmp_path / "copy", []
    folder.mkdir()
    fetch_engine(find_offer(HOST, WANTED), folder, lambda done, total: copied.append((done, total)))
    assert read_engine_set(folder) == made.engine
    verify_files(folder, made.engine)
    assert copied[-1] == (made.engine.size, made.engine.size)
    # Whatever the other device chose, its longest.
    assert find_offer(HOST, replace(WANTED, context_length=None)).engine == made.engine


@needs_sshd
def test_a_device_without_the_engine_says_what_it_has(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(RunnerError) as caught:
        find_offer(HOST, WANTED)
    assert caught.value.message == f"{HOST} has no engine for this bundle and device"
    other = replace(WANTED, version="10.16.2")
    EngineStore(remote / "engines").obtain(tmp_path / "bundle", other, Maker(other))
    with pytest.raises(RunnerError, match=r"its library's version is `10\.16\.2`, not `10\.3\.0`"):
        find_offer(HOST, WANTED)


@needs_sshd
def test_an_engine_that_is_damaged_there_is_refused(remote: Path, tmp_path: Path) -> None:
    made = EngineStore(remote / "engines").obtain(tmp_path / "bundle", WANTED, Maker())
    segment = made.folder / "segment-01.engine"
    folder = tmp_path / "copy"
    for data in (segment.read_bytes()[:-1], segment.read_bytes() + b"more"):
        segment.write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with pytest.raises(RunnerError, match=r"is damaged|more than was asked for"):
            fetch_engine(find_offer(HOST, WANTED), folder)
        assert not (folder / "engine.json").exists()


@needs_sshd
@pytest.mark.usefixtures("remote")
def test_a_device_that_cannot_be_reached_is_an_error_that_says_why() -> None:
    with pytest.raises(RunnerError, match="user@gone cannot be reached by ssh") as caught:
        find_offer("user@gone", WANTED)
    assert caught.value.hint == "try: ssh user@gone"
