"""The unit under a real systemd, in a container booted on a throw-away overlay of this machine's root.

Needs root, systemd-nspawn and overlayfs; changes nothing outside the overlay.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.service import ServiceSpec, install
from tests.conftest import edgekit
from tests.models import tiny_checkpoint

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("systemd-nspawn") is None,
        reason="needs root and systemd-nspawn",
    ),
]
NSPAWN = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit")
REPOSITORY = Path(__file__).parent.parent.parent

# The program that the service runs: all that the daemon asks of the system, without a model.
PROGRAM = """#!/opt/py/bin/{python}
import ctypes, os, pathlib, socket, sys, time
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from edgekit.daemon.health import Watchdog
from edgekit.daemon.notify import Notifier

notifier = Notifier()
notifier.extend(60, "loading")
print("argv", sys.argv[1:])
codes = np.random.randint(0, 255, (256, 8, 16), dtype=np.uint8)
scales = np.ones((256, 8), np.float32)
attributes = dict(K=256, N=256, bits=4, block_size=32)
node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", **attributes)
info = helper.make_tensor_value_info
graph = helper.make_graph(
    [node], "g", [info("x", TensorProto.FLOAT, [None, 256])], [info("y", TensorProto.FLOAT, [None, 256])],
    [numpy_helper.from_array(codes, "q"), numpy_helper.from_array(scales, "s")])
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print("logits", session.run(None, {{"x": np.ones((3, 256), np.float32)}})[0].shape)
print("callback", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)(1))
with socket.create_server(("127.0.0.1", 0)) as server:
    print("listens", server.getsockname()[1] > 0)
print("credential", repr(pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"], "mqtt-password").read_text()))
for folder in (os.environ["STATE_DIRECTORY"], os.path.join(os.environ["XDG_CACHE_HOME"], "edgekit")):
    pathlib.Path(folder, "file").write_text("x")
attempts = {{
    "/usr/file": lambda p: p.write_text("x"),
    "/etc/edgekit/file": lambda p: p.write_text("x"),
    "/etc/shadow": lambda p: p.read_text(),
    "/root": lambda p: list(p.iterdir()),
    "/home": lambda p: list(p.iterdir()),
    "/dev/mem": lambda p: p.open("rb"),
}}
for path, attempt in attempts.items():
    try:
        attempt(pathlib.Path(path))
        print("reached", path)
    except OSError:
        pass
status = pathlib.Path("/proc/self/status").read_text().split()
print("uid", os.getuid() not in (0, 65534), "caps", status[status.index("CapEff:") + 1])
start = time.monotonic()
Watchdog(lambda: max(0.0, time.monotonic() - start - 3), notifier).start()  # after 3 s the loop hangs
notifier.ready("serving")
time.sleep(600)
"""
PROBE = """#!/bin/bash
exec >/probe/log 2>&1
systemctl start edgekit.service && echo started
systemctl show edgekit.service -p ActiveState -p StatusText
for n in $(seq 40); do
  sleep 0.5
  systemctl show edgekit.service -p Result | grep -q watchdog && break
done
systemctl show edgekit.service -p Result
sleep 1.5
systemctl show edgekit.service -p NRestarts
journalctl -u edgekit.service -o cat --no-pager
"""
PROBE_UNIT = """[Unit]
After=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/bash /probe/probe.sh
ExecStopPost=/bin/systemctl poweroff --force
"""


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """A writable overlay of /, removed afterwards."""
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False).returncode != 0:
        pytest.skip("this container may not mount")
    merged = tmp_path / "merged"
    try:
        for name in ("upper", "work", "merged"):
            (tmp_path / name).mkdir()
        options = f"lowerdir=/,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=False)
        if done.returncode != 0:
            pytest.skip("no overlayfs here")
        trial = subprocess.run(
            [*NSPAWN, "--directory", merged, "/bin/true"], capture_output=True, text=True, check=False
        )
        if trial.returncode != 0:
            pytest.skip(f"systemd-nspawn may not start a container here: {trial.stderr.strip()}")
        yield merged
    finally:
        subprocess.run(["umount", "-l", "-q", merged], check=False)
        subprocess.run(["umount", "-l", tmp_path], check=True)


def boot(
    image: Path, tmp_path: Path, script: str, *, bundle: Path, settings: str, python_path: str, **shown: Path
) -> str:
    """Install the unit into an image, boot it, and return what a script in it says.

    Args:
        image: The image.
        tmp_path: A folder of this machine.
        script: Starts the unit, and ends.
        bundle: Of the command line.
        settings: Further settings of the unit.
        python_path: Before the installed packages.
        shown: Folders of this machine that the service sees as `/opt/NAME`.
    """
    unit = install(ServiceSpec(Path("/opt/boot test/edgekit"), bundle=bundle), root=image).path
    # This Python is where the unit may not read, so it is bind-mounted.
    shown = {"py": Path(sys.base_prefix), "site": Path(sysconfig.get_path("purelib")), **shown}
    mounts = " ".join(f"/shown/{name}:/opt/{name}" for name in shown)
    drop_in = unit.with_name("edgekit.service.d")
    drop_in.mkdir()
    (drop_in / "test.conf").write_text(
        f"[Service]\nRestartSec=1\n{settings}\nBindReadOnlyPaths={mounts}\n"
        f"Environment=LD_LIBRARY_PATH=/opt/py/lib PYTHONPATH={python_path}:/opt/site\n"
    )
    (image / "etc/systemd/system/probe.service").write_text(PROBE_UNIT)
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "probe.sh").write_text(script)
    command = [*NSPAWN, "--directory", str(image), f"--bind={probe}:/probe"]
    # Bind-mounted by name: the container hides this machine's /tmp, where they may be.
    command += [f"--bind-ro={folder}:/shown/{name}" for name, folder in shown.items()]
    command += ["--link-journal=no", "--console=pipe", "--boot", "--", "systemd.unit=probe.service"]
    booted = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL)
    log = probe / "log"
    assert log.exists(), booted.stdout + booted.stderr
    return log.read_text()


def test_a_real_systemd_starts_the_unit_confines_it_and_restarts_it_when_it_hangs(image: Path, tmp_path: Path) -> None:
    program = image / "opt/boot test/edgekit"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM.format(python=f"python3.{sys.version_info[1]}"))
    program.chmod(0o755)
    package = image / "opt/stub/edgekit"
    (package / "daemon").mkdir(parents=True)
    for name in (
        "__init__.py",
        "errors.py",
        "version.py",
        "daemon/__init__.py",
        "daemon/notify.py",
        "daemon/health.py",
    ):
        shutil.copy(REPOSITORY / "edgekit" / name, package / name)
    odd = Path('/opt/a b/$HOME/%h/"q"/back\\slash')
    output = boot(image, tmp_path, PROBE, bundle=odd, settings="WatchdogSec=2", python_path="/opt/stub")
    assert {"started", "ActiveState=active", "StatusText=serving"} <= set(output.splitlines()), output
    assert f"argv {['serve', str(odd)]}" in output
    assert "logits (3, 256)" in output
    assert "callback 2" in output
    assert "listens True" in output
    assert r"credential '\n'" in output
    assert "reached" not in output
    assert "uid True caps 0000000000000000" in output
    assert "Result=watchdog" in output
    assert "NRestarts=1" in output
    # PYTHONFAULTHANDLER: the journal shows where it hung.
    assert "Fatal Python error: Aborted" in output


# `edgekit serve`, on a machine with a card whose driver is missing: the builder needs none.
BUILDING = """#!/opt/py/bin/{python}
import logging, os
from dataclasses import replace
from edgekit.config import load_config
from edgekit.daemon.app import Daemon
from edgekit.generation import first_build
from edgekit.generation.engine_wanted import this_target
first_build.check_driver = lambda: None
card = lambda: replace(this_target(), compute_capability="8.6")
logging.basicConfig(level="INFO")
overrides = {{"bundle": "/opt/built", "generation.ignore_compatible": True, "generation.context_length": 64}}
Daemon(load_config(None, env=os.environ, overrides=overrides), find_target=card).run()
"""
PROBE_BUILD = """#!/bin/bash
exec >/probe/log 2>&1
systemctl start edgekit.service && echo started
for n in $(seq 400); do
  systemctl show edgekit.service -p StatusText
  journalctl -u edgekit.service -o cat --no-pager | grep -q "answers still come from" && break
  sleep 0.5
done
sleep 1
systemctl show edgekit.service -p ActiveState -p StatusText -p NRestarts
ls -R /var/cache/private/edgekit/engines
cat /var/lib/private/edgekit/engine-builds.json; echo
journalctl -u edgekit.service -o cat --no-pager
"""


@pytest.mark.slow
def test_the_service_builds_an_engine_in_its_sandbox(image: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")
    bundle = tmp_path / "merged" / "opt" / "source" / "bundle"
    checkpoint = tiny_checkpoint(tmp_path / "hf", layers=2)
    edgekit("export", checkpoint, "--target", "rtx", "-o", bundle)
    program = image / "opt/boot test/edgekit"
    program.parent.mkdir(parents=True)
    program.write_text(BUILDING.format(python=f"python3.{sys.version_info[1]}"))
    program.chmod(0o755)
    output = boot(
        image,
        tmp_path,
        PROBE_BUILD,
        bundle=Path("/opt/built"),
        settings="",
        python_path="/opt/repository",
        repository=REPOSITORY,
        built=bundle,
    )
    assert "started" in output.splitlines(), output
    assert "; building the TensorRT engine, " in output, output
    assert "built the TensorRT engine in " in output, output
    assert "segment-00.engine" in output
    assert "StatusText=serving" in output
    assert "{}" in output.splitlines()
    assert "NRestarts=0" in output
    assert "Traceback" not in output
