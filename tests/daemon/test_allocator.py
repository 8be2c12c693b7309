from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.daemon.allocator import Trimmer

# Many small pieces, every hundredth of which stays: the allocator can give back nothing by itself.
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
pieces = [library.malloc(16384) for _ in range(6400)]
for piece in pieces:
    library.memset(piece, 1, 16384)
for number, piece in enumerate(pieces):
    if number % 100 != 99:
        library.free(piece)
kept = resident()
trimmer = Trimmer(every_s=0.05)
trimmer.start()
until = time.monotonic() + 20
while resident() > kept - 80_000_000 and time.monotonic() < until:
    time.sleep(0.05)
trimmer.stop()
print(kept - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's memory")
def test_memory_that_is_free_between_pieces_in_use_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    # All but a hundredth of 100 MiB, and what pages hold beside it.
    assert int(done.stdout) > 80_000_000


def test_stopping_what_was_not_started_does_nothing() -> None:
    Trimmer().stop()
