"""Limits of real control groups, made for each test; only as root, where memory and CPU time are controlled."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.broker import free_port
from tests.conftest import Export, edgekit_command

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes control groups, as root"),
]


def parent(controller: str) -> tuple[int, Path]:
    """The version and the folder of a hierarchy in which a group with this controller can be made."""
    if (CGROUPS / controller).is_dir():
        return 1, CGROUPS / controller
    with contextlib.suppress(OSError):
        if controller in (CGROUPS / "cgroup.subtree_control").read_text().split():
            return 2, CGROUPS
    pytest.skip(f"no control group with `{controller}` can be made here")


Limited = Callable[[str, Mapping[str, object]], Path]


@pytest.fixture
def limited() -> Iterator[Limited]:
    """Makes a group with limits and returns one inside it, so that a process finds them only at an ancestor."""
    made: list[Path] = []

    def make(controller: str, limits: Mapping[str, object]) -> Path:
        outer = parent(controller)[1] / f"edgekit-test-{os.getpid()}-{len(made)}"
        try:
            outer.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        made.append(outer)
        inner = outer / "inner"
        if (outer / "cgroup.subtree_control").exists():
            (outer / "cgroup.subtree_control").write_text(f"+{controller}")
        inner.mkdir()
        made.append(inner)
        for name, value in limits.items():
            (outer / name).write_text(str(value))
        return inner

    yield make
    for folder in reversed(made):
        for _ in range(100):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)


def memory(limit: int) -> dict[str, object]:
    return {"memory.limit_in_bytes" if parent("memory")[0] == 1 else "memory.max": limit}


def inside(group: Path, command: list[str]) -> list[str]:
    """The command, run by a shell that enters the group first."""
    return ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]


def output(group: Path, program: str, *arguments: str | Path) -> str:
    command = inside(group, [sys.executable, "-c", program, *map(str, arguments)])
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_page_cache_of_a_real_group_counts_as_available(limited: Limited, tmp_path: Path) -> None:
    group = limited("memory", memory(200 * MIB))
    program = f"""
import os, sys
from edgekit.machine import available_bytes
with open(sys.argv[1], "wb") as file:
    for _ in range(100):
        file.write(os.urandom({MIB}))
    file.flush()
    os.fsync(file.fileno())
before = available_bytes()
held = b"x" * (50 * {MIB})
print(before, available_bytes())
"""
    before, after = map(int, output(group, program, tmp_path / "bundle").split())
    # The interpreter needs some 20 MiB; the file of 100 MiB is cached, and a process may allocate in its place.
    assert 150 * MIB < before <= 200 * MIB
    assert before - 60 * MIB < after < before - 40 * MIB


def test_a_real_quota_of_an_outer_group_bounds_the_threads(limited: Limited) -> None:
    v1 = parent("cpu")[0] == 1
    quota = {"cpu.cfs_quota_us": 100_000, "cpu.cfs_period_us": 100_000} if v1 else {"cpu.max": "100000 100000"}
    group = limited("cpu", quota)
    program = "from edgekit.cores import count_cores as c; print(c().usable, c().usable_cpus, c().quota.cpus)"
    assert output(group, program).split() == ["1", "1", "1.0"]


def test_the_doctor_names_the_limit_and_where_it_is_set(limited: Limited) -> None:
    group = limited("memory", memory(700 * MIB))
    program = "import sys; sys.argv = ['edgekit', 'doctor', '--json']; from edgekit.cli import main; main()"
    command = inside(group, [sys.executable, "-c", program])
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    (check,) = (check for check in json.loads(done.stdout)["checks"] if check["name"] == "memory")
    assert f"a limit of 0.68 GiB ({group.parent}/memory." in check["detail"]
    assert check["state"] == "warn"


def test_eight_long_prompts_stay_within_a_small_real_limit(export: Export, limited: Limited) -> None:
    # Without the limit, the plan would have been for 8 x 8192 tokens of 23 KiB: the kernel would kill the daemon.
    group = limited("memory", memory(300 * MIB))
    port = free_port()
    command = inside(group, edgekit_command("serve", export("cpu"), "--port", str(port)))
    statuses: list[int] = []

    def request(method: str, path: str, body: object = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    with subprocess.Popen(command) as daemon:
        try:
            deadline = time.monotonic() + 60
            while request("GET", "/readyz") != 200:
                assert daemon.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)

            def ask(number: int) -> None:
                text = f"{number}: " + "one two three four " * 180
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
                statuses.append(request("POST", "/v1/chat/completions", body))

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert daemon.poll() is None
        finally:
            daemon.terminate()
            daemon.wait(30)
    assert statuses == [200] * 8
