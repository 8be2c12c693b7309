from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.daemon.allocator import Trimmer

pytestmark = pytest.mark.serial

# Many small blocks, every hundredth of which stays in use: the allocator returns nothing by itself.
PROGRAM = """
import ctypes, os, time
from edgekit.daemon.allocator import Trimmer, limit_arenas
assert limit_arenas()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
blocks = [library.malloc(16384) for _ in range(6400)]
for block in blocks:
    library.memset(block, 1, 16384)
for number, block in enumerate(blocks):
    if number % 100 != 99:
        library.free(block)
kept = resident()
trimmer = Trimmer(interval_s=0.05)
trimmer.start()
until = time.monotonic() + 20
while resident() > kept - 80_000_000 and time.monotonic() < until:
    time.sleep(0.05)
trimmer.stop()
print(kept - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_freed_between_blocks_in_use_returns_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    # All but a hundredth of 100 MiB, and the rest of the pages that those occupy.
    assert int(done.stdout) > 80_000_000


def test_stopping_a_trimmer_that_was_not_started_does_nothing() -> None:
    Trimmer().stop()


ARENAS = """
import ctypes, sys, threading
from edgekit.daemon.allocator import limit_arenas
if sys.argv[1] == "limited":
    assert limit_arenas(2)
library = ctypes.CDLL(None)
library.fopen.restype = library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.malloc_info.argtypes, library.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
together = threading.Barrier(6)
def allocate():
    together.wait()
    library.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = library.fopen(sys.argv[2].encode(), b"w")
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_threads_share_as_many_arenas_as_allowed(tmp_path: Path) -> None:
    arenas = {}
    for limit in ("limited", "unlimited"):
        report = tmp_path / limit
        subprocess.run([sys.executable, "-c", ARENAS, limit, str(report)], timeout=60, check=True)
        arenas[limit] = report.read_text().count("<heap nr=")
    assert arenas["limited"] == 2
    assert arenas["unlimited"] > 2
